"""The records that everything shares: World, Task, Gold, Quality, and their JSON form and content hashes.

A task file is data alone: prompt, tools (SQL, see `envs.tools`), clauses (SQL that returns what violates
them), frame, answer form, gold calls, quality. Loading one validates every field and runs nothing.

Words: a *clause* is one condition of the goal, the policy or the answer; the *frame* is what an episode may
change; the *gold* is the reference solution; the *guess space* is what an agent that reads nothing chooses
from.
"""

import hashlib
import json
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from envs.tools import STRICT, Tool

TASK_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Call:
    """One tool call, by an agent or in a gold."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Message:
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[Call, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Clause:
    """One condition. `sql` returns the rows that violate it; no row: it holds.

    It sees the final tables as they are, the first ones as `initial.TABLE`, the journal as `journal(step,
    tool, arguments, result, error)` and the answer's rows as `answer(row, COLUMNS...)`.
    """

    name: str
    part: Literal["goal", "policy", "answer"]
    sql: str
    phrase: str = ""
    """How the prompt or the policy document says it."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class FrameRule:
    """A change that an episode may make: the named columns of the row of `table` whose first column is
    `key`.
    """

    table: str
    key: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class AnswerSpec:
    """The form of the final answer.

    rows: a JSON list of `num_rows` objects with exactly `columns` as keys and strings as values.
    choice: text equal to one of `choices` up to case, outer space and a final full stop.
    """

    kind: Literal["rows", "choice"]
    columns: tuple[str, ...] = ()
    num_rows: int = 1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Plan:
    """Calls and a final answer: a gold, or one choice of an agent that guesses."""

    calls: tuple[Call, ...]
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Slot:
    """One place of the answer (`row`, `column`) and the values that a guess draws from."""

    row: int
    column: str
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class GuessSpace:
    """What an agent chooses from, uniformly, when it looks at nothing: whole plans, or one value a slot.

    fixed: the answer's cells that the prompt itself gives away, as (row, column, value).
    """

    plans: tuple[Plan, ...] = ()
    slots: tuple[Slot, ...] = ()
    fixed: tuple[tuple[int, str, str], ...] = ()
    submit_tool: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class GateRecord:
    """What one gate found: a number, whether it suffices, and the evidence in short."""

    gate: str
    passed: bool
    value: float
    evidence: str
    version: int = 1


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Provenance:
    generator: str
    generator_version: int
    seed: int
    lineage: tuple[str, ...] = ()
    """The ids of the easier tasks that this one was raised from, oldest first."""
    twin_of: Annotated[str, Field(exclude_if=lambda task_id: not task_id)] = ""
    """The id of the task whose counterfactual twin this is; empty, and then in no file: it is none."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class WorldRef:
    """Which world: whoever has (generator, version, seed) can build it again; `content_hash` says whether
    it is it.
    """

    generator: str
    generator_version: int
    seed: int
    content_hash: str


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Task:
    """One task. Example id: `trip-2-0000017-9f2c1a` (domain, level, index, the start of its content hash)."""

    task_id: str
    family: str
    domain: str
    level: int
    world: WorldRef
    prompt: tuple[Message, ...]
    tools: tuple[Tool, ...]
    clauses: tuple[Clause, ...]
    frame: tuple[FrameRule, ...]
    answer: AnswerSpec
    gold: Plan
    guess: GuessSpace
    max_turns: int
    provenance: Provenance
    requires: tuple[str, ...] = ()
    """Capabilities that the box must have been proved to hold; empty: the trusted in-process surface will
    do.
    """
    quality: tuple[GateRecord, ...] = ()
    version: int = TASK_VERSION

    def tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)


@lru_cache(maxsize=1)
def _task_adapter() -> TypeAdapter[Task]:
    return TypeAdapter(Task)


def task_to_json(task: Task) -> str:
    """The canonical JSON form: keys sorted, no spaces, so that equal tasks are equal bytes."""
    return canonical_json(_task_adapter().dump_python(task, mode="json"))


def task_from_json(text: str | bytes, *, where: str = "task") -> Task:
    """Parses and validates a task file's row. Raises ValueError with one line: where, which field, what is
    wrong.
    """
    try:
        task = _task_adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        raise ValueError(
            f"{where}: {field}: {first['msg']} ({error.error_count()} fault(s) in all)"
        ) from None
    if task.version != TASK_VERSION:
        raise ValueError(f"{where}: task version {task.version}, this program reads version {TASK_VERSION}")
    return task


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(value: object) -> str:
    return _CANONICAL.encode(value)


def digest(*parts: str | bytes) -> str:
    """SHA-256 over the parts, each with its length before it, as hex."""
    pieces: list[bytes] = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        pieces += (len(data).to_bytes(8, "big"), data)
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def content_hash(task: Task) -> str:
    """Hash of all that defines the task: everything but its id and its quality block."""
    fields = _task_adapter().dump_python(task, mode="json")
    return digest(canonical_json({k: v for k, v in fields.items() if k not in ("task_id", "quality")}))


def verifier_hash(task: Task) -> str:
    """Hash of what decides the reward: clauses, frame, answer form and tools."""
    fields = _task_adapter().dump_python(task, mode="json")
    return digest(canonical_json([fields[name] for name in ("clauses", "frame", "answer", "tools")]))


def quality_hash(task: Task) -> str:
    return digest(canonical_json(_task_adapter().dump_python(task, mode="json")["quality"]))


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the parts, the same in every process and on every machine (never Python's "
    "`hash`)."""
    return int.from_bytes(hashlib.sha256(canonical_json(list(parts)).encode()).digest()[:8], "big") >> 1
