"""The decoder: transformers' `deepseek_v32` parameters, our own arithmetic.

An ordinary transformers model to a trainer: `model(input_ids, attention_mask)` gives `.logits`. Beyond that a
forward can be told which experts and tokens to use (`routes`, `selected`), asked which it used, and asked for
the indexer's loss (`indexer_loss`) and that of multi-token prediction (`predict_ahead`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput

from policies.model.attention import INDEXER_LOSSES, LayerInputs
from policies.model.config import ModelConfig, check_config, rope_theta, yarn
from policies.model.experts import MoE, RoutedExperts, Router, fuse_experts
from policies.model.layer import DecoderLayer
from policies.model.mtp import IGNORED, SHARED_COPY, PredictionLayer, targets_ahead, tokens_ahead
from policies.model.norm import RMSNorm
from policies.model.packing import PackedBatch, pack, pick_rows
from policies.model.rotary import rotary_tables
from policies.model.scores import target_logps

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
    selected: Tensor | None = None
    """[B, S, L, K] int32, the positions attended to in each of all L layers, in order; -1 for none."""
    target_logps: Tensor | None = None
    """[B, S] float32, nats: of each target; 0 where there is none."""
    entropy: Tensor | None = None
    """[B, S] float32, nats: of the distributions that the targets are from, without gradient."""
    mtp_loss: Tensor | None = None
    """Mean cross-entropy of the prediction modules, nats. DeepSeek-V3 adds it with weight 0.3, later 0.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forced:
    """What a forward is to use instead of its own choice, for N packed tokens; negative: its own."""

    routes_NLK: Tensor | None = None
    """Experts, in the L mixture layers."""
    selected_NLK: Tensor | None = None
    """Places to attend to, in all L layers."""


class PolicyPreTrainedModel(PreTrainedModel):
    config: ModelConfig
    config_class = ModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 (transformers' form)
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [SHARED_COPY.pattern]  # noqa: RUF012 (transformers' form)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # These functions, unlike the tensors' own, pass over what was loaded from a file.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, 0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, Router):
            initialization.normal_(module.weight, 0.0, std)
            initialization.zeros_(module.e_score_correction_bias)
            initialization.zeros_(module.load)
        elif isinstance(module, RoutedExperts):
            initialization.normal_(module.gate_up_proj, 0.0, std)
            initialization.normal_(module.down_proj, 0.0, std)


class Decoder(PolicyPreTrainedModel):
    """Embedding, layers and final norm, over packed tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kinds = config.mlp_layer_types or []
        self.layers = nn.ModuleList(DecoderLayer(config, sparse=kind == "sparse") for kind in kinds)
        self.layers.extend(PredictionLayer(config) for _ in range(config.num_nextn_predict_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def decoder_layers(self) -> list[DecoderLayer]:
        """Without the prediction modules."""
        layers = self.layers[: self.config.num_hidden_layers]
        return [layer for layer in layers if isinstance(layer, DecoderLayer)]

    def prediction_layers(self) -> list[PredictionLayer]:
        return [layer for layer in self.layers if isinstance(layer, PredictionLayer)]

    def forward(
        self,
        input_ids: Tensor,
        batch: PackedBatch,
        *,
        forced: Forced | None = None,
        indexer_loss: str = "none",
        capture: list[tuple[Tensor, Tensor]] | None = None,
        record: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The last hidden state [N, D], the experts of each mixture layer, the indexers' mean loss.

        Each layer appends the places that it attended to, [N, K] int32, to `record`.
        """
        hidden_ND = self.embed_tokens(batch.from_source(input_ids))
        inputs = self._layer_inputs(
            batch, indexer_loss=indexer_loss, capture=capture, record_places=record is not None
        )
        forced = forced or Forced()
        used: list[Tensor] = []
        losses: list[Tensor] = []
        for index, layer in enumerate(self.decoder_layers()):
            routes = places = None
            if forced.routes_NLK is not None and isinstance(layer.mlp, MoE):
                routes = forced.routes_NLK[:, len(used)]
            if forced.selected_NLK is not None:
                places = forced.selected_NLK[:, index]
            hidden_ND, experts_NK, loss, places_NK = layer(hidden_ND, inputs, routes, places)
            if experts_NK is not None:
                used.append(experts_NK)
            if loss is not None:
                losses.append(loss)
            if record is not None:
                record.append(places_NK)
        return self.norm(hidden_ND), used, torch.stack(losses).mean() if losses else None

    def look_ahead(
        self, hidden_ND: Tensor, ids_N: Tensor, batch: PackedBatch
    ) -> list[tuple[Tensor, Tensor | None]]:
        """What each prediction module gives to the head, [N, D], and the experts that it used.

        The last d tokens of a row have no token d places on. What module d computes for them means nothing;
        no other token sees it.
        """
        inputs = self._layer_inputs(batch)
        given: list[tuple[Tensor, Tensor | None]] = []
        for depth, layer in enumerate(self.prediction_layers(), start=1):
            mixed_ND = layer.combine(hidden_ND, self.embed_tokens(ids_N.roll(-depth)))
            hidden_ND, experts_NK, _, _ = layer(mixed_ND, inputs, None, None)
            given.append((layer.shared_head.norm(hidden_ND), experts_NK))
        return given

    def _layer_inputs(self, batch: PackedBatch, **options: Any) -> LayerInputs:
        places_T = torch.arange(batch.length, device=self.embed_tokens.weight.device)
        rope_dim, theta = self.config.qk_rope_head_dim, rope_theta(self.config)
        row_cos, row_sin = rotary_tables(places_T, rope_dim, theta, yarn(self.config))
        return LayerInputs(
            batch=batch,
            cos=row_cos[batch.positions],
            sin=row_sin[batch.positions],
            row_turns=torch.complex(row_cos, row_sin),
            **options,
        )


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
        targets: Tensor | None = None,
        temperature: float = 1.0,
        logits_to_keep: int | Tensor = 0,
        routes: Tensor | None = None,
        return_routes: bool = False,
        selected: Tensor | None = None,
        return_selected: bool = False,
        indexer_loss: str = "none",
        predict_ahead: bool = False,
        **ignored: Any,
    ) -> DecoderOutput:
        """Logits of a batch of token ids [B, S].

        Args:
            attention_mask: [B, S], 0 for padding, on either side; positions count real tokens from 0.
            labels: [B, S] next-token targets (shifted here), -100 for none; gives `.loss`.
            targets: [B, S] ids to be scored, each at the column before its own, negative for none; gives
                `.target_logps` and `.entropy` at `temperature` instead of logits, for less work.
            logits_to_keep: the last so many columns (0: all), or the columns' indices.
            routes: [B, S, L, K], experts to use in the L mixture layers; negative: the router chooses.
            selected: [B, S, L, K], positions to attend to in each of all L layers, a token's own row counted
                from 0 and -1 for none; a token with nothing but -1 chooses for itself.
            predict_ahead: whether to compute `.mtp_loss`; needs labels.
            indexer_loss: "none", "dense" (over all earlier tokens) or "sparse" (over the selected ones).
            ignored: what trainers pass to every model, such as `use_cache`.
        """
        unsupported = [name for name in _NOT_SUPPORTED if ignored.get(name) is not None]
        if unsupported:
            raise ValueError(f"this model takes no {', '.join(unsupported)}; positions follow attention_mask")
        if indexer_loss not in INDEXER_LOSSES:
            raise ValueError(f"indexer_loss must be one of {INDEXER_LOSSES}, got {indexer_loss!r}")
        if predict_ahead and (labels is None or not self.config.num_nextn_predict_layers):
            raise ValueError("predict_ahead needs labels, and a model with num_nextn_predict_layers >= 1")
        num_rows, num_columns = input_ids.shape
        batch = pack(num_rows, num_columns, attention_mask, input_ids.device)
        record: list[Tensor] | None = [] if return_selected else None
        hidden_ND, used, kl = self.model(
            input_ids,
            batch,
            forced=Forced(
                routes_NLK=self._forced_routes(routes, batch, input_ids.shape),
                selected_NLK=self._forced_places(selected, batch, input_ids.shape),
            ),
            indexer_loss=indexer_loss,
            record=record,
        )
        self._count_loads(used)
        shown = (
            batch.to_source(torch.stack(used, 1), num_columns, fill=-1) if return_routes and used else None
        )
        places = batch.to_source(torch.stack(record, 1), num_columns, fill=-1) if record else None
        if targets is not None:
            logps, entropy = self._score(hidden_ND, batch.from_source(targets), temperature)
            return DecoderOutput(
                target_logps=batch.to_source(logps, num_columns),
                entropy=batch.to_source(entropy, num_columns),
                indexer_loss=kl,
                routes=shown,
                selected=places,
            )
        hidden = batch.to_source(hidden_ND, num_columns)
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        else:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        loss = mtp_loss = None
        if labels is not None:
            if predict_ahead:
                mtp_loss = self._mtp_loss(hidden_ND, batch.from_source(input_ids), labels, batch)
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return DecoderOutput(
            loss=loss, logits=logits, indexer_loss=kl, routes=shown, selected=places, mtp_loss=mtp_loss
        )

    def _forced_routes(self, routes: Tensor | None, batch: PackedBatch, shape: torch.Size) -> Tensor | None:
        if routes is None:
            return None
        config = self.config
        layers = (config.mlp_layer_types or []).count("sparse")
        expected = (*shape, layers, config.num_experts_per_tok)
        if tuple(routes.shape) != expected:
            raise ValueError(f"routes must have shape {expected}, got {tuple(routes.shape)}")
        if routes.numel() and int(routes.max()) >= config.n_routed_experts:
            raise ValueError(
                f"routes name expert {int(routes.max())}; the model has {config.n_routed_experts} (0 first)"
            )
        return batch.from_source(routes)

    def _forced_places(self, selected: Tensor | None, batch: PackedBatch, shape: torch.Size) -> Tensor | None:
        if selected is None:
            return None
        expected = (*shape, self.config.num_hidden_layers)
        if selected.ndim != 4 or tuple(selected.shape[:3]) != expected:
            raise ValueError(f"selected must have shape {expected} and a fourth, got {tuple(selected.shape)}")
        places_NLK = batch.from_source(selected)
        later = places_NLK > batch.positions[:, None, None]
        if bool(later.any()):
            token, layer, _ = later.nonzero()[0].tolist()
            raise ValueError(
                f"selected: the token at position {int(batch.positions[token])} attends to a later one"
                f" ({int(places_NLK[token, layer].max())}) in layer {layer}"
            )
        return places_NLK

    def _score(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each token that has a target, 0 elsewhere: [N] float32 at least."""
        nothing = hidden_ND.new_zeros(
            len(targets_N), dtype=torch.promote_types(hidden_ND.dtype, torch.float32)
        )
        rows = (targets_N >= 0).nonzero().squeeze(1)
        hidden_ND, targets_N = pick_rows(hidden_ND, rows), targets_N[rows]
        if type(self.lm_head) is nn.Linear:
            logps, entropy = target_logps(hidden_ND, self.lm_head.weight, targets_N, temperature)
        else:  # an adapter stands around it
            all_logps = (self.lm_head(hidden_ND).float() / temperature).log_softmax(-1)
            logps = all_logps.gather(1, targets_N[:, None]).squeeze(1)
            entropy = -(all_logps.detach().exp() * all_logps.detach()).sum(-1)
        logps, entropy = (nothing.index_copy(0, rows, found.to(nothing.dtype)) for found in (logps, entropy))
        return logps, entropy

    def _mtp_loss(self, hidden_ND: Tensor, ids_N: Tensor, labels: Tensor, batch: PackedBatch) -> Tensor:
        labels_N = batch.from_source(labels)
        losses: list[Tensor] = []
        ahead = self.model.look_ahead(hidden_ND, ids_N, batch)
        for depth, (out_ND, experts_NK) in enumerate(ahead, start=1):
            targets_N = targets_ahead(labels_N, batch.positions, depth + 1)
            rows = (targets_N != IGNORED).nonzero().squeeze(1)
            logits = self.lm_head(out_ND[rows]).float()
            total = functional.cross_entropy(logits, targets_N[rows], reduction="sum")
            losses.append(total / max(len(rows), 1))
            mlp = self.model.prediction_layers()[depth - 1].mlp
            if self.training and experts_NK is not None and isinstance(mlp, MoE):
                mlp.gate.count(experts_NK[tokens_ahead(batch.positions, depth)])
        return torch.stack(losses).mean()

    def _count_loads(self, used: list[Tensor]) -> None:
        """Outside the layers, so that gradient checkpointing's second forward is not counted."""
        if not self.training:
            return
        mixtures = [layer.mlp for layer in self.model.decoder_layers() if isinstance(layer.mlp, MoE)]
        for mixture, experts_NK in zip(mixtures, used, strict=True):
            mixture.gate.count(experts_NK)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes experts stacked or one by one, so that a file's tensors load as they are."""
        own = {name: value for name, value in state_dict.items() if not SHARED_COPY.fullmatch(name)}
        return super().load_state_dict(fuse_experts(own), strict=strict, assign=assign)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write transformers' per-expert files; `state_dict` may stand in for the module's own."""
        from policies.model.checkpoint import save_model

        assert not args, "pass save_pretrained's options by name"
        if kwargs.get("is_main_process", True):
            save_model(self, Path(save_directory), state_dict=kwargs.get("state_dict"))
