"""Why the learner and the replica disagree about a run's tokens: by routing, selection, mask, age, rounding.

Scores episodes again that the run kept (RUN/trajectories/tokens/), which were sampled by the weights of one
of its checkpoints, under those weights and under a later checkpoint's. Prints a table, and writes it as a
plot to RUN/explain.svg. Nothing else of the run is changed.

Example: worldsmith explain runs/demo
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.files import write_whole
from worldsmith.arguments import CommandParser

if TYPE_CHECKING:
    from rl.attribution import Attribution

ROW, WIDTH, NAMES = 26, 560, 120


def main(argv: list[str]) -> int:
    parser = CommandParser("explain", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument(
        "--sampled", type=int, metavar="N", help="the version that sampled (default: the last kept)"
    )
    parser.add_argument(
        "--scored", type=int, metavar="N", help="the later version that scores (default: the last)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    args = parser.parse_args(argv)
    from rl.attribution import attribute, kept_versions, read_kept

    sampled, scored = chosen_versions(args.run, kept_versions(args.run), args.sampled, args.scored)
    found = attribute(
        read_kept(args.run, sampled),
        model_of(args.run, sampled),
        model_of(args.run, scored),
        temperature=temperature_of(args.run),
    )
    print(table(found, sampled, scored))
    plot = args.run / "explain.svg"
    write_whole(plot, chart(found).encode())
    print(plot)
    if args.json:
        print(json.dumps({"sampled": sampled, "scored": scored, **asdict(found)}))
    return 0


def chosen_versions(run: Path, kept: list[int], sampled: int | None, scored: int | None) -> tuple[int, int]:
    """Raises ValueError when the run has kept nothing, or not that."""
    from rl.checkpoints import checkpoint_steps

    with_weights = {0, *checkpoint_steps(run / "checkpoints")}
    usable = [version for version in kept if version in with_weights]
    if not usable:
        raise ValueError(f"{run}: it has kept no episodes to score again; name a run with steps of RL")
    latest = max(with_weights) if scored is None else scored
    earlier = [version for version in usable if version <= latest]
    if sampled is None:
        older = [version for version in earlier if version < latest]
        sampled = (older or earlier or usable)[-1]
    if sampled not in usable:
        raise ValueError(f"--sampled {sampled}: {run} has kept episodes of {', '.join(map(str, usable))}")
    if latest not in with_weights:
        names = ", ".join(map(str, sorted(with_weights)))
        raise ValueError(f"--scored {latest}: {run} has checkpoints of {names}")
    return sampled, latest


def model_of(run: Path, version: int) -> Any:
    """The weights of a version; 0 is the end of the cold start. Raises ValueError when they are damaged."""
    from rl.checkpoints import checkpoint_at, latest_checkpoint, load_checkpoint_model

    folder = run / "checkpoints"
    found = checkpoint_at(folder, version) if version else latest_checkpoint(folder / "cold-start")
    if found is None:
        raise ValueError(f"{run}: the cold start has left no checkpoint")
    return load_checkpoint_model(found)


def temperature_of(run: Path) -> float:
    from rl.config import TrainConfig, default_fields
    from rl.run_files import read_record, with_defaults

    config = with_defaults(read_record(run)["config"], default_fields(TrainConfig))
    return float(config["rollout"]["temperature"])


def rows_of(found: "Attribution") -> list[tuple[str, float, str]]:
    """Name, nats, what it means."""
    reasons = {
        "staleness": "the weights have moved since",
        "routing": "other experts than were recorded",
        "selection": "other positions than were attended to",
        "sampling mask": "ids that could not have been sampled",
    }
    rows = [("numerics", found.numerics, "another order of the same sums, another precision")]
    return rows + [(cause, nats, reasons[cause]) for cause, nats in found.parts.items()]


def table(found: "Attribution", sampled: int, scored: int) -> str:
    lines = [
        f"mean |log p(learner) - log p(replica)| over {found.tokens:,} sampled tokens of"
        f" {found.trajectories} episodes, in nats",
        f"sampled by version {sampled}, scored by version {scored}, nothing recorded kept",
        "",
        f"{'cause':<15}{'nats':>12}{'share':>9}   alone",
    ]
    for cause, nats, reason in rows_of(found):
        share = nats / found.total if found.total else 0.0
        alone = f"{found.alone[cause]:.3g}" if cause in found.alone else ""
        lines.append(f"{cause:<15}{nats:>12.3g}{share:>9.1%}   {alone:<10}{reason}")
    lines += [
        f"{'all':<15}{found.total:>12.3g}{1:>9.1%}",
        "",
        f"mean importance ratio {found.ratio_mean:.4f}, effective sample size {found.ess:.1%}",
    ]
    return "\n".join(lines)


def chart(found: "Attribution") -> str:
    """A bar a cause, in nats; one that lessens the difference points to the left."""
    rows = rows_of(found)
    most = max((nats for _, nats, _ in rows), default=0.0)
    least = min(0.0, *(nats for _, nats, _ in rows))
    scale = (WIDTH - NAMES - 90) / ((most - least) or 1.0)
    zero = NAMES - least * scale
    height = ROW * (len(rows) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' font-family="sans-serif" font-size="13" aria-label="mean |difference of log p| by cause, nats">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for index, (cause, nats, _) in enumerate(rows):
        y, width = ROW * index + 8, abs(nats) * scale
        left = zero if nats >= 0 else zero - width
        parts.append(
            f'<text x="{NAMES - 10}" y="{y + 13}" text-anchor="end">{cause}</text>'
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="16" fill="#2b6cb0"/>'
            f'<text x="{max(left + width, zero) + 6:.1f}" y="{y + 13}">{nats:.3g}</text>'
        )
    parts.append(
        f'<text x="{NAMES}" y="{height - 6}" fill="#555">nats; in all {found.total:.3g}</text></svg>'
    )
    return "".join(parts)
