"""Trains a policy: cold start on demonstrations, then GRPO on certified tasks. Run again, it resumes.

Example: worldsmith train --config configs/demo.yaml --out runs/demo

With a section `pipeline`, as configs/pipeline.yaml has, it is a row of such runs: cold start, a specialist a
group of domains, distillation into one policy, mixed RL over all groups; each in a folder of its own in RUN.

The run's directory holds run.json, metrics.jsonl, episodes/, trajectories/, checkpoints/, report.html and,
at the end, the policy itself in policy/ (play it with: worldsmith eval --policy local:runs/demo/policy
--tasks DIR --out RUN).
"""

import json
import os
import sys
from pathlib import Path

from worldsmith.arguments import CommandParser


def main(argv: list[str]) -> int:
    parser = CommandParser("train", __doc__)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="the run's directory (default: runs/NAME of the config)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="change one field of the config; may be repeated",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check config and data, print the plan, start nothing"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a run asks no hub for anything, nor tells one
    from rl.config import PipelineConfig, load_config
    from rl.run_files import locked
    from rl.train import check_run, train
    from worldsmith.corpora import training_data
    from worldsmith.learning import learners_in_words, too_many_learners
    from worldsmith.watching import Watcher

    config = load_config(args.config, args.set)
    out = args.out or Path("runs") / args.config.stem
    data = training_data(
        Path(config.corpus), Path(config.heldout), demonstrations_needed=config.cold_start.num_steps > 0
    )
    check_run(config, data)
    if crowded := too_many_learners(config.rl):
        print(f"worldsmith train: {crowded}", file=sys.stderr)
    if isinstance(config, PipelineConfig):
        from worldsmith.pipeline import plan_lines, train_in_stages

        if args.dry_run:
            print("\n".join(plan_lines(config, data, out)))
            return 0
        return train_in_stages(config, data, out, as_json=args.json)
    if args.dry_run:
        print(
            f"{len(data.tasks):,} tasks, {len(data.heldout):,} held out, {len(data.clean):,} clean and"
            f" {len(data.mixed):,} mixed demonstrations;"
            f" {config.cold_start.num_steps:,} steps of cold start,"
            f" {config.rl.steps:,} of RL with {config.rl.groups_per_step} groups of "
            f"{config.rl.group_size}{learners_in_words(config.rl)}; into {out}"
        )
        return 0
    with locked(out):
        watcher = Watcher(out)
        summary = train(config, data, out, watcher)
        watcher.close()
    if args.json:
        print(json.dumps({"out": str(out), **summary}))
    else:
        low, high = summary["interval"]
        print(f"held-out pass rate {summary['pass_rate']:.3f} ({low:.3f} to {high:.3f}); {out}/report.html")
    return 0
