"""The decoder over cached latents: one flat forward for all new tokens of all running sessions.

Attention is in its absorbed form (MQA mode): the key half of `kv_b_proj` is folded into the queries and the
value half into the output, so that every head reads the same latents, and of those only the selected ones.
`fuse` computes the folded weights once per weights version. N new tokens, K experts each.

In bfloat16 the folded matrices are rounded once, as they are folded, and what is multiplied with them is
rounded to the same. Between the products all is float32: norms, rotation, softmax and what the layers add up,
and the two products where a rounding changes most, the router's and the output head's.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from policies.model.attention import Attention
from policies.model.cache import KeyCache, pair_order
from policies.model.cached_attention import NewTokens, Queries, SeenPlaces
from policies.model.config import ModelConfig, rope_theta, selection, yarn
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import MoE
from policies.model.layer import DecoderLayer
from policies.model.rotary import rotary_tables
from policies.model.swiglu import grouped_swiglu, swiglu

__all__ = ["FusedDecoder", "NewTokens"]

GATHERED_FLOATS = 4_000_000
"""Attention takes tokens in portions that gather at most so many floats at a time."""
DENSE_EXPERT_TOKENS = 256
"""Up to here all experts run as one product, zero gates dropping the unchosen; beyond, tokens are sorted."""
DENSE_EXPERT_LIMIT = 32
GATHERING = 1.5
"""What a product over gathered rows costs beside one over rows that lie together, measured
(benchmarks/context.py).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLayer:
    """One layer's folded weights; `moe` and `mlp` exclude each other."""

    into: Tensor
    """[Q + C + R + I + Hi, D]: query latent, latent, shared key, index key, index head weights."""
    into_bias: Tensor | None
    queries: Tensor
    """[H * (C + R) + Hi * I, Q]: absorbed queries and the indexer's."""
    out: Tensor
    """[D, H * C]: values' up-projection and `o_proj`."""
    out_bias: Tensor | None
    latent_norm: Tensor
    index_norm: tuple[Tensor, Tensor]
    moe: "FusedMoE | None"
    mlp: tuple[Tensor, Tensor, Tensor] | None
    """Gate, up, down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedMoE:
    """All experts and the shared one side by side, and in float32 the router behind them."""

    module: MoE
    norm: Tensor
    into: Tensor
    """[2 * (E + S) * F + E, D]: every gate, every up, the router."""
    down: Tensor
    """[D, (E + S) * F]."""
    router: Tensor | None
    """[E, D] float32, where the others are rounded; `into` then ends before it."""
    routed: tuple[Tensor, Tensor]
    """Of the many tokens that are sorted: the experts' own matrices, as `grouped_swiglu` takes them."""
    shared: tuple[Tensor, Tensor, Tensor]
    """Gate, up, down."""


class FusedDecoder:
    """The weights of one version, ready to decode with.

    dtype: of the matrices, float32 or bfloat16.
    """

    def __init__(self, model: WorldsmithForCausalLM, dtype: torch.dtype = torch.float32) -> None:
        self.config: ModelConfig = model.config
        self.how = selection(model.config)
        decoder = model.model
        with torch.no_grad():
            self.embed = decoder.embed_tokens.weight.detach().to(dtype)
            self.layers = [_fuse_layer(layer, self.config, dtype) for layer in decoder.decoder_layers()]
            self.head = model.lm_head.weight.float() * decoder.norm.weight.float()

    def forward(
        self,
        tokens: NewTokens,
        cache: KeyCache,
        last_rows: Tensor,
        record: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of the tokens at `last_rows` and the experts of all: [len(last_rows), V] and [N, L, K].

        Each layer appends the places that it attended to, [N, K] int32 with -1 for none, to `record`.
        """
        hidden_ND, routes_NLK = self.read(tokens, cache, record)
        return self.logits(hidden_ND[last_rows]), routes_NLK

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] of what `read` gave."""
        return functional.linear(_unit(hidden_ND, self.config.rms_norm_eps), self.head)

    def read(
        self, tokens: NewTokens, cache: KeyCache, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last layer's output [N, D] and the experts [N, L, K], as `forward`."""
        config = self.config
        hidden_ND = functional.embedding(tokens.ids, self.embed).float()
        turns = _turns(tokens.positions, config)
        used: list[Tensor] = []
        seen = SeenPlaces(config, self.how, cache, tokens)
        for index, layer in enumerate(self.layers):
            seen.look_at(index)
            queries = self._queries(index, _unit(hidden_ND, config.rms_norm_eps), turns, seen)
            mixed_NHC = seen.mix(queries, max(1, GATHERED_FLOATS // seen.floats_per_token), record)
            hidden_ND = _add_product(hidden_ND, mixed_NHC.flatten(1), layer.out)
            if layer.out_bias is not None:
                hidden_ND += layer.out_bias
            normed_ND = _unit(hidden_ND, config.rms_norm_eps)
            if layer.mlp is not None:
                hidden_ND = hidden_ND + _swiglu(normed_ND, layer.mlp)
            else:
                assert layer.moe is not None
                forced_NK = None if tokens.routes is None else tokens.routes[:, len(used)]
                out_ND, experts_NK = _experts(layer.moe, normed_ND, forced_NK)
                hidden_ND = hidden_ND + out_ND
                used.append(experts_NK)
        routes = torch.stack(used, 1) if used else hidden_ND.new_zeros(len(hidden_ND), 0, 1, dtype=torch.long)
        return hidden_ND, routes

    def _queries(self, index: int, x_ND: Tensor, turns: Tensor, seen: SeenPlaces) -> Queries:
        """Writes the tokens' cache rows; what they look for in the cache."""
        config, layer = self.config, self.layers[index]
        rank, rope, index_dim = config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim
        heads, index_heads = config.num_attention_heads, config.index_n_heads
        q_latent, latent, k_rope, index_k, index_w = _product(x_ND, layer.into, layer.into_bias).split(
            [config.q_lora_rank, rank, rope, index_dim, index_heads], dim=-1
        )
        latent = _unit(latent, 1e-6).mul_(layer.latent_norm)
        index_k = functional.layer_norm(index_k, (index_dim,), *layer.index_norm, 1e-6)
        index_k = _turn(index_k, turns, 0, rope)
        k_row = _turn(torch.cat((latent, k_rope), -1), turns, rank, rope)
        seen.cache.write(index, seen.rows_N, k_row, index_k)
        q_all = _product(_unit(q_latent, 1e-6), layer.queries)
        q, index_q = q_all.split([heads * (rank + rope), index_heads * index_dim], dim=-1)
        q = _turn(q.view(-1, heads, rank + rope), turns[:, None], rank, rope)
        index_q = _turn(index_q.view(-1, index_heads, index_dim), turns[:, None], 0, rope)
        return Queries(main=q, index=index_q, weights=index_w)


def gathered_prefill_from(config: ModelConfig) -> int | None:
    """The length from which a prompt is read faster over gathered latents than in masked MHA mode, if any.

    MHA mode multiplies for every earlier token, half the length on average; gathered, for k tokens, in the
    larger dimensions of the latents.
    """
    if config.token_selector == "dense":
        return None
    absorbed = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    expanded = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return round(2 * GATHERING * config.index_topk * absorbed / expanded)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """float32, of `x` rounded as the weight is."""
    if weight.dtype == torch.float32:
        return functional.linear(x, weight, bias)
    product = functional.linear(x.to(weight.dtype), weight).float()
    return product if bias is None else product.add_(bias)


def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype == torch.float32:
        return torch.addmm(total, x, weight.t())
    return total + _product(x, weight)


def _swiglu(x: Tensor, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return swiglu(x.to(weights[0].dtype), *weights).float()


def _unit(x: Tensor, eps: float) -> Tensor:
    """RMS norm whose weight was folded into the product that follows.

    Four operations, where torch's own are eleven: on a few tokens their number is what a step costs.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    return x / size.hypot_(_number(eps**0.5))


@functools.lru_cache(maxsize=8)
def _number(value: float) -> Tensor:
    return torch.tensor(value)


def _turns(positions: Tensor, config: ModelConfig) -> Tensor:
    cos, sin = rotary_tables(positions, config.qk_rope_head_dim, rope_theta(config), yarn(config))
    return torch.complex(cos, sin)


def _turn(x: Tensor, turns: Tensor, start: int, rope_dim: int) -> Tensor:
    """Rotate columns start..start + rope_dim, pairs side by side."""
    x = x.contiguous()
    torch.view_as_complex(x[..., start : start + rope_dim].unflatten(-1, (-1, 2))).mul_(turns)
    return x


def _experts(moe: FusedMoE, x_ND: Tensor, forced_NK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Routed and shared experts on normed, unweighted rows: output [N, D], experts [N, K]."""
    router, dtype = moe.module.gate, moe.into.dtype
    num_experts = len(router.weight)
    if len(x_ND) > DENSE_EXPERT_TOKENS or num_experts > DENSE_EXPERT_LIMIT:
        x_ND = x_ND * moe.norm
        gates_NK, experts_NK = router(x_ND, forced_NK)
        routed = grouped_swiglu(x_ND.to(dtype), experts_NK, gates_NK.to(dtype), *moe.routed).float()
        return routed + _swiglu(x_ND, moe.shared), experts_NK
    columns = moe.down.shape[1]
    inner = _product(x_ND, moe.into)
    scores = inner[:, 2 * columns :] if moe.router is None else functional.linear(x_ND, moe.router)
    scores = scores.sigmoid()
    experts_NK = router.choose_or_take(scores, forced_NK)
    width = moe.routed[1].shape[-1]
    gates = x_ND.new_ones(len(x_ND), columns // width)
    gates[:, :num_experts] = 0.0
    gates.scatter_(1, experts_NK, router.weigh(scores, experts_NK))
    act = functional.silu(inner[:, :columns]).mul_(inner[:, columns : 2 * columns])
    act.view(len(x_ND), -1, width).mul_(gates[..., None])
    return _product(act, moe.down), experts_NK


def _fuse_layer(layer: DecoderLayer, config: ModelConfig, dtype: torch.dtype) -> FusedLayer:
    attention = layer.self_attn
    norm = layer.input_layernorm.weight.float()
    indexer = attention.indexer
    pairs = pair_order(config.qk_rope_head_dim) + list(range(config.qk_rope_head_dim, config.index_head_dim))
    into = torch.cat(
        (
            attention.q_a_proj.weight,
            attention.kv_a_proj_with_mqa.weight,
            indexer.wk.weight[pairs],
            indexer.weights_proj.weight * indexer.weight_scale,
        )
    )
    bias = None
    if attention.q_a_proj.bias is not None:
        bias = torch.cat((attention.q_a_proj.bias, attention.kv_a_proj_with_mqa.bias)).float()
        bias = functional.pad(bias, (0, len(into) - len(bias)))
    queries, out = _absorb(attention, config)
    index_queries = (
        indexer.wq_b.weight.float().view(indexer.num_heads, indexer.head_dim, -1)[:, pairs].flatten(0, 1)
    )
    queries = torch.cat((queries, index_queries)) * attention.q_a_layernorm.weight.float()
    after = layer.post_attention_layernorm.weight.float()
    mlp = layer.mlp
    dense = None
    if not isinstance(mlp, MoE):
        gate, up = mlp.gate_proj.weight * after, mlp.up_proj.weight * after
        dense = (gate.to(dtype), up.to(dtype), mlp.down_proj.weight.to(dtype))
    return FusedLayer(
        into=(into.float() * norm).to(dtype),
        into_bias=bias,
        queries=queries.contiguous().to(dtype),
        out=out.contiguous().to(dtype),
        out_bias=attention.o_proj.bias,
        latent_norm=attention.kv_a_layernorm.weight.float(),
        index_norm=(indexer.k_norm.weight[pairs].float(), indexer.k_norm.bias[pairs].float()),
        moe=_fuse_moe(mlp, after, dtype) if isinstance(mlp, MoE) else None,
        mlp=dense,
    )


def _absorb(attention: Attention, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Queries [H * (C + R), Q] with the softmax scale in them, and the output [D, H * C]."""
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    q_b = attention.q_b_proj.weight.float().view(heads, attention.qk_head_dim, -1)
    kv_b = attention.kv_b_proj.weight.float().view(heads, nope + config.v_head_dim, -1)
    latent_queries = torch.einsum("hnc,hnq->hcq", kv_b[:, :nope], q_b[:, :nope])
    queries = torch.cat((latent_queries, q_b[:, nope:]), 1) * attention.scale
    o = attention.o_proj.weight.float().view(-1, heads, config.v_head_dim)
    return queries.flatten(0, 1), torch.einsum("dhv,hvc->dhc", o, kv_b[:, nope:]).flatten(1)


def _fuse_moe(moe: MoE, norm: Tensor, dtype: torch.dtype) -> FusedMoE:
    gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
    shared = moe.shared_experts
    parts = [gate.flatten(0, 1), shared.gate_proj.weight, up.flatten(0, 1), shared.up_proj.weight]
    apart = dtype != torch.float32
    into = torch.cat(parts if apart else [*parts, moe.gate.weight])
    down = torch.cat((moe.experts.down_proj.transpose(0, 1).flatten(1), shared.down_proj.weight), dim=1)
    return FusedMoE(
        module=moe,
        norm=norm,
        into=(into.float() * norm).to(dtype),
        down=down.contiguous().to(dtype),
        router=moe.gate.weight.float() * norm if apart else None,
        routed=(moe.experts.gate_up_proj.to(dtype), moe.experts.down_proj.to(dtype)),
        shared=(
            shared.gate_proj.weight.to(dtype),
            shared.up_proj.weight.to(dtype),
            shared.down_proj.weight.to(dtype),
        ),
    )
