"""The parts of a pipeline's report as plain data, each from what its stages have written so far."""

import re
from dataclasses import dataclass

from rl.stages import Kind
from worldsmith.progress import duration
from worldsmith.report_sections import Score, Share, score
from worldsmith.run_directory import Record, Run, interval, items, mapping, number, read_run

FOLDER = re.compile(r"[A-Za-z0-9_-]+")
"""The names that a stage's folder may have; a link leads nowhere else."""
REFUSALS = {
    "kept": "lessons",
    "failed": "failed",
    "not_measured": "not measured",
    "suspected_hack": "suspected hack",
    "held_out": "of a held-out task",
    "copy": "copies",
    "surplus": "surplus",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    name: str
    kind: str
    domains: str
    state: str
    took: str
    link: str
    """The stage's own page, where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateRow:
    name: str
    css: str
    score: Score | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRow:
    name: str
    points: str
    interval: str
    verdict: str


def is_pipeline(run: Run) -> bool:
    return bool(items(run.info, "stages"))


def stage_records(run: Run) -> list[Record]:
    """Name, kind and domains of each stage, as texts."""
    records = []
    for entry in items(run.info, "stages"):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and FOLDER.fullmatch(name):
            domains = [str(domain) for domain in items(entry, "domains")]
            records.append({"name": name, "kind": str(entry.get("kind")), "domains": domains})
    return records


def stage_rows(run: Run) -> list[StageRow]:
    times: dict[str, float] = {}
    begun: set[str] = set()
    for entry in items(run.info, "stage_log"):
        if isinstance(entry, dict):
            name = str(entry.get("stage"))
            begun.add(name)
            times[name] = times.get(name, 0.0) + (number(entry, "seconds") or 0.0)
    rows = []
    for record in stage_records(run):
        name, folder = record["name"], run.path / record["name"]
        finished = folder.is_dir() and read_run(folder).finished
        rows.append(
            StageRow(
                name=name,
                kind=record["kind"],
                domains=", ".join(record["domains"]),
                state="finished" if finished else "under way" if name in begun else "to come",
                took=duration(times[name]) if times.get(name) else "",
                link=f"{name}/report.html" if (folder / "report.html").exists() else "",
            )
        )
    return rows


def rates(run: Run) -> list[tuple[str, list[RateRow]]]:
    """For each domain what every stage that was tried on it came to, in the stages' order."""
    table: dict[str, list[RateRow]] = {}
    for record in stage_records(run):
        folder = run.path / record["name"]
        if not folder.is_dir() or record["kind"] not in set(Kind):
            continue
        found = read_run(folder).evaluation(Kind(record["kind"]).closing)
        for domain in record["domains"]:
            row = RateRow(
                name=record["name"],
                css="after" if record["kind"] == Kind.MIXED else "before",
                score=score(mapping(mapping(found, "by_domain"), domain)),
            )
            table.setdefault(domain, []).append(row)
    return [(domain, rows) for domain, rows in table.items() if any(row.score for row in rows)]


def differences(run: Run) -> list[DifferenceRow]:
    rows = []
    for name, group in mapping(run.figures, "groups").items():
        if not isinstance(group, dict):
            continue
        difference, bounds = number(group, "difference"), interval(group)
        if difference is None or bounds is None:
            continue
        kept, shown = group.get("kept") is True, group.get("shown") is True
        rows.append(
            DifferenceRow(
                name=name,
                points=f"{100 * difference:+.1f}",
                interval=f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}",
                verdict="within, all of the interval too" if shown else "within" if kept else "too far below",
            )
        )
    return rows


def margin(run: Run) -> str:
    """In points."""
    share = number(run.info, "margin")
    return "" if share is None else f"{100 * share:g}"


def compute(run: Run) -> list[Share]:
    spent = mapping(run.figures, "compute")
    parts = [("cold start", "pretraining_flops"), ("distillation", "distillation_flops"), ("RL", "rl_flops")]
    found = [(name, number(spent, key) or 0.0) for name, key in parts]
    total = sum(flops for _, flops in found)
    return [
        Share(name=name, value=f"{flops:.2e} FLOPs", percent=100 * flops / total)
        for name, flops in found
        if flops > 0
    ]


def compute_about(run: Run) -> str:
    spent = mapping(run.figures, "compute")
    rl, both = number(spent, "rl_share"), number(spent, "post_training_share")
    if rl is None or both is None:
        return ""
    return f"RL took {100 * rl:.1f} % of the cold start's compute, RL and distillation {100 * both:.1f} %."


def lessons(run: Run) -> list[tuple[str, list[Share], str]]:
    """For each specialist what became of the episodes that it played for distillation."""
    folders = [run.path / record["name"] for record in stage_records(run) if record["kind"] == Kind.DISTILLED]
    bars = []
    for record in [line for folder in folders if folder.is_dir() for line in read_run(folder).distill]:
        counts = [(name, number(record, key) or 0.0) for key, name in REFUSALS.items()]
        total = sum(count for _, count in counts)
        shares = [
            Share(name=name, value=f"{count:,.0f}", percent=100 * count / total)
            for name, count in counts
            if count > 0
        ]
        if shares:
            bars.append((f"Episodes of {record.get('specialist')}", shares, f"{total:,.0f} played"))
    return bars
