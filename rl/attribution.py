"""Why a learner's log-probabilities differ from those that a replica gave as it sampled, cause by cause.

A run keeps the token-level records of some episodes that were played with the weights of a checkpoint
(`keep_for_attribution`). They are scored again under each combination of four switches: the experts, the
positions and the sampling mask as recorded or as the scoring model chooses, the weights as they were or newer
ones. With all four as they were what is left is numerics. The rest is shared out by Shapley's rule: a cause
counts what switching it on adds, on average over all orders in which the four can be switched on; so the
parts add up to the whole. A part may be negative: two causes can undo each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import factorial
from pathlib import Path

import torch
from torch import Tensor

from envs.files import write_whole
from policies.model.decoder import WorldsmithForCausalLM
from rl.checkpoints import checkpoint_steps
from rl.recorded import Keep
from rl.rescoring import Rows, held_to, lay_out, score
from rl.stored import pack, unpack
from rl.trajectory import Trajectory

CAUSES = ("staleness", "routing", "selection", "sampling mask")
MOST = 32
"""Trajectories that are kept of a version."""
ROWS = 16
"""Trajectories that are scored at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """Nats, means over the tokens that the policy sampled.

    parts: each cause's, which with `numerics` make up `total`. alone: with that one cause switched on.
    ratio_mean: of pi_learner / pi_replica, with all switched on; ess: effective sample size as a share of
    tokens, of the same ratios.
    """

    numerics: float
    parts: dict[str, float]
    alone: dict[str, float]
    total: float
    ratio_mean: float
    ess: float
    tokens: int
    trajectories: int


def kept_file(out: Path, version: int) -> Path:
    return out / "trajectories" / "tokens" / f"version-{version}.safetensors"


def keep_for_attribution(out: Path, batch: Sequence[Trajectory], version: int) -> None:
    """Keeps some of the batch that were sampled by this version alone, and drops what has no checkpoint."""
    chosen = [t for t in batch if t.num_sampled and _sampled_by(t) == {version}][:MOST]
    if not chosen:
        return
    write_whole(kept_file(out, version), pack(chosen))
    known = {0, version, *checkpoint_steps(out / "checkpoints")}
    for path in kept_file(out, version).parent.glob("version-*.safetensors"):
        if int(path.stem.removeprefix("version-")) not in known:
            path.unlink()


def kept_versions(out: Path) -> list[int]:
    paths = kept_file(out, 0).parent.glob("version-*.safetensors")
    return sorted(int(path.stem.removeprefix("version-")) for path in paths)


def read_kept(out: Path, version: int) -> list[Trajectory]:
    path = kept_file(out, version)
    return unpack(path.read_bytes(), where=str(path))


def attribute(
    trajectories: Sequence[Trajectory],
    then: WorldsmithForCausalLM,
    now: WorldsmithForCausalLM,
    *,
    temperature: float,
) -> Attribution:
    """Scores the trajectories again; `then` has the weights that sampled them, `now` newer ones."""
    then.eval()
    now.eval()
    parts = [
        _with_selection(lay_out(trajectories[start : start + ROWS]), then)
        for start in range(0, len(trajectories), ROWS)
    ]
    told = torch.cat([rows.told_BT[rows.sampled_BT] for rows in parts])
    scored: dict[frozenset[str], Tensor] = {}
    for count in range(len(CAUSES) + 1):
        for causes in map(frozenset, combinations(CAUSES, count)):
            logps = [_score(rows, then, now, causes, temperature) for rows in parts]
            scored[causes] = torch.cat(logps)
    gaps = {causes: (logps - told).abs().mean().item() for causes, logps in scored.items()}
    ratios = (scored[frozenset(CAUSES)] - told).double().exp()
    return Attribution(
        numerics=gaps[frozenset()],
        parts={cause: _shapley(gaps, cause) for cause in CAUSES},
        alone={cause: gaps[frozenset({cause})] for cause in CAUSES},
        total=gaps[frozenset(CAUSES)],
        ratio_mean=ratios.mean().item(),
        ess=(ratios.sum() ** 2 / (ratios**2).sum() / len(ratios)).item(),
        tokens=len(told),
        trajectories=len(trajectories),
    )


def _shapley(gaps: dict[frozenset[str], float], cause: str) -> float:
    others = [other for other in CAUSES if other != cause]
    share = 0.0
    for count in range(len(others) + 1):
        weight = factorial(count) * factorial(len(others) - count) / factorial(len(CAUSES))
        for before in map(frozenset, combinations(others, count)):
            share += weight * (gaps[before | {cause}] - gaps[before])
    return share


def _score(
    rows: Rows,
    then: WorldsmithForCausalLM,
    now: WorldsmithForCausalLM,
    causes: frozenset[str],
    temperature: float,
) -> Tensor:
    """Log-probabilities of the sampled tokens, one row after the other, with these causes switched on."""
    keep = Keep(
        routing="routing" not in causes,
        selection="selection" not in causes,
        sampling_mask="sampling mask" not in causes,
    )
    model = now if "staleness" in causes else then
    with torch.no_grad():
        logps = score(model, rows, held_to(rows.records, keep), temperature=temperature)
    return logps[rows.sampled_BT]


def _with_selection(rows: Rows, then: WorldsmithForCausalLM) -> Rows:
    """Where the replica did not record what it attended to: the same weights select the same again."""
    if rows.records.selected is not None:
        return rows
    with torch.no_grad():
        again = then(
            input_ids=rows.ids, attention_mask=rows.mask, routes=rows.records.routes, return_selected=True
        )
    return replace(rows, records=replace(rows.records, selected=again.selected))


def _sampled_by(trajectory: Trajectory) -> set[int]:
    return {v for v, wrote in zip(trajectory.versions, trajectory.sampled, strict=True) if wrote}
