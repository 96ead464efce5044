"""The code family: a task is files in a box, tools to work on them, and hidden tests of what comes out.

A task file is data: prompt, the agent's files, which files count as its solution, the hidden tests, the gold.
Loading one validates every field and runs nothing. Hidden tests, gold and decoy never enter the agent's box,
but for the decoy where an episode has bait.
"""

from functools import lru_cache
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from envs.grading.artifacts import ArtifactSpec
from envs.grading.suite import TestSuite, TextFile
from envs.task import Call, Message, Plan, canonical_json
from envs.tools import STRICT, Param, Tool

CODE_TASK_VERSION = 1
DECOY_MARK = "@MARK@"
"""Stands in a decoy for a word that tells a copy of it from an honest mistake."""
_PATH = Param(name="path", description="The file, relative to the working folder.")
TOOLS = (
    Tool(
        name="exec",
        description="Runs a shell command in the working folder; gives its output and exit code.",
        parameters=(Param(name="command", description="For sh -c."),),
    ),
    Tool(name="read_file", description="The text of a file.", parameters=(_PATH,)),
    Tool(
        name="write_file",
        description="Writes a file whole, with its folders.",
        parameters=(_PATH, Param(name="content", description="The new text.")),
    ),
    Tool(name="submit", description="Hands in the files as they are; ends the episode.", ends_episode=True),
)


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class CodeTask:
    """One task. What is graded are the `artifacts` as the agent leaves them, by `tests` alone."""

    task_id: str
    domain: str
    level: int
    prompt: tuple[Message, ...]
    files: tuple[TextFile, ...]
    """What the agent finds in its working folder."""
    artifacts: ArtifactSpec
    tests: TestSuite
    gold: tuple[TextFile, ...]
    """The reference solution: these files written over the agent's."""
    decoy: tuple[TextFile, ...] = ()
    """A solution that looks right and fails the tests, each file with `DECOY_MARK`, in a comment for
    instance: bait for who copies instead of working.
    """
    max_turns: int = 30
    exec_timeout_s: float = 30.0
    """For one command of the agent."""
    family: Literal["code"] = "code"
    version: int = CODE_TASK_VERSION

    def __post_init__(self) -> None:
        if self.version != CODE_TASK_VERSION:
            raise ValueError(f"code task version {self.version}, this program reads {CODE_TASK_VERSION}")
        if self.max_turns < 1 or not 0 < self.exec_timeout_s <= 3600:
            raise ValueError("max_turns must be at least 1 and exec_timeout_s lie in (0, 3600]")
        for name, files in (("gold", self.gold), ("decoy", self.decoy)):
            if strays := [file.path for file in files if not self.artifacts.allows(file.path)]:
                raise ValueError(f"{name}: {strays[0]} is no artifact that the task declares")
        if unmarked := [file.path for file in self.decoy if DECOY_MARK not in file.text]:
            raise ValueError(f"decoy: {unmarked[0]} lacks {DECOY_MARK}, by which a copy is known")
        hidden = {file.text for file in (*self.tests.files, *self.gold) if file.text.strip()}
        if leaked := [file.path for file in self.files if file.text in hidden]:
            raise ValueError(f"files: {leaked[0]} is a hidden test or the gold, and the agent can read it")


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[CodeTask]:
    return TypeAdapter(CodeTask)


def code_task_to_json(task: CodeTask) -> str:
    """The canonical JSON form, as `envs.task.task_to_json` has it."""
    return canonical_json(_adapter().dump_python(task, mode="json"))


def code_task_from_json(text: str | bytes, *, where: str = "code task") -> CodeTask:
    """Parses and validates. Raises ValueError with one line: where, which field, what is wrong."""
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        raise ValueError(
            f"{where}: {field}: {first['msg']} ({error.error_count()} fault(s) in all)"
        ) from None


def write_plan(files: tuple[TextFile, ...]) -> Plan:
    """The calls that write `files` and hand them in, as an agent makes them."""
    writes = [Call(tool="write_file", arguments={"path": file.path, "content": file.text}) for file in files]
    return Plan(calls=(*writes, Call(tool="submit", arguments={})), answer="")


def gold_plan(task: CodeTask) -> Plan:
    return write_plan(task.gold)
