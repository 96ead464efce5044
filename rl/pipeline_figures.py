"""What a pipeline came to: held-out pass rates of each group stage by stage, and the compute of it all."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from rl.budget import Compute, compute_of
from rl.measure import read_metrics
from rl.run_files import read_record
from rl.stages import Kind
from rl.statistics import PassRate, paired_difference, pass_rate


class StageFolder(Protocol):
    """`rl.pipeline.Stage`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def out(self) -> Path: ...
    @property
    def domains(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFigures:
    """Held-out pass rates by the kind of stage. difference: mixed less specialist, with its interval of 95 %,
    over the tasks that both played.
    """

    domains: tuple[str, ...]
    rates: Mapping[str, PassRate]
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    groups: Mapping[str, GroupFigures]
    compute: Compute
    by_stage: Mapping[str, Compute]

    def as_fields(self, margin: float) -> dict[str, Any]:
        """kept: the difference is at most `margin` below 0. shown: so is all of its interval."""
        groups = {
            name: {
                "domains": list(group.domains),
                **{kind: rate.as_dict() for kind, rate in group.rates.items()},
                "difference": group.difference,
                "interval": list(group.interval),
                "kept": group.difference >= -margin,
                "shown": group.interval[0] >= -margin,
            }
            for name, group in self.groups.items()
        }
        by_stage = {name: compute.as_fields() for name, compute in self.by_stage.items()}
        return {"groups": groups, "compute": self.compute.as_fields(), "compute_by_stage": by_stage}


def figures(stages: Sequence[StageFolder], groups: Mapping[str, tuple[str, ...]]) -> Figures:
    """Of finished stages."""
    by_stage = {stage.name: compute_in(stage) for stage in stages}
    return Figures(
        groups={name: group_figures(stages, domains) for name, domains in groups.items()},
        compute=sum(by_stage.values(), Compute()),
        by_stage=by_stage,
    )


def group_figures(stages: Sequence[StageFolder], domains: tuple[str, ...]) -> GroupFigures:
    rewards = {
        str(stage.kind): heldout_rewards(stage.out, stage.kind.closing, domains)
        for stage in stages
        if set(domains) <= set(stage.domains)
    }
    difference, interval = paired_difference(rewards["mixed"], rewards["specialist"])
    return GroupFigures(
        domains=domains,
        rates={kind: pass_rate(found) for kind, found in rewards.items()},
        difference=difference,
        interval=interval,
    )


def heldout_rewards(out: Path, when: str, domains: Collection[str]) -> dict[str, list[float]]:
    """Measured rewards by task of these domains, of an evaluation."""
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    columns = ["task_id", "domain", "reward"]
    for row in pq.read_table(out / "episodes" / f"eval-{when}.parquet", columns=columns).to_pylist():
        if row["domain"] in domains and row["reward"] is not None:
            rewards[row["task_id"]].append(row["reward"])
    return dict(rewards)


def compute_in(stage: StageFolder) -> Compute:
    """What a stage has spent, by its metrics; nothing where it has not begun."""
    if not (stage.out / "run.json").exists():
        return Compute()
    info = read_record(stage.out)
    return compute_of(
        read_metrics(stage.out),
        info["counts"].get("active_parameters", 0),
        from_start=info["config"].get("start") is not None,
        with_reference=info["config"]["rl"]["loss"]["kl_weight"] > 0,
    )
