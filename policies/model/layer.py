"""One decoder layer: sparse attention, then experts or a dense feed-forward."""

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from policies.model.attention import Attention, LayerInputs
from policies.model.config import ModelConfig
from policies.model.experts import MLP, MoE
from policies.model.norm import RMSNorm


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: ModelConfig, *, sparse: bool) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MoE(config) if sparse else MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_ND: Tensor,
        inputs: LayerInputs,
        forced_experts_NK: Tensor | None,
        forced_places_NK: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The layer's output, the experts it used, the indexer's loss, the places it attended to."""
        mixed_ND, loss, places_NK = self.self_attn(self.input_layernorm(hidden_ND), inputs, forced_places_NK)
        hidden_ND = hidden_ND + mixed_ND
        normed_ND = self.post_attention_layernorm(hidden_ND)
        if isinstance(self.mlp, MoE):
            out_ND, experts_NK = self.mlp(normed_ND, forced_experts_NK)
            return hidden_ND + out_ND, experts_NK, loss, places_NK
        return hidden_ND + self.mlp(normed_ND), None, loss, places_NK
