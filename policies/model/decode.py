"""The decoder over cached latents: one flat forward for all new tokens of all running sessions.

Attention is in its absorbed form (MQA mode): the key half of `kv_b_proj` is folded into the queries and the
value half into the output, so that every head reads the same latents, and of those only the selected ones.
`FusedDecoder` computes the folded weights once per weights version. N new tokens, K experts each.

A 16-bit model's products are taken in its own precision; the residual stream, norms, softmax, rotations, the
router, the shared rotary key, the indexer's head weights and scores, and the output head are float32, as in
the trainer's forward.
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
    """[Q + C + I + R + Hi, D]: query latent, latent, index key, shared rotary key, index head weights."""
    into_bias: Tensor | None
    exact: Tensor | None
    """[R + Hi, D] float32 in place of the last rows of `into`, where that has fewer bits."""
    exact_bias: Tensor | None
    queries: Tensor
    """[H * (C + R) + Hi * I, Q]: absorbed queries and the indexer's."""
    out: Tensor
    """[D, H * C]: values' up-projection and `o_proj`."""
    out_bias: Tensor | None
    latent_norm: Tensor
    index_norm: tuple[Tensor, Tensor]
    moe: "FusedMoE | None"
    mlp: tuple[Tensor, Tensor, Tensor] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedMoE:
    """All experts and the shared one side by side, and the router behind them."""

    module: MoE
    norm: Tensor
    into: Tensor
    """[2 * (E + S) * F + E, D]: every gate, every up, the router."""
    router: Tensor | None
    """[E, D] float32 in place of the last rows of `into`, where that has fewer bits."""
    down: Tensor
    """[D, (E + S) * F]."""
    routed: tuple[Tensor, Tensor]
    """Gates with ups, and downs, of the routed experts apart, for many tokens."""
    shared: tuple[Tensor, Tensor, Tensor]


class FusedDecoder:
    """The weights of one version, ready to decode with.

    dtype: what the matrices are rounded to and the latents kept in, float32, bfloat16 or float16; None: what
    the model has.
    """

    def __init__(self, model: WorldsmithForCausalLM, dtype: torch.dtype | None = None) -> None:
        self.config: ModelConfig = model.config
        self.how = selection(model.config)
        decoder = model.model
        self.dtype = dtype or _product_dtype(model.lm_head.weight)
        """Of products and of cached latents."""
        with torch.no_grad():
            self.embed = decoder.embed_tokens.weight.detach().to(self.dtype)
            self.layers = [_fuse_layer(layer, self.config, self.dtype) for layer in decoder.decoder_layers()]
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
            hidden_ND = _add_linear(hidden_ND, mixed_NHC.flatten(1), layer.out)
            if layer.out_bias is not None:
                hidden_ND += layer.out_bias
            normed_ND = _unit(hidden_ND, config.rms_norm_eps)
            if layer.mlp is not None:
                hidden_ND = hidden_ND + swiglu(normed_ND.to(layer.mlp[0].dtype), *layer.mlp)
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
        sizes = [config.q_lora_rank, rank, index_dim, rope, index_heads]
        out_NF = _linear(x_ND, layer.into, layer.into_bias)
        if layer.exact is None:
            q_latent, latent, index_k, k_rope, index_w = out_NF.split(sizes, -1)
        else:
            q_latent, latent, index_k = out_NF.split(sizes[:3], -1)
            k_rope, index_w = functional.linear(x_ND, layer.exact, layer.exact_bias).split(sizes[3:], -1)
        latent = _unit(latent, 1e-6).mul_(layer.latent_norm)
        index_k = functional.layer_norm(index_k, (index_dim,), *layer.index_norm, 1e-6)
        index_k = _turn(index_k, turns, 0, rope)
        k_row = _turn(torch.cat((latent, k_rope), -1), turns, rank, rope)
        seen.cache.write(index, seen.rows_N, k_row, index_k)
        q_all = _linear(_unit(q_latent, 1e-6), layer.queries)
        q, index_q = q_all.split([heads * (rank + rope), index_heads * index_dim], dim=-1)
        q = _turn(q.view(-1, heads, rank + rope), turns[:, None], rank, rope)
        if seen.latents.shape[-1] > rank + rope:  # both parts of the rotary key
            q = torch.cat((q, q[..., rank:]), -1)
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


def _linear(x_ND: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In the weight's precision; bias and result are float32."""
    if weight.dtype == x_ND.dtype:
        return functional.linear(x_ND, weight, bias)
    out = functional.linear(x_ND.to(weight.dtype), weight).float()
    return out if bias is None else out.add_(bias)


def _add_linear(total_ND: Tensor, x_NF: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype == x_NF.dtype:
        return torch.addmm(total_ND, x_NF, weight.t())
    return _linear(x_NF, weight).add_(total_ND)


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
    router = moe.module.gate
    num_experts = len(router.weight)
    if len(x_ND) > DENSE_EXPERT_TOKENS or num_experts > DENSE_EXPERT_LIMIT:
        x_ND = x_ND * moe.norm
        gates_NK, experts_NK = router(x_ND, forced_NK)
        x_ND = x_ND.to(moe.into.dtype)
        routed = grouped_swiglu(x_ND, experts_NK, gates_NK, *moe.routed)
        return routed + swiglu(x_ND, *moe.shared), experts_NK
    columns = moe.down.shape[1]
    inner = _linear(x_ND, moe.into)
    logits = inner[:, 2 * columns :] if moe.router is None else functional.linear(x_ND, moe.router)
    scores = logits.sigmoid()
    experts_NK = router.choose_or_take(scores, forced_NK)
    width = moe.routed[1].shape[-1]
    gates = x_ND.new_ones(len(x_ND), columns // width)
    gates[:, :num_experts] = 0.0
    gates.scatter_(1, experts_NK, router.weigh(scores, experts_NK))
    act = functional.silu(inner[:, :columns]).mul_(inner[:, columns : 2 * columns])
    act.view(len(x_ND), -1, width).mul_(gates[..., None])
    return _linear(act, moe.down), experts_NK


def _fuse_layer(layer: DecoderLayer, config: ModelConfig, dtype: torch.dtype) -> FusedLayer:
    attention = layer.self_attn
    norm = layer.input_layernorm.weight.float()
    indexer = attention.indexer
    pairs = pair_order(config.qk_rope_head_dim) + list(range(config.qk_rope_head_dim, config.index_head_dim))
    into, bias = _inputs(attention, pairs, config)
    num_exact = config.qk_rope_head_dim + indexer.num_heads if dtype != torch.float32 else 0
    rounded, exact = into.mul_(norm).split([len(into) - num_exact, num_exact])
    rounded_bias, exact_bias = (None, None) if bias is None else bias.split([len(rounded), num_exact])
    queries, out = _absorb(attention, config)
    index_queries = (
        indexer.wq_b.weight.float().view(indexer.num_heads, indexer.head_dim, -1)[:, pairs].flatten(0, 1)
    )
    queries = torch.cat((queries, index_queries)) * attention.q_a_layernorm.weight.float()
    after = layer.post_attention_layernorm.weight.float()
    mlp = layer.mlp
    dense = None
    if not isinstance(mlp, MoE):
        gate, up = ((part.weight.float() * after).to(dtype) for part in (mlp.gate_proj, mlp.up_proj))
        dense = (gate, up, mlp.down_proj.weight.to(dtype))
    return FusedLayer(
        into=rounded.to(dtype),
        into_bias=rounded_bias,
        exact=exact.clone() if num_exact else None,
        exact_bias=exact_bias if num_exact else None,
        queries=queries.contiguous().to(dtype),
        out=out.contiguous().to(dtype),
        out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.float(),
        latent_norm=attention.kv_a_layernorm.weight.float(),
        index_norm=(indexer.k_norm.weight[pairs].float(), indexer.k_norm.bias[pairs].float()),
        moe=_fuse_moe(mlp, after, dtype) if isinstance(mlp, MoE) else None,
        mlp=dense,
    )


def _inputs(attention: Attention, pairs: list[int], config: ModelConfig) -> tuple[Tensor, Tensor | None]:
    """Weights [Q + C + I + R + Hi, D] and biases of all that attention makes of a layer's normed input."""
    indexer, kv_a, rank = attention.indexer, attention.kv_a_proj_with_mqa, config.kv_lora_rank
    weights = [
        attention.q_a_proj.weight,
        kv_a.weight[:rank],
        indexer.wk.weight[pairs],
        kv_a.weight[rank:],
        indexer.weights_proj.weight.float() * indexer.weight_scale,
    ]
    stacked = torch.cat([weight.float() for weight in weights])
    if attention.q_a_proj.bias is None:
        return stacked, None
    biases = [attention.q_a_proj.bias, kv_a.bias[:rank], stacked.new_zeros(len(pairs)), kv_a.bias[rank:]]
    stacked_bias = torch.cat([bias.float() for bias in biases])
    return stacked, functional.pad(stacked_bias, (0, indexer.num_heads))


def _product_dtype(weight: Tensor) -> torch.dtype:
    """What a model's products are taken in: its own 16 bits, otherwise float32."""
    return weight.dtype if weight.dtype in (torch.bfloat16, torch.float16) else torch.float32


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
    router = moe.gate.weight.float()
    apart = dtype != torch.float32
    into = torch.cat([part.float() for part in parts] + ([] if apart else [router])) * norm
    down = torch.cat((moe.experts.down_proj.transpose(0, 1).flatten(1), shared.down_proj.weight), dim=1)
    return FusedMoE(
        module=moe,
        norm=norm,
        into=into.to(dtype),
        router=router * norm if apart else None,
        down=down.to(dtype).contiguous(),
        routed=(moe.experts.gate_up_proj.to(dtype), moe.experts.down_proj.to(dtype)),
        shared=(
            shared.gate_proj.weight.to(dtype),
            shared.up_proj.weight.to(dtype),
            shared.down_proj.weight.to(dtype),
        ),
    )
