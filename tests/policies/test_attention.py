"""The block form of attention and the indexer's loss against their plain definitions, gradients included."""

import pytest
import torch
from torch import Tensor

from policies.model import blockwise
from policies.model.attention import Attention, LayerInputs
from policies.model.blockwise import AttentionPlan, IndexParts, block_attention
from policies.model.config import tiny_config
from policies.model.head_rows import HeadShape, head_rows
from policies.model.indexer import index_scores, indexer_loss_rows
from policies.model.packing import PackedBatch, pack
from policies.model.rotary import rotary_tables, rotate_neighbours
from policies.model.selectors import NEVER, SELECTORS, Selection, select_topk

B, H, T, D, V, INDEX_HEADS, INDEX_DIM = 3, 2, 13, 6, 4, 2, 5


def make_leaves(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (B, H, T, D),
        (B, H, T, D),
        (B, H, T, V),
        (B, INDEX_HEADS, T, INDEX_DIM),
        (B, T, INDEX_DIM),
        (B, INDEX_HEADS, T, 1),
    ]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def index_parts(leaves: list[Tensor]) -> IndexParts:
    return IndexParts(queries=leaves[3], keys=leaves[4], weights=leaves[5])


def plain_attention(leaves: list[Tensor], plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    q, k, v, index_q, index_k, index_w = leaves
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    scores = index_scores(index_q.transpose(1, 2), index_k, index_w.squeeze(-1).transpose(1, 2))
    allowed = causal.expand(B, T, T)
    if plan.selection.selector is not None:
        allowed = select_topk(scores.detach().masked_fill(~causal, NEVER), plan.selection.top_k)
    logits = q @ k.transpose(2, 3) * plan.scale
    probs = logits.masked_fill(~allowed[:, None], NEVER).softmax(-1)
    loss = q.new_zeros(())
    if plan.indexer_loss != "none":
        if plan.indexer_loss == "dense":
            allowed = causal.expand(B, T, T)
        target = logits.masked_fill(~allowed[:, None], NEVER).softmax(-1).detach().mean(1)
        assert plan.row_weights is not None
        loss = (indexer_loss_rows(scores, target, allowed) * plan.row_weights).sum()
    return probs @ v, loss


@pytest.mark.parametrize("mode", ["none", "sparse", "dense"])
@pytest.mark.parametrize("top_k", [None, 1, 4, 20])
@pytest.mark.parametrize("kept_floats", [0, 1 << 20])
def test_blocks_equal_the_plain_definition(
    mode: str, top_k: int | None, kept_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_ROWS", 4)  # 13 rows: three blocks and a rest
    monkeypatch.setattr(blockwise, "BLOCK_FLOATS", 2 * H * 4 * T)  # 3 sequences: two, then one
    monkeypatch.setattr(blockwise, "KEPT_FLOATS", kept_floats)
    row_weights = torch.rand(B, T, dtype=torch.float64)
    row_weights[1, 9:] = 0.0  # padding
    how = Selection(selector=None if top_k is None else SELECTORS["lightning"], top_k=top_k or 0)
    plan = AttentionPlan(scale=0.4, selection=how, indexer_loss=mode, row_weights=row_weights)
    leaves = make_leaves(0)
    upstream = torch.randn(B, H, T, V, dtype=torch.float64)
    results = []
    for run in (
        lambda: block_attention(leaves[0], leaves[1], leaves[2], index_parts(leaves), plan),
        lambda: plain_attention(leaves, plan),
    ):
        mixed, loss = run()[:2]
        total = (mixed * upstream).sum() + 3.0 * loss
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        results.append([mixed, loss, *(torch.zeros(1) if g is None else g for g in grads)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)


def plain_heads(q: Tensor, kv: Tensor, k_rope: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, 4, T, ...] by slices and concatenations; keys 32 + 16, values 48."""
    cos, sin = rotary_tables(torch.arange(batch.length), 16, 100.0)
    q, kv = (batch.to_rows(x).unflatten(-1, (4, -1)).transpose(1, 2) for x in (q, kv))
    k_rope = rotate_neighbours(batch.to_rows(k_rope), cos, sin)[:, None].expand(-1, 4, -1, -1)
    queries = torch.cat((q[..., :32], rotate_neighbours(q[..., 32:], cos, sin)), -1)
    return queries, torch.cat((kv[..., :32], k_rope), -1), kv[..., 32:]


@pytest.mark.parametrize("lengths", [[8, 8], [3, 8]])
def test_rows_of_heads_and_their_gradients_are_those_of_plain_autograd_in_float64(lengths: list[int]) -> None:
    torch.manual_seed(0)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    batch = pack(2, 8, mask, mask.device)
    cos, sin = rotary_tables(torch.arange(8), 16, 100.0)
    leaves = [
        torch.randn(sum(lengths), width, dtype=torch.float64, requires_grad=True) for width in (192, 320, 16)
    ]
    shape = HeadShape(num_heads=4, nope=32, rope=16, value=48)
    ours = head_rows(leaves[0], leaves[1], leaves[2], shape, batch, torch.complex(cos, sin))
    theirs = plain_heads(leaves[0], leaves[1], leaves[2], batch)
    # Padding receives no gradient: no real token reads it.
    weights = [torch.randn_like(x) * mask[:, None, :, None] for x in theirs]
    grads = [
        torch.autograd.grad([(x * w).sum() for x, w in zip(heads, weights, strict=True)], leaves)
        for heads in (ours, theirs)
    ]
    for got, wanted in zip((*ours, *grads[0]), (*theirs, *grads[1]), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_every_parameter_of_an_indexer_learns_as_plain_autograd_has_it_in_float64(mode: str) -> None:
    torch.manual_seed(0)
    config = tiny_config(32, index_topk=3, hidden_size=24, index_n_heads=3)
    attention = Attention(config).double()
    for parameter in attention.parameters():
        parameter.data.normal_(std=0.3)
    # 16 tokens: the rows' weight, 1 / 16, is a float32 without rounding.
    hidden_ND = torch.randn(16, 24, dtype=torch.float64)
    batch = pack(2, 8, None, hidden_ND.device)
    row_cos, row_sin = rotary_tables(torch.arange(8), 16, 100.0)
    cos, sin = row_cos[batch.positions], row_sin[batch.positions]
    turns = torch.complex(row_cos, row_sin)
    inputs = LayerInputs(batch=batch, cos=cos, sin=sin, row_turns=turns, indexer_loss=mode)
    _, loss, _ = attention(hidden_ND, inputs)
    assert loss is not None
    ours = torch.autograd.grad(loss, list(attention.indexer.parameters()))

    q_latent = attention.q_a_layernorm(attention.q_a_proj(hidden_ND))
    scores = index_scores(*(x.unflatten(0, (2, 8)) for x in attention.indexer(hidden_ND, q_latent, cos, sin)))
    causal = torch.ones(8, 8, dtype=torch.bool).tril().expand(2, 8, 8)
    allowed = causal if mode == "dense" else select_topk(scores.detach().masked_fill(~causal, NEVER), 3)
    latent, k_rope = attention.kv_a_proj_with_mqa(hidden_ND).split([64, 16], dim=-1)
    queries, keys, _ = plain_heads(
        attention.q_b_proj(q_latent), attention.kv_b_proj(attention.kv_a_layernorm(latent)), k_rope, batch
    )
    logits = (queries @ keys.transpose(2, 3)) * 48**-0.5
    target = logits.masked_fill(~allowed[:, None], NEVER).softmax(-1).mean(1).detach()
    expected = indexer_loss_rows(scores, target, allowed).mean()
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        ours, torch.autograd.grad(expected, list(attention.indexer.parameters())), strict=True
    ):
        assert wanted.abs().max() > 0
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_a_loss_on_its_own_gives_the_main_path_no_gradient() -> None:
    leaves = make_leaves(1)
    plan = AttentionPlan(
        scale=0.4,
        selection=Selection(selector=SELECTORS["lightning"], top_k=4),
        indexer_loss="sparse",
        row_weights=torch.ones(B, T, dtype=torch.float64),
    )
    _, loss, _ = block_attention(leaves[0], leaves[1], leaves[2], index_parts(leaves), plan)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert [g is None for g in grads] == [True] * 3 + [False] * 3
