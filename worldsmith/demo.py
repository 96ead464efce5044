"""The whole loop, end to end, in minutes: certified tasks, cold start, GRPO, and a page that shows it.

Open RUN/report.html in a browser at once: it rewrites itself as the run goes. Run again, it resumes.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by the libraries below as they are imported

from envs.task import stable_seed
from rl.config import TrainConfig, load_config
from rl.measure import read_metrics
from rl.ray_session import ray_session
from rl.run import open_log
from rl.run_files import RunLog, locked
from rl.train import train
from synthesis.corpus import MANIFEST
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig, plan_shards
from worldsmith.arguments import CommandParser
from worldsmith.corpora import training_data
from worldsmith.progress import Progress, duration
from worldsmith.watching import Watcher

DOMAINS = ("trip", "retail")
NUM_TASKS = 3000
NUM_HELDOUT = 400
SLIP_RATES = (0.0, 0.0, 0.0, 0.0, 0.5)
"""Four clean demonstrations for each one of mixed quality."""
TOKENS_A_DEMONSTRATION = 56
PASSES = 2
"""How often the cold start sees a demonstration."""
LEVELS = (1, 2, 3, 4)
SHOWN_LEVELS = (1, 2, 3)
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(argv: list[str]) -> int:
    parser = CommandParser("demo", __doc__)
    parser.add_argument(
        "--out", type=Path, metavar="RUN", default=Path("runs/demo"), help="default: runs/demo"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="change one field of configs/demo.yaml"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, start nothing")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    args = parser.parse_args(argv)
    out: Path = args.out
    corpus, heldout = out / "corpus", out / "heldout"
    paths = [f"corpus={corpus}", f"heldout={heldout}", f"seed={args.seed}"]
    config = load_config(CONFIG, [*paths, *args.set])
    if args.dry_run:
        print(
            f"{NUM_TASKS:,} tasks and {NUM_HELDOUT} held-out ones of levels {LEVELS}, of which a cold "
            "start sees"
            f" {SHOWN_LEVELS}; {config.cold_start.num_steps} steps of cold"
            f" start and {config.rl.steps} of GRPO; into {out}"
        )
        return 0
    print(f"look at {out}/report.html: it rewrites itself as the run goes", file=sys.stderr)
    begun = time.monotonic()
    with locked(out):
        log = open_log(config, out, command="demo")
        watcher = Watcher(out)
        watcher.wrote()
        with ray_session(
            config.rollout.workers
        ):  # one for both corpora and for training: it starts in seconds
            make_corpora(log, out, seed=args.seed, num_demonstrations=demonstrations_needed(config))
            summary = train(config, training_data(corpus, heldout), out, watcher, log)
        watcher.close()
    print_result(out, summary, time.monotonic() - begun, as_json=args.json)
    return 0


def demonstrations_needed(config: TrainConfig) -> int:
    cold = config.cold_start
    return cold.num_steps * cold.tokens_per_batch // (TOKENS_A_DEMONSTRATION * PASSES)


def make_corpora(log: RunLog, out: Path, *, seed: int, num_demonstrations: int) -> None:
    """Training tasks of the shown levels with demonstrations, and held-out tasks of all levels from another
    seed.
    """
    workers = os.cpu_count() or 1
    wanted = {
        out / "corpus": SynthConfig(
            domains=DOMAINS,
            count=NUM_TASKS,
            seed=stable_seed(seed, "corpus"),
            levels=SHOWN_LEVELS,
            demonstrations=num_demonstrations,
            slip_rates=SLIP_RATES,
        ),
        out / "heldout": SynthConfig(
            domains=DOMAINS, count=NUM_HELDOUT, seed=stable_seed(seed, "heldout"), levels=LEVELS
        ),
    }
    if all((directory / MANIFEST).exists() for directory in wanted):
        return
    with log.stage("synthesis"):
        for directory, config in wanted.items():
            total = sum(spec.rows for spec in plan_shards(config))
            with Progress(f"synth {directory.name}", total=total, unit="rows") as progress:
                synthesize(
                    config,
                    directory,
                    workers=workers,
                    on_shard=lambda shard, p=progress: p.advance(shard.rows),
                    on_found=lambda shard, p=progress: p.resume_at(p.done + shard.rows),
                )


def print_result(out: Path, summary: dict[str, Any], seconds: float, *, as_json: bool) -> None:
    before = next(
        m
        for m in read_metrics(out)
        if m["kind"] == "eval" and m["when"] == "before" and m["policy"] == "policy"
    )
    if as_json:
        print(json.dumps({"out": str(out), "seconds": round(seconds, 1), "before": before, "after": summary}))
        return
    for name, part in (("held-out tasks", ()), ("level never shown", ("unseen",))):
        old, new = before, summary
        for key in part:
            old, new = old[key], new[key]
        print(
            f"{name}: pass rate {old['pass_rate']:.3f} ({old['interval'][0]:.3f} to {old['interval'][1]:.3f})"
            f" before RL, {new['pass_rate']:.3f} ({new['interval'][0]:.3f} to {new['interval'][1]:.3f}) after"
        )
    print(f"took {duration(seconds)}; look at {out}/report.html")
