"""The paper's post-training (arXiv 2512.02556, section 3), in small: specialists, distillation, mixed RL.

    plan_stages          what will be done, before anything is
    run_pipeline
        cold-start       a policy to begin with; or another run's, taken over
        specialist-*     from it, RL on one group of domains each
        distilled        from it again, learning from what the specialists played and the verifier passed
        mixed            from that, one stage of RL over all groups

Each stage is a training run (`rl.train`) in a folder of its own, with a report of its own. Run again, a
finished stage is left as it is and an unfinished one goes on where it was.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from envs.files import write_whole
from rl.budget import Compute
from rl.checkpoints import Checkpoint, checkpoint_at, checkpoint_steps
from rl.config import PipelineConfig, TrainConfig, default_fields
from rl.distill import lesson, play_all, played, select, unplayed
from rl.measure import read_metrics
from rl.observer import Observer
from rl.pipeline_figures import Figures, compute_in, figures
from rl.ray_session import ray_session
from rl.replica_workers import replica_config, start_players
from rl.run import Data, Run, open_log
from rl.run_files import (
    differences,
    mend_metrics,
    publish_directory,
    read_record,
    trim_metrics,
    with_defaults,
)
from rl.stages import Kind
from rl.train import copy_tokenizer, train
from rl.trajectory import PlayableTask, transcript_line, transcript_row

TAKEN_OVER = ("model", "cold_start", "corpus", "heldout")
"""What a run must have had like this one for its cold start to be taken over."""
READABLE_LESSONS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training run. domains: those that it trains on and is tried on."""

    name: str
    kind: Kind
    out: Path
    domains: tuple[str, ...]
    config: TrainConfig

    @property
    def policy(self) -> Path:
        return self.out / "policy"

    @property
    def finished(self) -> bool:
        return (self.out / "run.json").exists() and bool(read_record(self.out).get("finished"))

    def as_fields(self) -> dict[str, Any]:
        return {"name": self.name, "kind": str(self.kind), "domains": list(self.domains)}


class Watch(Protocol):
    """Who watches a stage while it is at work."""

    def __call__(self, stage: Stage) -> AbstractContextManager[Observer]: ...


def run_pipeline(config: PipelineConfig, data: Data, out: Path, watch: Watch) -> Figures:
    """Runs, or goes on with, the pipeline in `out`; returns its figures.

    The caller holds the directory (`rl.run_files.locked`). Raises Terminated after SIGTERM, with what was
    learnt saved.
    """
    stages = plan_stages(config, data, out)
    source = None if stages[0].finished else cold_start_source(config)
    log = open_log(config, out, command="pipeline")
    mend_metrics(out)
    log.record["stages"] = [stage.as_fields() for stage in stages]
    log.record["margin"] = config.pipeline.margin
    log.save()
    with ray_session(config.ray_slots):
        for stage in stages:
            if not stage.finished:
                with log.stage(stage.name), watch(stage) as observer:
                    if source is not None and stage.kind is Kind.COLD_START:
                        take_over(source, stage)
                    run_stage(stage, stages, config, data, observer)
    found = figures(stages, groups_of(config, data))
    trim_metrics(out, kind="figures", from_step=0)
    log.metric("figures", {"step": 0, **found.as_fields(config.pipeline.margin)})
    log.finish()
    return found


def run_stage(
    stage: Stage, stages: Sequence[Stage], config: PipelineConfig, data: Data, observer: Observer
) -> None:
    before = sum((compute_in(one) for one in stages[: stages.index(stage)]), Compute())
    own = narrowed(data, stage.domains)
    if stage.kind is Kind.SPECIALIST:  # the others' compute is not this one's past
        before = Compute(pretraining=before.pretraining)
    if stage.kind is not Kind.DISTILLED:
        train(stage.config, own, stage.out, observer, before=before)
        return
    log = open_log(stage.config, stage.out)
    mend_metrics(stage.out)
    run = Run(config=stage.config, data=own, out=stage.out, log=log, observer=observer)
    lessons = [
        lesson(episode)
        for number, one in enumerate(of_kind(stages, Kind.SPECIALIST))
        for episode in lessons_from(one, run, number, config)
    ]
    if not lessons:
        raise ValueError(
            f"{stage.out}: no episode of the specialists passed and could be learnt from;"
            " raise pipeline.specialists.steps or pipeline.distill.samples"
        )
    train(stage.config, replace(own, lessons=lessons), stage.out, observer, log, before=before)


def lessons_from(specialist: Stage, run: Run, number: int, config: PipelineConfig) -> Sequence[Any]:
    """Lets the specialist play, once, and selects; what became of each episode stands in the metrics."""
    own = replace(run, data=narrowed(run.data, specialist.domains))
    settings = config.pipeline.distill
    if unplayed(own, specialist.name, samples=settings.samples):
        rollout = config.rollout
        replica = replica_config(rollout, specialist.policy)
        players = start_players(rollout.engine, replica, own.data.tasks, rollout.workers)
        with run.log.stage(f"{specialist.name} plays"), closing(players) as workers:
            play_all(own, workers, specialist.name, samples=settings.samples)
    found = select(
        list(played(own, specialist.name, samples=settings.samples)),
        own.data.tasks,
        run.data.heldout,
        kept_per_task=settings.kept_per_task,
    )
    if not any(r["kind"] == "distill" and r["step"] == number for r in read_metrics(run.out)):
        run.log.metric("distill", {"step": number, "specialist": specialist.name, **found.as_fields()})
    readable = found.kept[:: max(1, len(found.kept) // READABLE_LESSONS)]
    lines = "".join(transcript_line(transcript_row(t, when=specialist.name)) + "\n" for t in readable)
    write_whole(run.out / "trajectories" / f"{specialist.name}.jsonl", lines.encode())
    return found.kept


def plan_stages(config: PipelineConfig, data: Data, out: Path) -> list[Stage]:
    """The stages in their order. Raises ValueError where the groups do not fit the corpus."""
    groups = groups_of(config, data)
    every = tuple(domain for domains in groups.values() for domain in domains)
    cold = stage_config(config, rl=config.rl.model_copy(update={"steps": 0, "until_share": None}))
    first = Stage(name="cold-start", kind=Kind.COLD_START, out=out / "cold-start", domains=every, config=cold)
    none = {"clean_steps": 0, "warm_up_steps": 0, "sparse_steps": 0}
    no_cold_start = config.cold_start.model_copy(update=none)
    learn = config.rl.model_copy(update={"steps": config.pipeline.specialists.steps, "until_share": None})
    special = stage_config(config, start=str(first.policy), cold_start=no_cold_start, rl=learn)
    specialists = [
        Stage(
            name=f"specialist-{name}",
            kind=Kind.SPECIALIST,
            out=out / f"specialist-{name}",
            domains=domains,
            config=special,
        )
        for name, domains in groups.items()
    ]
    distill = config.pipeline.distill
    wanted = ("tokens_per_batch", "learning_rate", "muon_learning_rate", "checkpoint_every")
    lessons = no_cold_start.model_copy(
        update={"sparse_steps": distill.steps, **{name: getattr(distill, name) for name in wanted}}
    )
    distilled = Stage(
        name="distilled",
        kind=Kind.DISTILLED,
        out=out / "distilled",
        domains=every,
        config=stage_config(config, start=str(first.policy), cold_start=lessons, rl=cold.rl),
    )
    mixed = Stage(
        name="mixed",
        kind=Kind.MIXED,
        out=out / "mixed",
        domains=every,
        config=stage_config(config, start=str(distilled.policy), cold_start=no_cold_start),
    )
    return [first, *specialists, distilled, mixed]


def stage_config(config: PipelineConfig, **changes: Any) -> TrainConfig:
    fields = {name: getattr(config, name) for name in TrainConfig.model_fields}
    return TrainConfig(**{**fields, **changes})


def groups_of(config: PipelineConfig, data: Data) -> dict[str, tuple[str, ...]]:
    """Domains by specialist. Raises ValueError unless each domain is in one group and each group has tasks to
    train on and to be tried on.
    """
    trainable = sorted({p.task.domain for p in data.tasks if p.task.level in config.rl.levels})
    groups = config.pipeline.groups or {domain: (domain,) for domain in trainable}
    named = [domain for domains in groups.values() for domain in domains]
    held = {p.task.domain for p in data.heldout}
    for name, domains in groups.items():
        if not domains:
            raise ValueError(f"pipeline.groups.{name} has no domain; name some of {', '.join(trainable)}")
    for domain in named:
        if domain not in trainable:
            raise ValueError(
                f"pipeline.groups: {config.corpus} has no task of domain {domain!r} at the trained levels;"
                f" it has {', '.join(trainable)}"
            )
        if domain not in held:
            raise ValueError(f"pipeline.groups: {config.heldout} has no task of domain {domain!r}")
        if named.count(domain) > 1:
            raise ValueError(f"pipeline.groups: domain {domain!r} is in two groups; one specialist learns it")
    if left := [domain for domain in trainable if domain not in named]:
        raise ValueError(f"pipeline.groups: domain {left[0]!r} of {config.corpus} is in no group")
    return groups


def narrowed(data: Data, domains: Sequence[str]) -> Data:
    """The tasks of these domains; demonstrations stay."""

    def those(tasks: Sequence[PlayableTask]) -> list[PlayableTask]:
        return [playable for playable in tasks if playable.task.domain in domains]

    return replace(data, tasks=those(data.tasks), heldout=those(data.heldout))


def of_kind(stages: Sequence[Stage], kind: Kind) -> list[Stage]:
    return [stage for stage in stages if stage.kind is kind]


def cold_start_source(config: PipelineConfig) -> Checkpoint | None:
    """The closing checkpoint of the cold start that is taken over, if one is. Raises ValueError where the run
    is none, went otherwise or did not come to its end.
    """
    if config.pipeline.cold_start_from is None:
        return None
    source = Path(config.pipeline.cold_start_from)
    if not (source / "run.json").exists():
        raise ValueError(
            f"pipeline.cold_start_from: {source} is no run; make it first (worldsmith demo --out {source}),"
            " or set it to null, and the pipeline does its own cold start"
        )
    theirs = with_defaults(read_record(source)["config"], default_fields(TrainConfig))
    ours = config.model_dump(mode="json")
    changed = differences(*({name: side.get(name) for name in TAKEN_OVER} for side in (theirs, ours)))
    if changed:
        key, was, now = changed[0]
        raise ValueError(
            f"pipeline.cold_start_from: {source} had {key} = {was!r}, this config has {now!r}; a cold start"
            " can be taken over where both are the same"
        )
    directory = source / "checkpoints" / "cold-start"
    if config.cold_start.num_steps not in checkpoint_steps(directory):
        raise ValueError(f"pipeline.cold_start_from: the cold start of {source} has not come to its end")
    return checkpoint_at(directory, config.cold_start.num_steps)


def take_over(source: Checkpoint, stage: Stage) -> None:
    """Puts the cold start into the stage's folder as if it had been run there; the checkpoint comes last."""
    final = stage.out / "checkpoints" / "cold-start" / source.path.name
    if final.exists():
        return
    theirs = source.path.parents[2]
    copy_tokenizer(theirs / "policy", stage.policy)
    steps = [record for record in read_metrics(theirs) if record["kind"] == "cold_start"]
    write_whole(stage.out / "metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps).encode())
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source.path, temporary)
    publish_directory(temporary, final)
