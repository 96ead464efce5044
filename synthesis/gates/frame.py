"""G10: the task's frame is what the gold's tools declare to change in the rows that it changes, and no more.

The tools that the gold calls must do what they declare: SQLite itself reports what each reads and writes.
"""

from envs.task import Call, FrameRule, GateRecord
from envs.tool_server import observe_effects
from envs.tools import Tool
from envs.world import load_image, open_image, tables_of
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G10", "frame", 1


def check(trial: Trial) -> GateRecord:
    faults = [fault for tool, call in _called(trial) if (fault := effect_fault(trial.image, tool, call))]
    derived = derived_frame(trial)
    if _as_set(derived) != _as_set(trial.task.frame):
        faults.append(f"the frame is {_as_set(trial.task.frame)}, the gold's effects give {_as_set(derived)}")
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(not faults),
        evidence=faults[0] if faults else f"{len(derived)} rows may change; effects as declared",
        version=VERSION,
    )


def _called(trial: Trial) -> list[tuple[Tool, Call]]:
    """Each tool of the gold with its first call."""
    calls: dict[str, Call] = {}
    for call in trial.task.gold.calls:
        calls.setdefault(call.tool, call)
    return [(tool, calls[tool.name]) for tool in trial.task.tools if tool.name in calls]


def effect_fault(image: bytes, tool: Tool, call: Call) -> str | None:
    """How what the tool does differs from what it declares; None when it does not."""
    reads, writes = observe_effects(image, tool, call.arguments)
    if reads != set(tool.reads):
        return f"{tool.name} declares reads {sorted(tool.reads)}, reads {sorted(reads)}"
    declared = {(write.table, write.operation, *sorted(write.columns)) for write in tool.writes}
    observed = {(write.table, write.operation, *sorted(write.columns)) for write in writes}
    if observed != declared:
        return f"{tool.name} declares writes {sorted(declared)}, makes {sorted(observed)}"
    return None


def derived_frame(trial: Trial) -> tuple[FrameRule, ...]:
    called = {call.tool for call in trial.task.gold.calls}
    declared: dict[str, set[str]] = {}
    for tool in trial.task.tools:
        if tool.name in called:
            for write in tool.writes:
                declared.setdefault(write.table, set()).update(write.columns)
    return tuple(
        FrameRule(table=table, key=key, columns=tuple(sorted(declared.get(table, set()))))
        for table, key in changed_rows(trial.image, trial.gold.final)
    )


def changed_rows(initial: bytes, final: bytes) -> list[tuple[str, str]]:
    """(table, key) of every row that differs."""
    if initial == final:
        return []
    db = open_image(final)
    db.execute("ATTACH ':memory:' AS initial")
    load_image(db, initial, schema="initial")
    changed: set[tuple[str, str]] = set()
    for table in tables_of(db):
        for a, b in (("main", "initial"), ("initial", "main")):
            rows = db.execute(f'SELECT * FROM {a}."{table}" EXCEPT SELECT * FROM {b}."{table}"')
            changed |= {(table, str(row[0])) for row in rows}
    db.close()
    return sorted(changed)


def _as_set(frame: tuple[FrameRule, ...]) -> list[tuple[str, str, str]]:
    return sorted({(rule.table, rule.key, column) for rule in frame for column in rule.columns})
