"""The general-agent layout: each task a folder of task.toml, instruction.md, tools.py, db.json, gold.json."""

from collections.abc import Iterator, Sequence
from typing import Any

from synthesis.audit.boxes import Boxes
from synthesis.audit.files import Folder, ForeignFileError
from synthesis.audit.mutants import GoldCall, Neighbours
from synthesis.audit.packages import boxed_files, pydantic_files
from synthesis.audit.records import TaskAudit
from synthesis.audit.subjects import Stage, Subject, audit_subjects

FORMAT = "general-agent"


def is_task(folder: Folder) -> bool:
    return folder.has("tools.py") and folder.has("db.json") and folder.has("task.toml")


def audit(folders: Sequence[tuple[str, Folder]], boxes: Boxes, *, mutants: int) -> Iterator[TaskAudit]:
    """(name, folder) of each task; a task whose files cannot be read is `not run`, in its place."""
    stage = Stage(files=boxed_files() | pydantic_files(), request={"kind": FORMAT})
    subjects: list[Subject] = []
    for name, folder in folders:
        try:
            subjects.append(subject_of(name, folder))
        except ForeignFileError as error:
            yield from audit_subjects(subjects, stage, boxes, mutants=mutants)
            subjects = []
            yield TaskAudit(task=name, format=FORMAT, not_run=str(error)[:200])
    yield from audit_subjects(subjects, stage, boxes, mutants=mutants)


def subject_of(name: str, folder: Folder) -> Subject:
    """Raises ForeignFileError."""
    folder.toml("task.toml")
    database = folder.json("db.json")
    gold = _calls(folder, "gold.json")
    raw = {
        "tools": folder.text("tools.py"),
        "db": database,
        "gold": [[call.tool, call.arguments] for call in gold],
    }
    wrong = _calls(folder, "wrong.json") if folder.has("wrong.json") else None
    return Subject(
        task=name,
        format=FORMAT,
        prompt=folder.text("instruction.md"),
        gold=gold,
        raw=raw,
        neighbours=Neighbours(database),
        wrong=wrong,
    )


def _calls(folder: Folder, name: str) -> tuple[GoldCall, ...]:
    found: Any = folder.json(name)
    if not isinstance(found, list) or not all(
        isinstance(call, list) and len(call) == 2 and isinstance(call[0], str) and isinstance(call[1], dict)
        for call in found
    ):
        raise ForeignFileError(f"{folder.root / name}: not a list of [tool, arguments]")
    return tuple(GoldCall(tool=tool, arguments=arguments) for tool, arguments in found)
