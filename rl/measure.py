"""What a training run measures of itself: steps, evaluations, baselines, compute, into the run's files."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.files import write_whole
from envs.sandbox.requirements import IN_PROCESS
from policies.model.decoder import WorldsmithForCausalLM
from policies.weights import publish
from rl.advantage import has_signal, rewards_of
from rl.budget import Compute, active_parameters, compute_of
from rl.evaluate import play_scripted, requests_for, summarize
from rl.groups import share_of_both
from rl.ledger import Ledger
from rl.replica_workers import AnyWorkers
from rl.run import Data, Run, sampling
from rl.trajectory import Trajectory, episode_row, transcript_line, transcript_row

READABLE_TRAJECTORIES = 80


class StepClock:
    """Seconds of a step's parts."""

    def __init__(self) -> None:
        self.generation = 0.0
        self._mark = 0.0
        self.begin_step()

    def begin_step(self) -> None:
        self._started = time.monotonic()

    def begin_generation(self) -> None:
        self._mark = time.monotonic()

    def end_generation(self) -> None:
        self.generation = time.monotonic() - self._mark

    @property
    def step(self) -> float:
        return time.monotonic() - self._started


def record_step(
    run: Run,
    step: int,
    played: list[Trajectory],
    terms: dict[str, float],
    clock: StepClock,
    *,
    ledger: Ledger,
) -> None:
    rewards = rewards_of(played)
    # Tools on threads of their own take no time from the engine; between its steps they do.
    between = 0.0 if run.config.rollout.boxes else sum(t.seconds_environment for t in played)
    environment = between / max(1, run.config.rollout.workers)
    measured = rewards[~rewards.isnan()]
    mean = measured.mean().item() if len(measured) else None
    fields = {
        "step": step,
        "reward_mean": mean,
        "pass_rate": mean,
        "signal_share": has_signal(rewards, run.config.rl.group_size).float().mean().item(),
        "tokens": sum(len(t.token_ids) for t in played),
        "sampled_tokens": sum(t.num_sampled for t in played),
        "response_tokens_mean": sum(t.num_sampled for t in played) / len(played),
        "seconds_generation": clock.generation - environment,
        "seconds_environment": environment,
        "seconds_training": clock.step - clock.generation,
        "weights_version": step,
        "causes": dict(Counter(str(t.cause) for t in played)),
        "ledger": ledger.as_fields(),
        **terms,
    }
    if run.config.rl.twins:
        fields["twins_both"] = share_of_both(run, played)
    run.log.metric("rl", fields)
    write_episodes(run, f"rl-step-{step:06d}", [episode_row(t, when="rl", boxes=IN_PROCESS) for t in played])
    run.observer.advance(1, f"pass rate {mean:.2f}" if mean is not None else "nothing measured")
    run.observer.wrote()


def evaluate(
    run: Run, workers: AnyWorkers, model: WorldsmithForCausalLM, *, when: str, step: int
) -> dict[str, Any]:
    """Held-out pass rates by sampling; a finished evaluation is read back, not played again."""
    if (known := known_evaluation(run.out, when)) is not None:
        return known
    with run.log.stage(f"evaluation {when}"):
        workers.load(publish(model, version=step))
        offset = len(run.data.tasks)
        requests = [
            replace(request, task_index=request.task_index + offset)
            for request in requests_for(
                [playable.task.task_id for playable in run.data.heldout],
                samples=run.config.eval.samples,
                seed=run.config.seed,
            )
        ]
        started = time.monotonic()
        played = workers.play(requests, sampling(run))
        rows = [episode_row(t, when=when, boxes=IN_PROCESS) for t in played]
        summary = summarize(rows, unseen_levels=run.data.unseen_levels)
        write_episodes(run, f"eval-{when}", rows)
        readable = played[:: max(1, len(played) // READABLE_TRAJECTORIES)]
        lines = "".join(transcript_line(transcript_row(t, when=when)) + "\n" for t in readable)
        write_whole(run.out / "trajectories" / f"{when}.jsonl", lines.encode())
        record = {
            "when": when,
            "step": step,
            "policy": "policy",
            "seconds": time.monotonic() - started,
            **summary,
        }
        run.log.metric("eval", record)
        run.observer.wrote()
    return record


def baselines(run: Run) -> None:
    """The scripted agents on the held-out tasks: the oracle must score 1, the null agent 0."""
    for policy in ("oracle", "null", "random"):
        if known_evaluation(run.out, "before", policy=policy) is None:
            rows = list(play_scripted(run.data.heldout, policy, samples=1, seed=run.config.seed))
            summary = summarize(rows, unseen_levels=run.data.unseen_levels)
            run.log.metric("eval", {"when": "before", "step": 0, "policy": policy, **summary})
    run.observer.wrote()


def known_evaluation(out: Path, when: str, *, policy: str = "policy") -> dict[str, Any] | None:
    for record in read_metrics(out):
        if record.get("kind") == "eval" and record.get("when") == when and record.get("policy") == policy:
            return record
    return None


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
    path = out / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def own_compute(run: Run, model: WorldsmithForCausalLM) -> Compute:
    """What this run has spent so far, by its metrics."""
    return compute_of(
        read_metrics(run.out),
        active_parameters(model),
        from_start=run.config.start is not None,
        with_reference=run.config.rl.loss.kl_weight > 0,
    )


def record_compute(run: Run, model: WorldsmithForCausalLM) -> None:
    """FLOPs of this run and of those that it follows, and RL's share of the cold start's; once a run."""
    if any(record["kind"] == "compute" for record in read_metrics(run.out)):
        return
    spent = run.before + own_compute(run, model)
    fields = {"cold_start_flops": spent.pretraining, "rl_flops": spent.rl, "share": spent.rl_share}
    run.log.metric("compute", fields)
    run.observer.wrote()


def write_episodes(run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    write_whole(run.out / "episodes" / f"{name}.parquet", sink.getvalue().to_pybytes())


def lessons_note(data: Data) -> str:
    """What a report says of what the supervised steps learnt from."""
    if data.lessons:
        return (
            f"The policy learns from {len(data.lessons):,} episodes that specialists played on training tasks"
            " and the verifier passed, by the very tokens that they sampled."
        )
    passed = sum(d.reward == 1.0 for d in data.mixed) / max(1, len(data.mixed))
    return (
        f"The cold start learns from {len(data.clean):,} clean demonstrations (the planner with full "
        "care), then from "
        f"{len(data.mixed):,} of mixed quality: demonstrators who at times skip a check or ignore a "
        "rule on purpose; "
        f"{passed:.0%} of those succeed. What RL gains is behaviour that both kinds showed it."
    )
