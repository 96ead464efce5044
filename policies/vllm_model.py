"""Our policy as a vLLM model: the trainer's module, decoded over vLLM's paged cache.

vLLM schedules, batches, pages, shares prefixes and samples; what it has no CPU kernels for, the indexer and
attention to selected places only, is `policies.model.decode`, the code of the in-process engine. A layer's
cache row holds the latent and the index key side by side, in vLLM's own blocks.
"""

# pyright: reportMissingImports=false

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheLayout, KVCacheSpec, MLAAttentionSpec

from policies.model.cached_attention import NewTokens
from policies.model.config import read_config
from policies.model.decode import FusedDecoder
from policies.model.decoder import WorldsmithForCausalLM
from policies.vllm_records import Recorder


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A step's requests R and new tokens N, request after request."""

    requests_N: Tensor
    """The request of each token, counted from 0."""
    rows_RS: Tensor
    """The cache row of each place of each request; a block that is not allocated yet has row 0's."""
    counts: list[int]
    """New tokens of each request."""


class BatchBuilder(AttentionMetadataBuilder):
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._block_size: int = kv_cache_spec.block_size

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Batch:
        common, size = common_attn_metadata, self._block_size
        counts = common.naive_query_lens()[: common.num_reqs].long()
        blocks = common.block_table_tensor[: common.num_reqs, : -(-common.max_seq_len // size)].long()
        rows = blocks[:, :, None] * size + torch.arange(size, device=blocks.device)
        return Batch(
            requests_N=torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts),
            rows_RS=rows.flatten(1)[:, : common.max_seq_len],
            counts=counts.tolist(),
        )


class LatentBackend(AttentionBackend):
    """Names the builder and the layout; the attention itself is the model's."""

    @staticmethod
    def get_name() -> str:
        return "WORLDSMITH_LATENTS"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("the model computes attention itself")

    @staticmethod
    def get_builder_cls() -> type[BatchBuilder]:
        return BatchBuilder

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)


class LayerCache(nn.Module, AttentionLayerBase):
    """One layer's rows [blocks * block size, C + R + I] float32."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, width: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.rows = torch.empty(0, width)
        self._width = width
        self._block_size: int = vllm_config.cache_config.block_size
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        return LatentBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        return MLAAttentionSpec(
            block_size=self._block_size,
            num_kv_heads=1,
            max_tp_shards=1,
            head_size=self._width,
            dtype=torch.float32,
        )

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """[blocks, 1, block size, C + R + I] as vLLM allocates it."""
        self.kv_cache = kv_cache
        self.rows = kv_cache.squeeze(1).flatten(0, 1)
        assert self.rows.data_ptr() == kv_cache.data_ptr(), "the cache must be laid out layer by layer"


class PagedCache:
    """The layers' caches as `policies.model.decode` writes and reads them."""

    hashed = None
    num_slots = 0
    max_length = 0

    def __init__(self, layers: list[LayerCache], latent_width: int) -> None:
        self._layers, self._width = layers, latent_width

    @property
    def latents(self) -> list[Tensor]:
        return [layer.rows[:, : self._width] for layer in self._layers]

    @property
    def index_keys(self) -> list[Tensor]:
        return [layer.rows[:, self._width :] for layer in self._layers]

    def write(self, layer: int, places_N: Tensor, latents: Tensor, index_keys: Tensor) -> None:
        self._layers[layer].rows.index_copy_(0, places_N, torch.cat((latents, index_keys), -1))


class ServedPolicy(nn.Module):
    """vLLM's interface around `WorldsmithForCausalLM`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = read_config(Path(vllm_config.model_config.model))
        self.policy = WorldsmithForCausalLM(self.config).eval()
        self.recorder: Recorder | None = None
        self._decoder: FusedDecoder | None = None
        latent_width = self.config.kv_lora_rank + self.config.qk_rope_head_dim
        width = latent_width + self.config.index_head_dim
        layers = [
            LayerCache(vllm_config, f"model.layers.{layer}.attn", width)
            for layer in range(self.config.num_hidden_layers)
        ]
        self.caches = nn.ModuleList(layers)
        self._cache = PagedCache(layers, latent_width)
        self._name = layers[0].prefix

    @property
    def decoder(self) -> FusedDecoder:
        if self._decoder is None:
            self._decoder = FusedDecoder(self.policy)
        return self._decoder

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.policy.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[N, D] of what `compute_logits` reads; zeros when vLLM only measures a step (no batch)."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:
            return input_ids.new_zeros(len(input_ids), self.config.hidden_size, dtype=torch.float32)
        batch: Batch = metadata[self._name]
        count = len(batch.requests_N)
        tokens = NewTokens(
            ids=input_ids[:count],
            slots=batch.requests_N,
            positions=positions[:count],
            num_cached=batch.rows_RS.shape[1],
            fewest=int(positions[:count].min()) + 1,
            rows=batch.rows_RS,
        )
        places: list[Tensor] | None = None
        if self.recorder is not None and self.recorder.record_selected:
            places = []
        hidden_ND, routes_NLK = self.decoder.read(tokens, self._cache, places)
        if self.recorder is not None:
            self.recorder.record(tokens, batch.counts, routes_NLK, places)
        if count < len(input_ids):  # vLLM padded the step
            hidden_ND = nn.functional.pad(hidden_ND, (0, 0, 0, len(input_ids) - count))
        return hidden_ND

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.decoder.logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """A whole state under the names of a file or of the trainer's module; buffers are part of it."""
        self.take(dict(weights))
        return {name for name, _ in self.named_parameters()}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError naming every tensor that is missing or surplus."""
        self.policy.load_state_dict(state, strict=True)
        self._decoder = None
