"""Aims `synth` by a run: reads what a policy passed, predicts every level, and shares out the tasks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from synthesis.learnability import Cell, Prediction, aim, cell_dials, predict

COLUMNS = ("task_id", "domain", "level", "reward")


def read_outcomes(run: Path) -> dict[Cell, tuple[float, int]]:
    """By domain and level, the sum of the tasks' mean rewards and their number, from the last that the run
    measured: its evaluation, or the last steps of its training. Raises ValueError where there is nothing.
    """
    if not (run / "run.json").is_file():
        raise ValueError(f"--from-run: {run} is no run, it has no run.json; give what eval or train wrote")
    rewards: defaultdict[tuple[str, int, str], list[float]] = defaultdict(list)
    for path in _newest(run / "episodes"):
        try:
            rows = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())[:160]}") from None
        for row in rows:
            if row["reward"] is not None:
                rewards[row["domain"], row["level"], row["task_id"]].append(row["reward"])
    outcomes: dict[Cell, tuple[float, int]] = {}
    for (domain, level, _), each in rewards.items():
        passed, count = outcomes.get((domain, level), (0.0, 0))
        outcomes[domain, level] = (passed + sum(each) / len(each), count + 1)
    if not outcomes:
        raise ValueError(f"--from-run: {run} holds no measured episode; let eval play its policy first")
    return outcomes


def _newest(episodes: Path) -> Sequence[Path]:
    for name in ("eval.parquet", "eval-after.parquet"):
        if (episodes / name).is_file():
            return [episodes / name]
    return sorted(episodes.glob("rl-step-*.parquet"))[-8:] or sorted(episodes.glob("*.parquet"))


def aimed(
    run: Path, cells: Sequence[Cell], *, target: float, count: int
) -> tuple[dict[Cell, int], dict[Cell, Prediction]]:
    """How many tasks of each cell, and what is predicted of it. Raises ValueError for a run that says nothing
    of these cells.
    """
    outcomes = read_outcomes(run)
    try:
        predictions = predict(outcomes, {cell: cell_dials(cell) for cell in cells})
    except ValueError as error:
        raise ValueError(f"--from-run: {run}: {error}") from None
    return aim(predictions, target=target, count=count), predictions


def aim_table(counts: Mapping[Cell, int], predictions: Mapping[Cell, Prediction], target: float) -> str:
    lines = []
    for (domain, level), found in predictions.items():
        low, high = found.interval
        lines.append(
            f"{domain:<10} level {level:<2}  predicted {found.rate:.2f} ({low:.2f} to {high:.2f}) from"
            f" {found.played:,} played  {counts[domain, level]:>6,} tasks"
        )
    total = sum(counts.values())
    mean = sum(predictions[cell].rate * count for cell, count in counts.items()) / max(1, total)
    return "\n".join([*lines, f"mean predicted pass rate {mean:.3f}, target {target:g}"])
