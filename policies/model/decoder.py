"""The decoder: transformers' `deepseek_v32` parameters, our own arithmetic.

An ordinary transformers model to a trainer: `model(input_ids, attention_mask)` gives `.logits`. Beyond that a
forward can be told which experts to use (`routes`), asked which it used (`return_routes`) and asked for the
indexer's loss (`indexer_loss`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from policies.model.attention import INDEXER_LOSSES, Attention, LayerInputs
from policies.model.config import ModelConfig, check_config, rope_theta
from policies.model.experts import MLP, MoE, RoutedExperts, Router, fuse_experts, routers
from policies.model.norm import RMSNorm
from policies.model.packing import PackedBatch, pack
from policies.model.rotary import rotary_tables

_NOT_SUPPORTED = ("position_ids", "inputs_embeds", "past_key_values")


@dataclass
class DecoderOutput(ModelOutput):
    """What a forward returns; fields that were not asked for are None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    """[B, kept, V]; zeros where the mask is 0."""
    last_hidden_state: Tensor | None = None
    indexer_loss: Tensor | None = None
    """Mean KL over layers and real query tokens, nats; its gradient reaches the indexers alone."""
    routes: Tensor | None = None
    """[B, S, L, K] int64, the experts used in the L mixture layers; -1 where the mask is 0."""


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mlp_layer_types is not None
        self.self_attn = Attention(config)
        sparse = config.mlp_layer_types[layer] == "sparse"
        self.mlp = MoE(config) if sparse else MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_ND: Tensor, inputs: LayerInputs, forced_NK: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The layer's output, the experts it used, the indexer's loss."""
        mixed_ND, loss = self.self_attn(self.input_layernorm(hidden_ND), inputs)
        hidden_ND = hidden_ND + mixed_ND
        normed_ND = self.post_attention_layernorm(hidden_ND)
        if isinstance(self.mlp, MoE):
            out_ND, experts_NK = self.mlp(normed_ND, forced_NK)
            return hidden_ND + out_ND, experts_NK, loss
        return hidden_ND + self.mlp(normed_ND), None, loss


class PolicyPreTrainedModel(PreTrainedModel):
    config: ModelConfig
    config_class = ModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 (transformers' form)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, Router):
            module.weight.normal_(0.0, std)
            module.e_score_correction_bias.zero_()
        elif isinstance(module, RoutedExperts):
            module.gate_up_proj.normal_(0.0, std)
            module.down_proj.normal_(0.0, std)


class Decoder(PolicyPreTrainedModel):
    """Embedding, layers and final norm, over packed tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def forward(
        self,
        input_ids: Tensor,
        batch: PackedBatch,
        *,
        routes_NLK: Tensor | None = None,
        indexer_loss: str = "none",
        capture: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The last hidden state [N, D], the experts of each mixture layer, the indexers' mean loss."""
        hidden_ND = self.embed_tokens(batch.from_source(input_ids))
        places_T = torch.arange(batch.length, device=hidden_ND.device)
        row_cos, row_sin = rotary_tables(places_T, self.config.qk_rope_head_dim, rope_theta(self.config))
        inputs = LayerInputs(
            batch=batch,
            cos=row_cos[batch.positions],
            sin=row_sin[batch.positions],
            row_cos=row_cos,
            row_sin=row_sin,
            indexer_loss=indexer_loss,
            capture=capture,
        )
        used: list[Tensor] = []
        losses: list[Tensor] = []
        for layer in self.decoder_layers():
            forced = None
            if routes_NLK is not None and isinstance(layer.mlp, MoE):
                forced = routes_NLK[:, len(used)]
            hidden_ND, experts_NK, loss = layer(hidden_ND, inputs, forced)
            if experts_NK is not None:
                used.append(experts_NK)
            if loss is not None:
                losses.append(loss)
        return self.norm(hidden_ND), used, torch.stack(losses).mean() if losses else None


class WorldsmithForCausalLM(PolicyPreTrainedModel):
    """The policy network with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers' form)

    # The trainer divides the loss by its accumulation steps; the model does not.
    accepts_loss_kwargs = False

    def __init__(self, config: ModelConfig) -> None:
        check_config(config)
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Trainers read token ids from it; generating is the engine's work.
        self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    def forward(  # noqa: PLR0913 (what trainers pass is not ours to group)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        routes: Tensor | None = None,
        return_routes: bool = False,
        indexer_loss: str = "none",
        **ignored: Any,
    ) -> DecoderOutput:
        """Logits of a batch of token ids [B, S].

        Args:
            attention_mask: [B, S], 0 for padding, on either side; positions count real tokens from 0.
            labels: [B, S] next-token targets (shifted here), -100 for none; gives `.loss`.
            logits_to_keep: the last so many columns (0: all), or the columns' indices.
            routes: [B, S, L, K], experts to use in the L mixture layers; negative: the router chooses.
            indexer_loss: "none", "dense" (over all earlier tokens) or "sparse" (over the selected ones).
            ignored: what trainers pass to every model, such as `use_cache`.
        """
        unsupported = [name for name in _NOT_SUPPORTED if ignored.get(name) is not None]
        if unsupported:
            raise ValueError(f"this model takes no {', '.join(unsupported)}; positions follow attention_mask")
        if indexer_loss not in INDEXER_LOSSES:
            raise ValueError(f"indexer_loss must be one of {INDEXER_LOSSES}, got {indexer_loss!r}")
        num_rows, num_columns = input_ids.shape
        batch = pack(num_rows, num_columns, attention_mask, input_ids.device)
        routes_NLK = None if routes is None else batch.from_source(routes)
        hidden_ND, used, kl = self.model(input_ids, batch, routes_NLK=routes_NLK, indexer_loss=indexer_loss)
        self._count_loads(used)
        hidden = batch.to_source(hidden_ND, num_columns)
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        else:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        shown = (
            batch.to_source(torch.stack(used, 1), num_columns, fill=-1) if return_routes and used else None
        )
        return DecoderOutput(loss=loss, logits=logits, indexer_loss=kl, routes=shown)

    @torch.no_grad()
    def _count_loads(self, used: list[Tensor]) -> None:
        """Outside the layers, so that gradient checkpointing's second forward is not counted."""
        if not self.training:
            return
        for router, experts_NK in zip(routers(self), used, strict=True):
            router.load += torch.bincount(experts_NK.flatten(), minlength=len(router.load))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes experts stacked or one by one, so that a file's tensors load as they are."""
        return super().load_state_dict(fuse_experts(state_dict), strict=strict, assign=assign)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write transformers' per-expert files; `state_dict` may stand in for the module's own."""
        from policies.model.checkpoint import save_model

        assert not args, "pass save_pretrained's options by name"
        if kwargs.get("is_main_process", True):
            save_model(self, Path(save_directory), state_dict=kwargs.get("state_dict"))
