"""Markdown tables and a plot of what `benchmarks.stabilisers` measured."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.mismatch import VARIANTS

Cells = Sequence[dict[str, Any]]

COLUMNS = (
    ("mean \\|Δ\\|", "drift_mean", ".2g"),
    ("99 %", "drift_p99", ".2g"),
    ("largest", "drift_max", ".2g"),
    ("mean ratio", "ratio_mean", ".4f"),
    ("ESS, tokens", "ess", ".1%"),
    ("ESS, episodes", "ess_episodes", ".1%"),
    ("masked rows", "masked", ".1%"),
    ("clipped", "clipped", ".1%"),
    ("g: error", "gradient_error", ".2f"),
    ("g: cosine", "gradient_cosine", ".3f"),
    ("g: moved", "gradient_moved", ".2f"),
)


def tables(mismatch: dict[str, Any], curves: Cells) -> str:
    parts = [mismatch_table(mismatch), kl_table(mismatch), curve_table(curves)]
    return "\n".join(part for part in parts if part)


def mismatch_table(mismatch: dict[str, Any]) -> str:
    """One row a variant, for each engine and staleness."""
    if not mismatch["cells"]:
        return ""
    told = mismatch["reference"]
    lines = [
        f"right gradient: {told['episodes']:,} episodes, pass rate {told['pass_rate']:.3f}; cosine of its"
        f" halves {told['halves_cosine']:.3f}",
        "",
        "| engine, updates old | | " + " | ".join(name for name, _, _ in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    last = ""
    for one in mismatch["cells"]:
        where = f"{one['dtype']}, {one['stale']}"
        figures = " | ".join(format(one[key], form) for _, key, form in COLUMNS)
        lines.append(f"| {where if where != last else ''} | {one['variant']} | {figures} |")
        last = where
    return "\n".join(lines) + "\n"


def kl_table(mismatch: dict[str, Any]) -> str:
    """One row an estimator, for each staleness."""
    if "kl" not in mismatch:
        return ""
    lines = [
        "| updates old | KL by | value, nats a token | gradient: error | gradient: cosine |",
        "|---|---|---|---|---|",
    ]
    for stale, estimators in mismatch["kl"].items():
        for number, (name, one) in enumerate(estimators.items()):
            figures = f"{one['value']:.3g} | {one['gradient_error']:.3g} | {one['gradient_cosine']:.3f}"
            lines.append(f"| {'' if number else stale} | {name} | {figures} |")
    return "\n".join(lines) + "\n"


def by_variant(curves: Cells) -> dict[str, list[dict[str, Any]]]:
    """In the order of the variants' first seeds."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in curves:
        found[one["variant"]].append(one)
    return {v.name: found[v.name] for v in VARIANTS if v.name in found}


def curve_table(curves: Cells) -> str:
    """Held-out pass rates: the last of each seed, and the mean over seeds at every evaluation."""
    if not curves:
        return ""
    steps = curves[0]["steps"]
    head = " | ".join(f"after {step}" for step in steps)
    lines = [
        f"| | {head} | last, by seed | last against everything on, by seed | rows masked | tokens clipped |",
        "|---|" + "---|" * (len(steps) + 4),
    ]
    groups = by_variant(curves)
    base = {one["seed"]: one["heldout"][-1] for one in next(iter(groups.values()))}
    for name, runs in groups.items():
        means = " | ".join(f"{mean(run['heldout'][i] for run in runs):.3f}" for i in range(len(steps)))
        last = ", ".join(f"{run['heldout'][-1]:.2f}" for run in runs)
        gaps = ", ".join(
            f"{run['heldout'][-1] - base[run['seed']]:+.2f}" for run in runs if run["seed"] in base
        )
        masked = mean(mean(run["training masked_share"]) for run in runs)
        clipped = mean(mean(run["training clip_share"]) for run in runs)
        lines.append(f"| {name} | {means} | {last} | {gaps} | {masked:.1%} | {clipped:.1%} |")
    return "\n".join(lines) + "\n"


def plot(mismatch: dict[str, Any], curves: Cells, path: Path) -> None:
    """Left: mean |Δ log p| over staleness, of the bfloat16 engine. Right: held-out pass rates, each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    colours: dict[str, str] = {}
    lines: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in mismatch["cells"]:
        colours.setdefault(one["variant"], f"C{len(colours)}")
        if one["dtype"] == "bfloat16" and one["variant"] != "off-policy masking off":
            lines[one["variant"]].append((one["stale"], one["drift_mean"]))
    for name, points in lines.items():
        axes[0].plot(*zip(*points, strict=True), "o-", color=colours[name], label=name)
    axes[0].set(
        yscale="log", xlabel="updates old", title="mean |log p(learner) - log p(bfloat16 engine)|, nats"
    )
    axes[0].legend(fontsize=8)
    for name, runs in by_variant(curves).items():
        colour = colours.setdefault(name, f"C{len(colours)}")
        for run in runs:
            axes[1].plot(run["steps"], run["heldout"], color=colour, alpha=0.25, linewidth=1)
        means = [mean(run["heldout"][i] for run in runs) for i in range(len(runs[0]["steps"]))]
        axes[1].plot(runs[0]["steps"], means, "o-", color=colour, label=name)
    axes[1].set(xlabel="updates", title="held-out pass rate: mean and each seed")
    axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
