"""What several runs of one setting gained by RL: each run, then median and range.

for s in 0 1 2; do worldsmith demo --seed $s --out runs/seed-$s; done
PYTHONPATH=. python benchmarks/seeds.py runs/seed-*
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from rl.config import parse_config
from rl.measure import read_metrics

PARTS = {"all": (), "never shown": ("unseen",)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    args = parser.parse_args()
    found = [(run, *_evaluations(run)) for run in args.runs]
    settings = {json.dumps(_setting(run), sort_keys=True) for run in args.runs}
    if len(settings) > 1:
        parser.error("the runs differ in more than their seed")
    for part, path in PARTS.items():
        print(f"{part}: pass rate before RL, after it (95 % intervals), gain")
        for run, before, after in found:
            old, new = _part(before, path), _part(after, path)
            apart = "apart" if old["interval"][1] < new["interval"][0] else "overlap"
            gain = new["pass_rate"] - old["pass_rate"]
            print(f"  {run}: {_shown(old)} {_shown(new)} {gain:+.3f}, intervals {apart}")
        for name, values in (
            ("before", [_part(before, path)["pass_rate"] for _, before, _ in found]),
            ("after", [_part(after, path)["pass_rate"] for _, _, after in found]),
            ("gain", [_part(a, path)["pass_rate"] - _part(b, path)["pass_rate"] for _, b, a in found]),
        ):
            print(f"  {name}: median {median(values):.3f}, {min(values):.3f} to {max(values):.3f}")
    return 0


def _evaluations(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Before and after RL. Raises SystemExit for a run that is not done."""
    by_time = {m["when"]: m for m in read_metrics(run) if m["kind"] == "eval" and m["policy"] == "policy"}
    if not {"before", "after"} <= set(by_time):
        raise SystemExit(f"{run}: the run has no evaluation before and after RL yet; let it end")
    return by_time["before"], by_time["after"]


def _setting(run: Path) -> dict[str, Any]:
    """Complete: what an older run did not name yet has its default."""
    where = run / "run.json"
    config = parse_config(json.loads(where.read_text())["config"], where=str(where)).model_dump(mode="json")
    return {name: value for name, value in config.items() if name not in ("seed", "corpus", "heldout")}


def _part(evaluation: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        evaluation = evaluation[name]
    return evaluation


def _shown(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['pass_rate']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
