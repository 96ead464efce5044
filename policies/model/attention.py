"""Multi-head latent attention over the tokens that the selector keeps.

Training and short prefill expand the latents into heads and mask (MHA mode); decoding works on the cached
latents themselves and reads only the selected ones (`decode.py`). Tests prove the two equal.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from policies.model.blockwise import AttentionPlan, IndexParts, block_attention
from policies.model.config import ModelConfig, selection, softmax_scale
from policies.model.head_rows import HeadShape, head_rows
from policies.model.indexer import Indexer
from policies.model.norm import RMSNorm
from policies.model.packing import PackedBatch
from policies.model.rotary import rotate_neighbours

INDEXER_LOSSES = ("none", "dense", "sparse")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerInputs:
    """What every layer of one forward shares."""

    batch: PackedBatch
    cos: Tensor
    """[N, R / 2], as `sin`."""
    sin: Tensor
    row_turns: Tensor
    """[T, R / 2] complex: the same for the places of a row."""
    indexer_loss: str = "none"
    capture: list[tuple[Tensor, Tensor]] | None = field(default=None)
    """When given, each layer appends its cache rows: latents [N, C + R] and index keys [N, I]."""
    record_places: bool = False
    """Whether each layer returns the places that it attended to."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, hidden = config.num_attention_heads, config.hidden_size
        bias = config.attention_bias
        self.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.shape = HeadShape(
            num_heads=heads,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
        )
        self.scale = softmax_scale(config)
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, 1e-6)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * self.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.kv_lora_rank + config.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, 1e-6)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=bias)
        self.indexer = Indexer(config)

    def forward(
        self, hidden_ND: Tensor, inputs: LayerInputs, forced_NK: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The layer's output [N, D]; when asked for, the indexer's loss and the places attended to, [N, K].

        Args:
            forced_NK: places to attend to instead, -1 for none; a token with nothing but -1 chooses itself.
        """
        config = self.config
        q_latent = self.q_a_layernorm(self.q_a_proj(hidden_ND))
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_ND).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        latent = self.kv_a_layernorm(latent)
        index = self._index(hidden_ND, q_latent, inputs)
        if inputs.capture is not None:
            turned = rotate_neighbours(k_rope, inputs.cos, inputs.sin)
            inputs.capture.append((torch.cat((latent, turned), -1), index[1]))
        rows = inputs.batch.to_rows
        parts = IndexParts(
            queries=rows(index[0]).transpose(1, 2).contiguous(),
            keys=rows(index[1]),
            weights=rows(index[2]).transpose(1, 2).unsqueeze(-1),
        )
        q, kv = self.q_b_proj(q_latent), self.kv_b_proj(latent)
        heads = head_rows(q, kv, k_rope, self.shape, inputs.batch, inputs.row_turns)
        mixed, loss, places = block_attention(*heads, parts, self._plan(inputs, forced_NK))
        mixed_N = inputs.batch.to_packed(mixed.transpose(1, 2)).flatten(1).to(hidden_ND.dtype)
        if places is not None:
            places = inputs.batch.to_packed(places)
        return self.o_proj(mixed_N), None if inputs.indexer_loss == "none" else loss, places

    def _index(
        self, hidden_ND: Tensor, q_latent: Tensor, inputs: LayerInputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and inputs.indexer_loss != "none"):
            return self.indexer(hidden_ND, q_latent, inputs.cos, inputs.sin)

    def _plan(self, inputs: LayerInputs, forced_NK: Tensor | None) -> AttentionPlan:
        return AttentionPlan(
            scale=self.scale,
            selection=selection(self.config),  # as it now stands: a cold start changes it on the way
            forced=None if forced_NK is None else inputs.batch.to_rows(forced_NK),
            record=inputs.record_places,
            indexer_loss=inputs.indexer_loss,
            lengths=inputs.batch.lengths,
            row_weights=None if inputs.indexer_loss == "none" else inputs.batch.row_weights(),
        )
