"""tau2-bench domains: data and tools of a checkout that the user names, played in boxes by its own code."""

from collections.abc import Iterator, Sequence
from typing import Any

from synthesis.audit.boxes import Boxes
from synthesis.audit.files import Folder, ForeignFileError
from synthesis.audit.mutants import GoldCall, Neighbours
from synthesis.audit.packages import boxed_files, pydantic_files
from synthesis.audit.records import TaskAudit
from synthesis.audit.subjects import Stage, Subject, audit_subjects

FORMAT = "tau2"
DOMAINS = "data/tau2/domains"
SOURCE = "src/tau2"
SOURCE_FOLDERS = ("domains", "environment", "data_model", "utils")
"""Of the checkout's package; its own __init__ imports the model clients, so an empty one takes its place."""
MAX_DATA_BYTES = 32 << 20
_TEXT = (".json", ".md", ".toml")


def is_checkout(folder: Folder) -> bool:
    return folder.is_folder(DOMAINS) and folder.is_folder(f"{SOURCE}/domains")


def domains(checkout: Folder) -> list[str]:
    return checkout.below(DOMAINS).children()


def task_ids(checkout: Folder, domain: str) -> list[str]:
    """`DOMAIN/ID` of each task; none where tasks.json cannot be read."""
    try:
        return [f"{domain}/{task.get('id')}" for task in _tasks(checkout, domain)]
    except ForeignFileError:
        return []


def audit(
    checkout: Folder, domain: str, wanted: Sequence[str] | None, boxes: Boxes, *, mutants: int
) -> Iterator[TaskAudit]:
    """The audits of one domain's tasks, `wanted` alone where given; all are `not run` where the domain lacks
    its files.
    """
    try:
        tasks = _tasks(checkout, domain)
        stage, neighbours, policy = _stage(checkout, domain)
    except ForeignFileError as error:
        for name in wanted or [domain]:
            yield TaskAudit(task=name, format=FORMAT, not_run=str(error)[:200])
        return
    chosen = [task for task in tasks if wanted is None or f"{domain}/{task.get('id')}" in wanted]
    subjects = [_subject(domain, task, neighbours, policy) for task in chosen]
    yield from audit_subjects(subjects, stage, boxes, mutants=mutants)


def _tasks(checkout: Folder, domain: str) -> list[dict[str, Any]]:
    name = f"{DOMAINS}/{domain}/tasks.json"
    found = checkout.json(name, max_bytes=MAX_DATA_BYTES)
    if not isinstance(found, list) or not all(isinstance(task, dict) for task in found):
        raise ForeignFileError(f"{checkout.root / name}: not a list of tasks")
    return found


def _stage(checkout: Folder, domain: str) -> tuple[Stage, Neighbours, str]:
    source = checkout.below(SOURCE)
    files = boxed_files() | pydantic_files() | {"checkout/src/tau2/__init__.py": b""}
    for folder in SOURCE_FOLDERS:
        files |= _python(source.below(folder), f"checkout/src/tau2/{folder}")
    for name in ("config.py", "voice_config.py"):
        if source.has(name):
            files[f"checkout/src/tau2/{name}"] = source.read(name)
    data = checkout.below(f"{DOMAINS}/{domain}")
    databases: list[Any] = []
    policy = ""
    for name in sorted(path.name for path in data.root.iterdir()):
        if name.endswith(_TEXT) and data.has(name) and not name.startswith(("tasks", "audio")):
            files[f"checkout/data/tau2/domains/{domain}/{name}"] = data.read(name, max_bytes=MAX_DATA_BYTES)
        if name == "policy.md":
            policy = data.text(name)
    for name, read in (("db.json", data.json), ("db.toml", data.toml), ("user_db.toml", data.toml)):
        if data.has(name):
            databases.append(read(name, max_bytes=MAX_DATA_BYTES))
    if not databases:
        raise ForeignFileError(f"{data.root}: no db.json and no db.toml; is the checkout complete?")
    request = {
        "kind": FORMAT,
        "domain": domain,
        "source": "/tmp/audit/checkout/src",
        "data": "/tmp/audit/checkout/data",
    }
    return Stage(files=files, request=request), Neighbours(databases), policy


def _python(folder: Folder, where: str) -> dict[str, bytes]:
    return {f"{where}/{name}": content for name, content in folder.files().items() if name.endswith(".py")}


def _subject(domain: str, task: dict[str, Any], neighbours: Neighbours, policy: str) -> Subject:
    criteria = _dict(task.get("evaluation_criteria"))
    listed = criteria.get("actions")
    actions = [action for action in _list(listed) if isinstance(action, dict)]
    gold = tuple(
        GoldCall(
            tool=str(action.get("name", "")),
            arguments=_dict(action.get("arguments")),
            requestor=str(action.get("requestor", "assistant")),
        )
        for action in actions
    )
    ticket = task.get("ticket")
    return Subject(
        task=f"{domain}/{task.get('id')}",
        format=FORMAT,
        prompt=f"{policy}\n{ticket or ''}",
        gold=gold if isinstance(listed, list) else None,
        says=tuple(str(info) for info in _list(criteria.get("communicate_info"))),
        raw=task,
        neighbours=neighbours,
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
