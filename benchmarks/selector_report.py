"""What the selectors came to, as a table and as a picture: means over seeds, with the lowest and highest."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

ORDER = ("dense", "oracle", "lightning", "lsh", "window", "random")
Result = dict[str, Any]


def _of(results: list[Result], task: str, selector: str) -> list[Result]:
    return [r for r in results if r["task"] == task and r["selector"] == selector]


def _lengths(results: list[Result], task: str) -> list[int]:
    return sorted({int(length) for r in results if r["task"] == task for length in r["exams"]})


def _known(results: list[Result], task: str) -> list[str]:
    return [name for name in ORDER if _of(results, task, name)]


def spread(values: list[float], places: int) -> str:
    """`0.98 (0.97 to 0.99)`; one value alone has no range."""
    middle = f"{mean(values):.{places}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{places}f} to {max(values):.{places}f})"


def table(results: list[Result]) -> str:
    """Markdown: a table a task and length."""
    lines: list[str] = []
    for task in sorted({r["task"] for r in results}):
        for length in _lengths(results, task):
            lines += [f"{task}, {length:,} tokens", ""]
            lines += ["| selector | accuracy | loss, nats | recall | recall at targets | MACs | seeds |"]
            lines += ["|---|---|---|---|---|---|---|"]
            for name in _known(results, task):
                found = [r for r in _of(results, task, name) if str(length) in r["exams"]]
                exams = [r["exams"][str(length)] for r in found]
                cells = [spread([exam[key] for exam in exams], 3) for key in ("accuracy", "loss")]
                cells += [spread([e[key] for e in exams], 2) for key in ("recall", "recall_at_targets")]
                cells += [f"{found[0]['macs'][str(length)]:,}", str(len(found))]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _curve(axis: Any, name: str, places: list[int], values: list[list[float]]) -> None:
    """Means, and a band from the lowest to the highest of the seeds."""
    colour = f"C{ORDER.index(name)}"
    axis.plot(
        places, [mean(v) for v in values], "o--" if name == "oracle" else "o-", color=colour, label=name
    )
    axis.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2)


Panel = Callable[[Any, list[Result]], None]


def _accuracy_by_length(axis: Any, results: list[Result]) -> None:
    lengths = _lengths(results, "retrieval")
    for name in _known(results, "retrieval"):
        found = _of(results, "retrieval", name)
        _curve(axis, name, lengths, [[r["exams"][str(n)]["accuracy"] for r in found] for n in lengths])
    axis.set(title="retrieval: right answers", xlabel="tokens of context", xscale="log", ylim=(-0.03, 1.03))
    axis.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])


def _accuracy_by_distance(axis: Any, results: list[Result]) -> None:
    length = _lengths(results, "retrieval")[-1]
    for name in _known(results, "retrieval"):
        found = [r["exams"][str(length)]["by_reach"] for r in _of(results, "retrieval", name)]
        reaches = sorted(set.intersection(*({int(reach) for reach in r} for r in found)))
        _curve(axis, name, reaches, [[r[str(n)]["accuracy"] for r in found] for n in reaches])
    axis.set(
        title=f"retrieval at {length:,}: by distance", xlabel="tokens back, at least", ylim=(-0.03, 1.03)
    )


def _loss_by_position(axis: Any, results: list[Result]) -> None:
    """What each selector loses against dense attention of the same seed."""
    length = _lengths(results, "text")[-1]

    def by_reach(name: str) -> dict[int, dict[str, Any]]:
        return {r["seed"]: r["exams"][str(length)]["by_reach"] for r in _of(results, "text", name)}

    dense = by_reach("dense")
    for name in _known(results, "text"):
        found = by_reach(name)
        seeds = [seed for seed in found if seed in dense]
        reaches = sorted(int(reach) for reach in found[seeds[0]])
        more = [[found[s][str(n)]["loss"] - dense[s][str(n)]["loss"] for s in seeds] for n in reaches]
        _curve(axis, name, reaches, more)
    axis.set(title=f"text at {length:,}: loss above dense, nats", xlabel="tokens before, at least")


def _recall_by_work(axis: Any, results: list[Result]) -> None:
    present = {result["task"] for result in results}
    for task, marker in (("retrieval", "o"), ("text", "s")):
        if task not in present:
            continue
        length = str(_lengths(results, task)[-1])
        for name in _known(results, task):
            found = _of(results, task, name)
            share = [r["exams"][length]["recall_at_targets"] for r in found]
            work = found[0]["macs"][length]
            label = name if task == "retrieval" else None  # each name once
            axis.plot(work, mean(share), marker, color=f"C{ORDER.index(name)}", label=label)
    axis.set(
        title="attention's mass that is read",
        xlabel="multiply-adds a token and layer",
        xscale="log",
        ylim=(-0.03, 1.03),
    )


def plot(results: list[Result], path: Path) -> None:
    """A panel for each thing that the results, of one task or of both, can show."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = {result["task"] for result in results}
    panels: list[tuple[Panel, bool]] = []
    """What draws it, and whether its axis is a distance."""
    if "retrieval" in tasks:
        panels += [(_accuracy_by_length, False), (_accuracy_by_distance, True)]
    if "text" in tasks:
        panels += [(_loss_by_position, True)]
    panels += [(_recall_by_work, False)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.25 * len(panels), 4.2), layout="constrained")
    for axis, (draw, by_distance) in zip(axes.flat, panels, strict=True):
        draw(axis, results)
        if by_distance:
            axis.set_xscale("symlog", linthresh=64)
            axis.set_xlim(left=0)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path)
