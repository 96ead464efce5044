"""The block form of attention and the indexer's loss against their plain definitions, gradients included."""

import pytest
import torch
from torch import Tensor

from policies.model import blockwise
from policies.model.blockwise import AttentionPlan, IndexParts, block_attention
from policies.model.indexer import index_scores, indexer_loss_rows
from policies.model.selectors import NEVER, select_topk

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
    if plan.top_k is not None:
        allowed = select_topk(scores.detach().masked_fill(~causal, NEVER), plan.top_k)
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
    plan = AttentionPlan(scale=0.4, top_k=top_k, indexer_loss=mode, row_weights=row_weights)
    leaves = make_leaves(0)
    upstream = torch.randn(B, H, T, V, dtype=torch.float64)
    results = []
    for run in (
        lambda: block_attention(leaves[0], leaves[1], leaves[2], index_parts(leaves), plan),
        lambda: plain_attention(leaves, plan),
    ):
        mixed, loss = run()
        total = (mixed * upstream).sum() + 3.0 * loss
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        results.append([mixed, loss, *(torch.zeros(1) if g is None else g for g in grads)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs.to(ours.dtype), atol=1e-9)


def test_a_loss_on_its_own_gives_the_main_path_no_gradient() -> None:
    leaves = make_leaves(1)
    plan = AttentionPlan(
        scale=0.4, top_k=4, indexer_loss="sparse", row_weights=torch.ones(B, T, dtype=torch.float64)
    )
    _, loss = block_attention(leaves[0], leaves[1], leaves[2], index_parts(leaves), plan)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert [g is None for g in grads] == [True] * 3 + [False] * 3
