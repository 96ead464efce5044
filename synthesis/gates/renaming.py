"""A task under other names: the same rows, facts and conditions, with the names of things changed."""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from envs.task import Call, Clause, Plan, Task
from envs.world import columns_of, open_image, tables_of
from synthesis.gates.trial import Trial
from synthesis.grammar import Draft

_NAME = re.compile(r"[A-Za-z][\w-]*(?: [A-Za-z][\w-]*)*")
_LITERAL = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True)
class Renaming:
    """`names`: each old name with the new one; a one-to-one map. It never touches tools."""

    kind: str
    names: Mapping[str, str]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.names, key=lambda name: (-len(name), name))
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")

    def text(self, text: str) -> str:
        """Every name that stands in the text as whole words."""
        return self._pattern.sub(lambda found: self.names[found[0]], text)

    def value(self, value: Any) -> Any:
        """Any value of a goal: texts, and what holds texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(self.value(each) for each in value)
        if is_dataclass(value) and not isinstance(value, type):
            new = {f.name: self.value(getattr(value, f.name)) for f in fields(value) if f.init}
            return replace(value, **new)
        return value

    def plan(self, plan: Plan) -> Plan:
        calls = tuple(
            Call(tool=call.tool, arguments={name: self.value(each) for name, each in call.arguments.items()})
            for call in plan.calls
        )
        return Plan(calls=calls, answer=self.text(plan.answer))

    def clause(self, clause: Clause) -> Clause:
        sql = _LITERAL.sub(lambda found: "'" + self.text(found[1]) + "'", clause.sql)
        return replace(clause, sql=sql)

    def task(self, task: Task) -> Task:
        return replace(
            task,
            prompt=tuple(replace(m, content=self.text(m.content)) for m in task.prompt),
            clauses=tuple(map(self.clause, task.clauses)),
            frame=tuple(replace(rule, key=self.text(rule.key)) for rule in task.frame),
            gold=self.plan(task.gold),
        )

    def draft(self, draft: Draft) -> Draft:
        return replace(
            draft,
            goal=self.value(draft.goal),
            prompt=self.text(draft.prompt),
            system=self.text(draft.system),
            tables=(),  # a planner must not look at them
        )

    def image(self, image: bytes) -> bytes:
        with closing(open_image(image)) as db:
            for table in tables_of(db):
                rows = db.execute(f'SELECT * FROM "{table}"').fetchall()
                marks = ", ".join("?" * len(columns_of(db, table)))
                new = [tuple(self._cell(cell) for cell in row) for row in rows]
                if new != rows:
                    db.execute(f'DELETE FROM "{table}"')
                    db.executemany(f'INSERT INTO "{table}" VALUES ({marks})', new)
            return db.serialize()

    def _cell(self, cell: object) -> object:
        return self.text(cell) if isinstance(cell, str) else cell


def renamings(trial: Trial) -> Iterator[Renaming]:
    """First the names change places among themselves; then, where their order matters, get new endings."""
    groups = _groups(trial)
    moved = {old: new for group in groups for old, new in zip(group, [*group[1:], *group[:1]], strict=True)}
    if moved:
        yield Renaming("changed places", moved)
        yield Renaming("got new endings", {name: f"{name}q" for name in moved})


def _groups(trial: Trial) -> list[list[str]]:
    """The names of rows, those that share a column together. Only names that the task can mean are changed:
    words that tools, conditions or an answer's form use otherwise keep their sense.
    """
    first: dict[str, str] = {}
    for table, column in trial.cells:
        first.setdefault(table, column)
    kept = _words_of_the_machinery(trial.task)
    groups: list[set[str]] = []
    for table, column in first.items():
        names = {
            value
            for value in trial.columns[table, column]
            if isinstance(value, str) and _NAME.fullmatch(value) and value not in kept
        }
        for group in [group for group in groups if group & names]:
            groups.remove(group)
            names |= group
        if len(names) > 1:
            groups.append(names)
    return [sorted(group) for group in groups]


def _words_of_the_machinery(task: Task) -> set[str]:
    """What a tool's SQL, its choices or the answer's form spell out: renamed, it would mean nothing."""
    words = set(task.answer.choices) | set(task.answer.columns)
    for tool in task.tools:
        words |= {choice for param in tool.parameters for choice in param.enum}
        texts = [*tool.statements, *(need.sql for need in tool.requires), tool.query or ""]
        words |= {literal for text in texts for literal in _LITERAL.findall(text)}
    return words
