"""Audits anybody's tasks: does doing nothing pay, does the reference solution, do damaged ones?

Example: worldsmith audit path/to/tasks --out report.json

Reads Harbor task folders, a tau2-bench checkout, general-agent corpora and our own (docs/audit.md). Foreign
code runs in boxes alone. A task that cannot be run here is reported with the reason and is never a pass.
Exit code 1 when a task has a fault, 3 when none has and some could not be run.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from envs.files import write_whole
from synthesis.audit.boxes import choose_boxes
from synthesis.audit.formats import FORMATS, AuditConfig, Tasks, find_tasks
from synthesis.audit.records import TaskAudit, counts, not_run, report
from worldsmith.arguments import CommandParser, did_you_mean
from worldsmith.progress import Progress

IN_PROCESS = "in this process"
MAX_SHOWN = 30


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.format is not None and args.format not in FORMATS:
        hint = did_you_mean(args.format, list(FORMATS))
        raise ValueError(f"--format: no format {args.format!r}{hint}; there are {', '.join(FORMATS)}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    config = AuditConfig(mutants=args.mutants, ignore_image=args.ignore_image)
    tasks = find_tasks(args.path, kind=args.format, only=args.only, limit=args.limit)
    if args.dry_run:
        return _show_plan(tasks, args.json)
    boxes = choose_boxes(args.tier) if tasks.needs_boxes else None
    audits: list[TaskAudit] = []
    with Progress("audit", total=len(tasks.names), unit="tasks") as progress:
        for one in tasks.audit(boxes, config):
            audits.append(one)
            faults = sum(bool(each.findings) for each in audits)
            progress.advance(note=f"{faults} with faults, {sum(bool(e.not_run) for e in audits)} not run")
    tier = boxes.tier if boxes is not None else IN_PROCESS
    result = report(audits, path=str(args.path), kind=tasks.kind, tier=tier)
    if args.out is not None:
        write_whole(args.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result) if args.json else _table(audits, result))
    if any(one.findings for one in audits):
        return 1
    return 3 if any(one.not_run for one in audits) else 0


def _parser() -> CommandParser:
    parser = CommandParser("audit", __doc__)
    parser.add_argument("path", type=Path, metavar="DIR", help="tasks, or a checkout that holds them")
    parser.add_argument("--format", metavar="F", help=f"{', '.join(FORMATS)} (default: found out)")
    parser.add_argument(
        "--tier",
        default="auto",
        choices=("auto", "docker", "namespaces"),
        help="of the boxes (default: auto)",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="tasks whose names contain TEXT")
    parser.add_argument("--limit", type=int, metavar="N", help="audit only the first N tasks (default: all)")
    parser.add_argument(
        "--mutants", type=int, default=AuditConfig().mutants, metavar="N",
        help="damaged solutions played for each foreign task, at most (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-image",
        action="store_true",
        help="play Harbor tasks without their image; the report says so",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON report here")
    parser.add_argument("--dry-run", action="store_true", help="list what would be audited and run nothing")
    parser.add_argument(
        "--json", action="store_true", help="the JSON report on the last line of standard output"
    )
    return parser


def _show_plan(tasks: Tasks, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"format": tasks.kind, "tasks": list(tasks.names)}))
        return 0
    for name in tasks.names[:MAX_SHOWN]:
        print(name)
    if len(tasks.names) > MAX_SHOWN:
        print(f"and {len(tasks.names) - MAX_SHOWN} more")
    where = "in boxes" if tasks.needs_boxes else IN_PROCESS
    print(f"{len(tasks.names):,} tasks of format {tasks.kind} would be audited {where}")
    return 0


def _table(audits: list[TaskAudit], result: dict[str, Any]) -> str:
    lines = [f"{'task':<44}{'null':>6}{'gold':>6}{'mutants':>9}{'harm':>6}  faults"]
    faulty = [one for one in audits if one.findings]
    lines += [_row(one) for one in (faulty or audits)[:MAX_SHOWN]]
    if len(faulty) > MAX_SHOWN:
        lines.append(f"and {len(faulty) - MAX_SHOWN} more with faults (--out FILE lists all)")
    lines.append("")
    lines += [f"{count.name:<52}{count.text()}" for count in counts(audits)]
    lines.append(f"{'with faults / audited / all':<52}{len(faulty)} / {result['audited']} / {len(audits)}")
    for reason, number in not_run(audits).most_common(10):
        lines.append(textwrap.shorten(f"not run {number}: {reason}", 200))
    return "\n".join(lines)


def _row(one: TaskAudit) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    killed = f"{one.killed}/{one.mutants}" if one.mutants else "-"
    refused = f"{one.damages - len(one.damage_accepted)}/{one.damages}" if one.damages else "-"
    null = shown(one.null_reward) + "*" * bool(one.unmeasured)
    faults = ", ".join(one.findings) or (f"not run: {one.not_run}" if one.not_run else "none")
    return f"{one.task[:43]:<44}{null:>6}{shown(one.gold_reward):>6}{killed:>9}{refused:>6}  {faults[:90]}"
