"""Which format a directory has, which tasks it holds, and their audits one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synthesis.audit import general_agent, harbor, harbor_task, own, tau2
from synthesis.audit.boxes import Boxes
from synthesis.audit.files import Folder
from synthesis.audit.records import TaskAudit
from synthesis.corpus import MANIFEST

FORMATS = (own.FORMAT, harbor.FORMAT, tau2.FORMAT, general_agent.FORMAT)
_SIGNS = {
    own.FORMAT: f"a corpus' {MANIFEST}",
    harbor.FORMAT: "folders with task.toml and instruction.md",
    tau2.FORMAT: "a checkout with data/tau2/domains and src/tau2/domains",
    general_agent.FORMAT: "folders with task.toml, tools.py and db.json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    mutants: int = 20
    """Damaged solutions played for each task, at most."""
    ignore_image: bool = False
    """Harbor tasks are played in the box's own system, whatever image they name."""

    def __post_init__(self) -> None:
        if not 0 <= self.mutants <= 1000:
            raise ValueError(f"--mutants must lie in 0 to 1000, got {self.mutants}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tasks:
    """Tasks of one directory, all of one format. `names`: those to audit, in order."""

    kind: str
    root: Path
    names: tuple[str, ...]

    @property
    def needs_boxes(self) -> bool:
        return self.kind != own.FORMAT

    def audit(self, boxes: Boxes | None, config: AuditConfig) -> Iterator[TaskAudit]:
        """One record a task, also for each that cannot be run. boxes: None where none is needed."""
        if self.kind == own.FORMAT:
            yield from own.audit(self.root, self.names)
            return
        assert boxes is not None, "foreign code runs in boxes"
        if self.kind == tau2.FORMAT:
            yield from self._audit_tau2(boxes, config)
            return
        folders = [(name, Folder(self.root if name == "." else self.root / name)) for name in self.names]
        if self.kind == general_agent.FORMAT:
            yield from general_agent.audit(folders, boxes, mutants=config.mutants)
        else:
            yield from harbor.audit(folders, boxes, mutants=config.mutants, ignore_image=config.ignore_image)

    def _audit_tau2(self, boxes: Boxes, config: AuditConfig) -> Iterator[TaskAudit]:
        checkout = Folder(self.root)
        by_domain: dict[str, list[str]] = {}
        for name in self.names:
            by_domain.setdefault(name.split("/")[0], []).append(name)
        for domain, names in by_domain.items():
            whole = None if names == [domain] else names
            yield from tau2.audit(checkout, domain, whole, boxes, mutants=config.mutants)


def find_tasks(path: Path, *, kind: str | None = None, only: str = "", limit: int | None = None) -> Tasks:
    """The tasks of a directory whose names contain `only`, the first `limit`.

    kind: one of FORMATS; None finds out. Raises ValueError, one line, where there is nothing of that format.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory; give one that holds tasks")
    kind = kind or _kind_of(path)
    names = _names(path, kind)
    if not names:
        raise ValueError(f"{path}: holds nothing of format {kind}; expected {_SIGNS[kind]}")
    chosen = tuple(name for name in names if only in name)[:limit]
    if not chosen:
        raise ValueError(
            f"{path}: none of its {len(names)} tasks has {only!r} in its name, such as {names[0]!r}"
        )
    return Tasks(kind=kind, root=path, names=chosen)


def _kind_of(path: Path) -> str:
    folder = Folder(path)
    if folder.has(MANIFEST):
        return own.FORMAT
    if tau2.is_checkout(folder):
        return tau2.FORMAT
    for kind in (general_agent.FORMAT, harbor.FORMAT):
        if _names(path, kind):
            return kind
    if folder.has("task.yaml") or any(folder.below(name).has("task.yaml") for name in folder.children()):
        raise ValueError(
            f"{path}: Terminal-Bench 1 tasks (task.yaml) are not read; convert them to Harbor's layout"
        )
    raise ValueError(f"{path}: no tasks of a known format; expected {', or '.join(_SIGNS.values())}")


def _names(path: Path, kind: str) -> list[str]:
    folder = Folder(path)
    if kind == own.FORMAT:
        return own.task_ids(path) if folder.has(MANIFEST) else []
    if kind == tau2.FORMAT:
        if not tau2.is_checkout(folder):
            return []
        # A domain without readable tasks keeps its place, so that the report says why.
        return [name for domain in tau2.domains(folder) for name in tau2.task_ids(folder, domain) or [domain]]
    is_task = general_agent.is_task if kind == general_agent.FORMAT else _is_harbor
    if is_task(folder):
        return ["."]
    found = [name for name in folder.children() if is_task(folder.below(name))]
    for inner in folder.children():
        below = folder.below(inner)
        found += [f"{inner}/{name}" for name in below.children() if is_task(below.below(name))]
    return found


def _is_harbor(folder: Folder) -> bool:
    return harbor_task.is_task(folder) and not general_agent.is_task(folder)
