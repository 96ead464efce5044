"""Measure synthesis: fully gated tasks a second a core for each domain, and what a second worker adds.

A rate is accepted tasks by CPU seconds of one process, candidates that were refused included; the median
is over domains, each at its levels 1 to 4. Workers: the same corpus by one Ray worker and by two, in turn.
Beside it, where it can be installed into an environment of its own, reasoning-gym's raw rate: questions made,
nothing proved of them. The last line of --json is one JSON object.

Run as a module: `python -m benchmarks.synthesis`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from envs.task import stable_seed
from synthesis.certificate import certify_candidate
from synthesis.corpus import CorpusTask
from synthesis.general import DOMAINS, make_candidate
from synthesis.pipeline import synthesize
from synthesis.shard_plan import DEFAULT_LEVELS, SynthConfig, plan_shards

PEER = "reasoning-gym==0.1.25"
PEER_SCRIPT = """
import json, time, warnings
warnings.filterwarnings("ignore")
import reasoning_gym
rates = {}
for name in %r:
    data = reasoning_gym.create_dataset(name, size=%d, seed=1)
    began = time.process_time()
    for index in range(%d):
        data[index]
    rates[name] = %d / (time.process_time() - began)
print(json.dumps(rates))
"""
PEER_DATASETS = ("countdown", "zebra_puzzles", "course_schedule", "knights_knaves", "sudoku", "n_queens")
"""Those of its datasets that ask for planning, scheduling or constraints, as ours do."""


def gated_rate(name: str, num_tasks: int) -> dict[str, float]:
    """Accepted tasks a CPU second in this process, and the share of candidates that were refused."""
    domain = DOMAINS[name]
    levels = [level for level in domain.levels if level in DEFAULT_LEVELS]
    accepted = candidates = 0
    began = time.process_time()
    while accepted < num_tasks:
        level = levels[candidates % len(levels)]
        made = make_candidate(domain, level, stable_seed("benchmark", name, level, candidates))
        candidates += 1
        accepted += made is not None and isinstance(certify_candidate(made), CorpusTask)
    spent = time.process_time() - began
    return {
        "tasks_per_s": accepted / spent,
        "ms": 1000 * spent / accepted,
        "refused": 1 - accepted / candidates,
    }


def worker_seconds(count: int, workers: int) -> float:
    """Wall seconds for a corpus, without Ray's start."""
    config = SynthConfig(count=count, seed=1, shard_rows=5)
    with tempfile.TemporaryDirectory() as folder:
        first: list[float] = []
        out = Path(folder) / "corpus"
        synthesize(config, out, workers=workers, on_shard=lambda shard: first.append(time.monotonic()))
        # From the first shard on: Ray starts, and its workers import, before that.
        done = len(plan_shards(config))
        return (first[-1] - first[workers - 1]) * done / max(1, done - workers)


def peer_rates(folder: Path, num_questions: int) -> dict[str, float] | None:
    """reasoning-gym's questions a CPU second by dataset; None when it cannot be installed."""
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        quiet = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PEER]
        subprocess.run(quiet, check=True, stdout=sys.stderr, timeout=900)
        script = PEER_SCRIPT % (PEER_DATASETS, num_questions, num_questions, num_questions)
        command = [str(python), "-c", script]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{PEER} not measured: {error}", file=sys.stderr)
        return None
    return json.loads(out.stdout.splitlines()[-1])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=40, help="accepted tasks for each domain (default: 40)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of one worker and two, in turn (0: not measured)"
    )
    parser.add_argument("--corpus", type=int, default=200, help="tasks in the corpus that workers make")
    cache = Path(os.environ.get("WORLDSMITH_CACHE", "~/.cache/worldsmith")).expanduser()
    parser.add_argument("--peer", type=Path, default=cache / "peers" / "reasoning-gym-0.1.25", metavar="DIR",
                        help="reasoning-gym's own environment, made when it is not there")  # fmt: skip
    parser.add_argument("--no-peer", action="store_true", help="leave reasoning-gym out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    machine = platform.processor() or platform.machine()
    result: dict[str, object] = {"machine": machine, "cores": os.cpu_count()}
    rates: dict[str, dict[str, float]] = {}
    for name in DOMAINS:
        rates[name] = gated_rate(name, args.tasks)
        print(f"{name:<12} {rates[name]['tasks_per_s']:6.1f} tasks/s {rates[name]['ms']:6.1f} ms", flush=True)
    median = statistics.median(rate["tasks_per_s"] for rate in rates.values())
    print(f"median       {median:6.1f} tasks/s a core, every gate passed")
    result |= {"domains": rates, "median_tasks_per_s": median}
    if args.rounds:
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(args.rounds):
            for workers, seconds in taken.items():
                seconds.append(worker_seconds(args.corpus, workers))
        one, two = (statistics.median(taken[workers]) for workers in (1, 2))
        result["speedup_of_two_workers"] = one / two
        print(f"two workers against one: {one / two:.2f} times ({one:.1f} s, {two:.1f} s)")
    if not args.no_peer and (peer := peer_rates(args.peer, args.tasks)) is not None:
        result["reasoning_gym"] = peer
        for name, rate in peer.items():
            print(f"reasoning-gym {name:<22} {rate:8.0f} questions/s, unproved")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
