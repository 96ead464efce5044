"""Multi-token prediction as in DeepSeek-V3 (arXiv 2412.19437, section 2.2): modules that look further ahead.

Module d reads, at token t, the representation of the module before it (for the first, the main model's after
its final norm) and the embedding of token t + d, and predicts token t + d + 1. Embedding and head are the
main model's. Parameter names are those of the published checkpoints: `model.layers.N` with N from
`num_hidden_layers` on, `enorm`, `hnorm`, `eh_proj`, `shared_head.norm` beside a decoder layer's.
"""

import re

import torch
from torch import Tensor, nn

from policies.model.config import ModelConfig
from policies.model.layer import DecoderLayer
from policies.model.norm import RMSNorm

IGNORED = -100
SHARED_COPY = re.compile(r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight")
"""Names under which published checkpoints repeat the embedding and the head that the modules share."""


class SharedHead(nn.Module):
    """The norm before the main model's head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class PredictionLayer(DecoderLayer):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, sparse=(config.mlp_layer_types or ["sparse"])[-1] == "sparse")
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def combine(self, hidden_ND: Tensor, ahead_ND: Tensor) -> Tensor:
        """The layer's input from a representation and the embedding of a later token."""
        return self.eh_proj(torch.cat((self.enorm(ahead_ND), self.hnorm(hidden_ND)), dim=-1))


def tokens_ahead(positions_N: Tensor, distance: int) -> Tensor:
    """[N] bool, which packed tokens have another `distance` places on in their row."""
    return positions_N.roll(-distance) == positions_N + distance


def targets_ahead(labels_N: Tensor, positions_N: Tensor, distance: int) -> Tensor:
    """[N] the label `distance` places on, IGNORED where the row ends before."""
    return labels_N.roll(-distance).masked_fill(~tokens_ahead(positions_N, distance), IGNORED)
