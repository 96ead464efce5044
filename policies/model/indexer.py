"""The lightning indexer: a few small heads that score every earlier token for every query token.

I[t, s] = sum over heads j of w[t, j] * ReLU(q[t, j] . k[s]), with one shared key head and signed weights. It
reads the layer's input and query latent but sends them no gradient: it learns from its own loss alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.model.config import ModelConfig
from policies.model.rotary import rotate_halves


class Indexer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.index_n_heads
        self.head_dim = config.index_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, self.num_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.head_dim, bias=False)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6)
        self.weights_proj = nn.Linear(config.hidden_size, self.num_heads, bias=False)

    @property
    def weight_scale(self) -> float:
        return self.num_heads**-0.5 * self.head_dim**-0.5

    def forward(
        self, hidden_ND: Tensor, q_latent: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, I], keys [N, I] and head weights [N, H] with both scales in them, all float32."""
        hidden_ND, q_latent = hidden_ND.detach(), q_latent.detach()
        queries = _float32_at_least(self.wq_b(q_latent)).view(-1, self.num_heads, self.head_dim)
        queries = rotate_halves(queries, cos[:, None], sin[:, None])
        norm = self.k_norm
        keys = functional.layer_norm(
            _float32_at_least(self.wk(hidden_ND)),
            (self.head_dim,),
            _float32_at_least(norm.weight),
            _float32_at_least(norm.bias),
            norm.eps,
        )
        keys = rotate_halves(keys, cos, sin)
        # Low precision in the head weights is known to change accuracy: float32 input, float32 product.
        weights = functional.linear(_float32_at_least(hidden_ND), _float32_at_least(self.weights_proj.weight))
        return queries, keys, weights * self.weight_scale


def _float32_at_least(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def sum_heads(products: Tensor, weights: Tensor) -> Tensor:
    """Rectified products [B, Hi, ...] times weights [B, Hi, ...], summed over heads; no gradient.

    Trainer and engine add in this order, so that their scores differ by the products' rounding alone.
    """
    scores = products[:, 0] * weights[:, 0]
    for head in range(1, products.shape[1]):
        scores.addcmul_(products[:, head], weights[:, head])
    return scores


def index_scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """I [..., Q, S] from queries [..., Q, H, I], keys [..., S, I], weights [..., Q, H].

    The definition, with gradients; training and decoding compute it in blocks and are tested against this.
    """
    products = torch.einsum("...qhi,...si->...hqs", queries, keys).relu()
    return torch.einsum("...hqs,...qh->...qs", products, weights)


def indexer_loss_rows(scores_QS: Tensor, target_QS: Tensor, allowed_QS: Tensor) -> Tensor:
    """KL(target || softmax of the scores over the allowed entries) for each row, nats: the definition.

    Args:
        target_QS: the main attention's head-summed probabilities, each row summing to 1, detached.
    """
    # Mask before the softmax with a finite value: a row without entries would otherwise be NaN.
    scores_QS = scores_QS.masked_fill(~allowed_QS, torch.finfo(scores_QS.dtype).min)
    log_guess = scores_QS.log_softmax(-1)
    terms = torch.xlogy(target_QS, target_QS) - target_QS * log_guess
    return terms.masked_fill(~allowed_QS, 0.0).sum(-1)
