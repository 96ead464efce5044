"""Cold start: next-token training on demonstrations; sparse attention comes in as it did in DeepSeek-V3.2.

Three phases (arXiv 2512.02556, section 2.1.1, in small): dense attention on clean demonstrations; dense
attention while the indexer warms up on what that attention looks at; sparse attention, the indexer going on
by its KL over what it selects. The model learns by its own loss alone, the indexer by the KL alone.
Demonstrations of mixed quality come last, so that right and wrong behaviour both have probability when
reinforcement learning begins.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import update_correction_bias
from rl.transcript import Transcript

CONTEXT_LOSS_WEIGHT = 0.1
"""Weight of the tokens that the policy only reads: a little of it teaches copying sooner."""
WORDS_RATE = 3.0
"""Embeddings and output head learn at this multiple of AdamW's rate: each of their rows sees few tokens."""
BALANCE_STEP = 0.001
"""How far a router's correction bias moves in a step (DeepSeek-V3's gamma)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of the cold start. steps: of the whole; selector: what attention reads."""

    demonstrations: str
    steps: range
    selector: str
    indexer_every: int


def phases(*, clean: int, warm_up: int, sparse: int, indexer_every: int) -> list[Phase]:
    """The phases, by their numbers of steps."""
    ends = [clean, clean + warm_up, clean + warm_up + sparse]
    starts = [0, *ends[:-1]]
    kinds = [
        ("clean", "dense", 0),
        ("mixed", "dense", 1),
        ("mixed", "lightning", indexer_every),
    ]
    return [
        Phase(demonstrations=name, steps=range(start, end), selector=selector, indexer_every=every)
        for (name, selector, every), start, end in zip(kinds, starts, ends, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Right-padded rows; weight_BT is what each next token counts."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    weight_BT: Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask_BT.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    step: int
    loss: float
    indexer_loss: float
    """NaN in a step in which the indexer did not learn."""
    num_tokens: int


def make_batch(transcripts: Sequence[Transcript], pad_id: int) -> Batch:
    length = max(len(t.token_ids) for t in transcripts)
    ids = torch.full((len(transcripts), length), pad_id)
    mask = torch.zeros(len(transcripts), length, dtype=torch.long)
    weight = torch.zeros(len(transcripts), length)
    for row, transcript in enumerate(transcripts):
        size = len(transcript.token_ids)
        ids[row, :size] = torch.tensor(transcript.token_ids)
        mask[row, :size] = 1
        weight[row, :size] = torch.where(torch.tensor(transcript.written), 1.0, CONTEXT_LOSS_WEIGHT)
    return Batch(input_ids_BT=ids, attention_mask_BT=mask, weight_BT=weight)


def next_tokens(batch: Batch) -> Tensor:
    """[B, T]: at each place the token after it, -1 where that one counts nothing."""
    targets = batch.input_ids_BT.masked_fill((batch.weight_BT <= 0) | (batch.attention_mask_BT == 0), -1)
    return torch.nn.functional.pad(targets[:, 1:], (0, 1), value=-1)


def weighted_loss(logps_BT: Tensor, batch: Batch) -> Tensor:
    """Mean negative log-probability (nats) by weight, of the tokens that `next_tokens` names."""
    weight = batch.weight_BT[:, 1:] * batch.attention_mask_BT[:, 1:]
    return -(logps_BT[:, :-1] * weight).sum() / weight.sum()


def batches(
    transcripts: Sequence[Transcript],
    *,
    tokens_per_batch: int,
    pad_id: int,
    rng: random.Random,
    skip: int = 0,
) -> Iterator[Batch]:
    """Endless shuffled passes over the transcripts, in batches of at most so many tokens, from the `skip`th
    on. What is left of a pass for less than a batch waits for other passes, but for a pass that is no more.
    """
    if not transcripts:
        raise ValueError("there are no demonstrations to train on; make some with synth --demonstrations")
    order = list(range(len(transcripts)))
    while True:
        rng.shuffle(order)
        for rows in _full_batches([transcripts[index] for index in order], tokens_per_batch):
            if skip > 0:
                skip -= 1
            else:
                yield make_batch(rows, pad_id)


def _full_batches(transcripts: Sequence[Transcript], tokens_per_batch: int) -> Iterator[list[Transcript]]:
    rows: list[Transcript] = []
    size, full = 0, 0
    for transcript in transcripts:
        length = len(transcript.token_ids)
        if rows and size + length > tokens_per_batch:
            yield rows
            rows, size, full = [], 0, full + 1
        rows.append(transcript)
        size += length
    if not full:
        yield rows


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 %, then a linear fall to a tenth of the peak."""
    warm = max(1, num_steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1.0 - 0.9 * (step - warm) / max(1, num_steps - warm))


def train_on(
    model: WorldsmithForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    source: Iterator[Batch],
    *,
    steps: range,
    scale: Callable[[int], float],
    indexer_every: int,
) -> Iterator[StepMetrics]:
    """One step of every optimizer a batch; yields after each.

    scale: what each optimizer's peak rate (its groups' `initial_lr`) is multiplied by, but for `constant`
    groups.
    indexer_every: the indexer learns in one step of so many; 0: never.
    """
    model.train()
    parts = _separately_clipped(model)
    for step in steps:
        batch = next(source)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1.0 if group.get("constant") else scale(step))
        with_indexer = indexer_every > 0 and step % indexer_every == 0
        output = model(
            batch.input_ids_BT,
            batch.attention_mask_BT,
            targets=next_tokens(batch),
            indexer_loss="sparse" if with_indexer else "none",
        )
        loss = weighted_loss(output.target_logps, batch)
        total, indexer_loss = loss, float("nan")
        if with_indexer:
            total = loss + indexer_every * output.indexer_loss
            indexer_loss = output.indexer_loss.item()
        total.backward()
        for parameters in parts:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_correction_bias(model, BALANCE_STEP)
        yield StepMetrics(step=step, loss=loss.item(), indexer_loss=indexer_loss, num_tokens=batch.num_tokens)


def _separately_clipped(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """All but the indexers, and the indexers: two losses, of which neither shrinks the other's steps."""
    named = list(model.named_parameters())
    return (
        [parameter for name, parameter in named if ".indexer." not in name],
        [parameter for name, parameter in named if ".indexer." in name],
    )


def make_optimizers(
    model: WorldsmithForCausalLM,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    indexer_learning_rate: float,
) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982) on the layers' matrices, AdamW on all else; muon_learning_rate 0: AdamW alone.

    Embeddings and head take `WORDS_RATE` times AdamW's rate. The indexer has an AdamW of its own at a
    constant rate: its lessons are few and come when the others' rates have nearly fallen to their end.

    What it gained over AdamW alone is in docs/benchmarks.md.
    """
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and ".layers." in name
        and ".indexer." not in name
        and ".gate.weight" not in name
    ]
    if muon_learning_rate == 0:
        matrices = []
    words = [
        parameter
        for name, parameter in model.named_parameters()
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    ]
    indexer = [parameter for name, parameter in model.named_parameters() if ".indexer." in name]
    chosen = {id(parameter) for parameter in [*matrices, *words, *indexer]}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [{"params": others}, {"params": words, "lr": learning_rate * WORDS_RATE}]
    lessons = [{"params": indexer, "constant": True}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        torch.optim.AdamW(lessons, lr=indexer_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=muon_learning_rate,
                momentum=0.95,
                weight_decay=0.0,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def make_rl_optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
