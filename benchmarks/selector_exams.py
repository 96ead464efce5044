"""What a trained model can do: held-out rows, and how much of its attention its selector leaves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.selector_tasks import Exam, Task
from policies.model.config import ModelConfig
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.selectors import NEVER, SELECTORS, Selection, Selector, View, select_topk

REACHES = (0, 64, 256, 1024, 2048, 4096, 8192)
"""Targets are told apart by how far they reach back, between two of these."""


@contextmanager
def watched(name: str, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While it lasts, the selector adds to `found`, block by block, the places [R] of the queries that had to
    choose and the share [rows, R] of dense attention on what they chose.
    """
    selector = SELECTORS[name]
    if selector is None:
        yield
        return
    SELECTORS[name] = _watching(selector, found)
    try:
        yield
    finally:
        SELECTORS[name] = selector


def _watching(selector: Selector, found: list[tuple[Tensor, Tensor]]) -> Selector:
    def choose(view: View, how: Selection) -> Tensor:
        scores = selector(view, how)
        earlier = scores.masked_fill(view.key_pos > view.query_pos, NEVER)
        mass = view.attention_mass()
        share = (mass * select_topk(earlier, how.top_k)).sum(-1) / mass.sum(-1)
        places = view.query_pos.flatten()
        had_to = places >= how.top_k
        found.append((places[had_to], share[..., had_to]))
        return scores

    return choose


@torch.no_grad()
def sit(model: WorldsmithForCausalLM, exam: Exam) -> dict[str, Any]:
    """One row: per range of REACHES the targets, how many were right, the sum of their losses (nats); the
    share of attention on the chosen places, of all queries that had to choose and of those before a target.
    """
    ids = exam.batch.input_ids_BT
    found: list[tuple[Tensor, Tensor]] = []
    with watched(model.config.token_selector, found):
        logps = model(ids, logits_to_keep=exam.columns_N).logits[0].float().log_softmax(-1)
    targets = ids[0, exam.columns_N + 1]
    right = logps.argmax(-1) == targets
    losses = -logps.gather(1, targets[:, None]).squeeze(1)
    ranges = torch.bucketize(exam.reach_N, torch.tensor(REACHES[1:]))
    counts = [
        [int(here.sum()), int(right[here].sum()), float(losses[here].sum())]
        for here in (ranges == number for number in range(len(REACHES)))
    ]
    if not found:
        return {"counts": counts, "recall": [1.0, 1.0]}
    places, shares = torch.cat([p for p, _ in found]), torch.cat([s.flatten() for _, s in found])
    asked = torch.isin(places, exam.columns_N)
    return {"counts": counts, "recall": [shares.mean().item(), shares[asked].mean().item()]}


def examine(
    model: WorldsmithForCausalLM, task: Task, exams: tuple[tuple[int, int], ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Length and result of each exam's row."""
    model.eval()
    for length, rows in exams:
        for number in range(rows):
            yield length, sit(model, task.exam(length, number))


def sum_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One length's rows together."""
    counts = np.sum([row["counts"] for row in rows], axis=0)
    targets, right, loss = counts.sum(0).tolist()
    return {
        "targets": int(targets),
        "accuracy": right / targets,
        "loss": loss / targets,
        "recall": float(np.mean([row["recall"][0] for row in rows])),
        "recall_at_targets": float(np.mean([row["recall"][1] for row in rows])),
        "by_reach": {
            str(reach): {"targets": int(n), "accuracy": ok / n, "loss": nats / n}
            for reach, (n, ok, nats) in zip(REACHES, counts.tolist(), strict=True)
            if n
        },
    }


def macs(config: ModelConfig, length: int) -> int:
    """Multiply-adds of attention and choice in a layer, for one token decoded after `length` others."""
    latent, heads = config.kv_lora_rank, config.num_attention_heads
    keys = heads * (latent + config.qk_rope_head_dim)
    pair = keys + heads * latent
    index = config.index_n_heads * config.index_head_dim
    kept = min(length, config.index_topk) * pair
    candidates = config.lsh_candidates or 4 * config.index_topk
    hashing = (config.index_n_heads + 1) * config.index_head_dim * config.lsh_tables * config.lsh_bits
    return {
        "dense": length * pair,
        "lightning": kept + length * index,
        "lsh": kept + hashing + min(length, candidates) * index,
        "oracle": length * keys + kept,
        "window": kept,
        "random": kept,
    }[config.token_selector]
