"""The parts of a run's report as plain data, each from what the run has written so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from worldsmith.charts import Axes, Line, Mark, line_chart, sparkline, thinned, trailing_mean
from worldsmith.progress import duration
from worldsmith.run_directory import Record, Run, interval, items, mapping, number


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A pass rate with its 95 % interval, all as shares of 1."""

    rate: float
    low: float
    high: float
    episodes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    name: str
    unseen: bool
    before: Score | None
    after: Score | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One piece of a bar that adds up to a whole."""

    name: str
    value: str
    percent: float


def score(record: Record | None) -> Score | None:
    rate = number(record, "pass_rate")
    if rate is None:
        return None
    low, high = interval(record) or (rate, rate)
    episodes = number(record, "episodes")
    return Score(rate=rate, low=low, high=high, episodes=None if episodes is None else int(episodes))


def latest_evaluation(run: Run) -> Record | None:
    """After training, or the last one on the way there."""
    on_the_way = [one for one in run.evaluations if str(one.get("when", "")).startswith("step-")]
    return run.evaluation("after") or (on_the_way[-1] if on_the_way else None)


def headline(run: Run) -> dict[str, Any]:
    before, latest = run.evaluation("before"), latest_evaluation(run)
    first, last = score(before), score(latest)
    when = str((latest or {}).get("when", "after"))
    return {
        "before": first,
        "after": last,
        "after_name": "after RL" if when == "after" else f"at RL {when.replace('-', ' ')}",
        "gain": points_gained(first, last),
        "apart": first is not None and last is not None and first.high < last.low,
        "greedy": [number(before, "greedy_pass_rate"), number(latest, "greedy_pass_rate")],
        "unseen": unseen_rows(run, before, latest),
        "baselines": baselines(run),
    }


def unseen_rows(run: Run, before: Record | None, latest: Record | None) -> list[ScoreRow]:
    """The levels that no demonstration shows: all of them together, then one by one."""
    rows = [row for row in score_rows(run, "by_level") if row.unseen]
    together = score(mapping(before, "unseen")), score(mapping(latest, "unseen"))
    if len(rows) > 1 and any(together):
        rows.insert(0, ScoreRow(name="all", unseen=True, before=together[0], after=together[1]))
    return rows


def points_gained(before: Score | None, after: Score | None) -> float | None:
    return None if before is None or after is None else 100 * (after.rate - before.rate)


def baselines(run: Run) -> list[tuple[str, Score]]:
    """The last score of each scripted policy."""
    latest = {
        str(record["policy"]): found for record in run.baselines if (found := score(record)) is not None
    }
    return [(name, latest[name]) for name in ("null", "random", "greedy", "oracle") if name in latest]


def score_rows(run: Run, key: str) -> list[ScoreRow]:
    """Pass rates by level or by domain, before and after, in order of name."""
    before, after = mapping(run.evaluation("before"), key), mapping(latest_evaluation(run), key)
    rows = []
    for name in sorted({*before, *after}):
        both = [mapping(before, name), mapping(after, name)]
        rows.append(
            ScoreRow(
                name=name.replace("/", " · level ") if key == "by_level" else name,
                unseen=any(one.get("unseen") is True for one in both),
                before=score(both[0]),
                after=score(both[1]),
            )
        )
    return rows


def learning_curve(run: Run) -> Markup:
    raw = series(run.rl, "pass_rate") or series(run.rl, "reward_mean")
    smooth = trailing_mean(raw, max(1, len(raw) // 12))
    lines = [
        Line(name="training tasks, each step", css="faint", points=thinned(raw)),
        Line(name="training tasks, smoothed", css="series-2", points=thinned(smooth)),
    ]
    axes = Axes(x_label="RL step", y_label="pass rate", percent=True)
    return line_chart(lines, axes, held_out_marks(run))


def held_out_marks(run: Run) -> list[Mark]:
    last_step = run.rl[-1]["step"] if run.rl else 0
    marks = {}
    for record in run.evaluations:
        when, found = str(record.get("when", "")), score(record)
        step = {"before": 0, "after": last_step}.get(when)
        if step is None and when.removeprefix("step-").isdecimal():
            step = int(when.removeprefix("step-"))
        if found is not None and step is not None:
            title = f"held out, {when}: {percent(found.rate)} ({percent(found.low)} to {percent(found.high)})"
            marks[step] = Mark(x=step, y=found.rate, low=found.low, high=found.high, title=title)
    return [marks[step] for step in sorted(marks)]


def cold_start_curve(run: Run) -> Markup:
    loss = series(run.cold_start, "loss")
    smooth = trailing_mean(loss, max(1, len(loss) // 40))
    lines = [
        Line(name="loss, each step", css="faint", points=thinned(loss)),
        Line(name="loss, smoothed", css="series-1", points=thinned(smooth)),
    ]
    return line_chart(lines, Axes(x_label="cold-start step", y_label="loss", log_y=True))


def rl_signals(run: Run) -> list[dict[str, Any]]:
    """Small curves of what tells a healthy RL run from a sick one."""
    wanted = [
        ("signal_share", "groups with a signal", "share of groups whose rewards differ"),
        ("entropy", "entropy", "nats a token"),
        ("kl", "KL to the start", "nats a token"),
        ("ratio_mean", "mean ratio", "trainer's probability over the engine's"),
        ("clip_share", "clipped tokens", "share of the trained tokens"),
        ("masked_share", "masked sequences", "share left out as too far off policy"),
        ("grad_norm", "gradient norm", "before clipping"),
        ("response_tokens_mean", "response length", "tokens an episode"),
    ]
    signals = []
    for key, name, meaning in wanted:
        values = [y for _, y in thinned(series(run.rl, key), 120)]
        if values:
            curve = sparkline(values)
            signals.append({"name": name, "meaning": meaning, "last": f"{values[-1]:.3g}", "curve": curve})
    return signals


def series(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    return [(record["step"], y) for record in records if (y := number(record, key)) is not None]


def time_split(run: Run) -> list[Share]:
    """Seconds by stage; the RL stage by what it did: generation, environment, training and the rest."""
    seconds: dict[str, float] = {}
    for entry in items(run.info, "stage_log"):
        spent = number(entry, "seconds") if isinstance(entry, dict) else None
        if spent is not None:
            stage = str(entry.get("stage"))
            seconds[stage] = seconds.get(stage, 0.0) + spent
    parts = {
        f"RL: {name}": sum(number(record, f"seconds_{name}") or 0.0 for record in run.rl)
        for name in ("generation", "environment", "training")
    }
    if sum(parts.values()):
        # While the stage is under way its own entry has no seconds yet: then the parts stand alone.
        parts["RL: other"] = max(0.0, seconds.get("rl", 0.0) - sum(parts.values()))
        stages = list((seconds | {"rl": 0.0}).items())
        seconds = {}
        for name, spent in stages:
            seconds |= parts if name == "rl" else {name: spent}
    total = sum(seconds.values())
    return [
        Share(name=name.replace("_", " "), value=duration(spent), percent=100 * spent / total)
        for name, spent in seconds.items()
        if spent > 0
    ]


def compute_split(run: Run) -> list[Share]:
    cold, rl = number(run.compute, "cold_start_flops"), number(run.compute, "rl_flops")
    if cold is None or rl is None or cold + rl <= 0:
        return []
    total = cold + rl
    return [
        Share(name="cold start", value=f"{cold:.2e} FLOPs", percent=100 * cold / total),
        Share(name="RL", value=f"{rl:.2e} FLOPs", percent=100 * rl / total),
    ]


def compute_ratio(run: Run) -> float | None:
    """RL's compute as a share of the cold start's."""
    cold, rl = number(run.compute, "cold_start_flops"), number(run.compute, "rl_flops")
    return rl / cold if cold and rl is not None else None


def causes(run: Run, last_steps: int = 20) -> list[Share]:
    """Why the episodes of the last RL steps ended."""
    counts: dict[str, float] = {}
    for record in run.rl[-last_steps:]:
        for cause, count in mapping(record, "causes").items():
            counts[cause] = counts.get(cause, 0.0) + (number({"n": count}, "n") or 0.0)
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [
        Share(name=cause.replace("_", " "), value=f"{count:,.0f}", percent=100 * count / total)
        for cause, count in ordered
        if count > 0
    ]


def percent(share: float | None) -> str:
    """`62.4%`, and `100%` and `0%` without a fraction."""
    if share is None:
        return "–"
    value = 100 * share
    return f"{value:.0f}%" if value in (0.0, 100.0) else f"{value:.1f}%"
