"""A batch of trajectories scored again: what any weights make of the tokens that were sampled, held to any of
the choices that the rollouts recorded.

For `worldsmith explain` and for the ablation of the stabilisers; the learner does the same in TRL's columns.
Shape suffixes: B trajectories, T columns of what follows the prompts, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.model.decoder import WorldsmithForCausalLM
from policies.replay import restrict_logits
from rl.recorded import Keep, Recorded, recorded
from rl.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Trajectories side by side: prompts end, and what follows begins, at one column.

    ids, mask: [B, P + T] int64, 0 for padding. sampled_BT: True where the policy wrote the token.
    told_BT: float32 nats, as the replica gave them; 0 elsewhere.
    """

    ids: Tensor
    mask: Tensor
    sampled_BT: Tensor
    told_BT: Tensor
    records: Recorded


def lay_out(trajectories: Sequence[Trajectory]) -> Rows:
    prompt = max(t.num_prompt_tokens for t in trajectories)
    rest = max(len(t.token_ids) - t.num_prompt_tokens for t in trajectories)
    ids = torch.zeros(len(trajectories), prompt + rest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    sampled = torch.zeros_like(ids, dtype=torch.bool)
    told = torch.zeros(ids.shape)
    for row, trajectory in enumerate(trajectories):
        start = prompt - trajectory.num_prompt_tokens
        place = slice(start, start + len(trajectory.token_ids))
        ids[row, place] = torch.tensor(trajectory.token_ids)
        mask[row, place] = 1
        sampled[row, place] = torch.tensor(trajectory.sampled)
        told[row, place] = torch.tensor(trajectory.logps)
    return Rows(
        ids=ids,
        mask=mask,
        sampled_BT=sampled[:, prompt:],
        told_BT=told[:, prompt:],
        records=recorded(trajectories, prompt, rest, Keep()),
    )


def held_to(records: Recorded, keep: Keep) -> Recorded:
    """Those of the records that a learner is to be held to."""
    return Recorded(
        routes=records.routes if keep.routing else None,
        selected=records.selected if keep.selection else None,
        kept=records.kept if keep.sampling_mask else None,
    )


def score(model: WorldsmithForCausalLM, rows: Rows, held: Recorded, *, temperature: float) -> Tensor:
    """[B, T] float32 nats: the log-probability of each sampled token, 0 elsewhere; with gradient."""
    all_logps = score_all(model, rows, held, temperature=temperature)
    targets = rows.ids[:, -all_logps.shape[1] :, None]
    return all_logps.gather(-1, targets).squeeze(-1).masked_fill(~rows.sampled_BT, 0.0)


def score_all(model: WorldsmithForCausalLM, rows: Rows, held: Recorded, *, temperature: float) -> Tensor:
    """[B, T, V]: of every id at each column; -inf for one that was cut off where the mask is kept."""
    count = rows.sampled_BT.shape[1]
    output = model(
        input_ids=rows.ids,
        attention_mask=rows.mask,
        routes=held.routes,
        selected=held.selected,
        logits_to_keep=count + 1,
    )
    logits = output.logits[:, :-1].float() / temperature
    if held.kept is not None:
        logits = restrict_logits(logits, held.kept[:, -count:])
    return logits.log_softmax(-1)
