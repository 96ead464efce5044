"""What a domain grammar is: from a seed and a level to a draft of a task, and a planner that solves it by its
tools.

A domain owns its tables, its tools with their effects, its goal and policy templates and its phrases. It
hands out `Draft`s, which the gates may still refuse, and it plays them as an agent would: the planner sees
observations only, and its care is a dial, so that the same code gives the gold and the demonstrators of mixed
quality.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tool_server import Observation, ToolServer
from envs.tools import Tool
from envs.world import Table
from synthesis.solver import Problem, best_choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A task before its gates. `goal` is what the planner may know: what the prompt says, in the domain's own
    form.
    """

    domain: str
    level: int
    seed: int
    tables: tuple[Table, ...]
    system: str
    prompt: str
    tools: tuple[Tool, ...]
    clauses: tuple[Clause, ...]
    frame: tuple[FrameRule, ...]
    answer: AnswerSpec
    guess: GuessSpace
    problem: Problem
    goal: Any
    max_turns: int


@dataclass(slots=True)
class Care:
    """How well a demonstrator works: at each chance to slip it does so with probability `slip_rate`, and what
    it puts together it puts together by `choose`, an option by variable, or nothing where it finds none.
    """

    slip_rate: float
    rng: random.Random
    num_slips: int = 0
    choose: Callable[[Problem], Mapping[str, str]] = best_choice

    def slips(self) -> bool:
        slipped = self.rng.random() < self.slip_rate
        self.num_slips += slipped
        return slipped


def full_care() -> Care:
    """How a gold is made."""
    return Care(slip_rate=0.0, rng=random.Random(0))


@dataclass(slots=True)
class Client:
    """A planner's only hold on the world: calls through the tool server, each kept.

    recall: what is left of an observation in the planner's head.
    """

    server: ToolServer
    calls: list[Call] = field(default_factory=list)
    recall: Callable[[Observation], Observation] = lambda observation: observation

    def call(self, tool: str, **arguments: Any) -> Observation:
        call = Call(tool=tool, arguments=arguments)
        self.calls.append(call)
        return self.recall(self.server.call(call))

    def values(self, tool: str, **arguments: Any) -> list[Any]:
        """The first column of what a query gives."""
        return [next(iter(row.values())) for row in self.call(tool, **arguments).rows]


class Domain(Protocol):
    """One file of `synthesis/domains`.

    shown_levels: those that a cold start may see; the rest are held back.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def levels(self) -> Sequence[int]: ...

    @property
    def shown_levels(self) -> Sequence[int]: ...

    @property
    def tools(self) -> tuple[Tool, ...]: ...

    def draft(self, level: int, seed: int) -> Draft | None:
        """A draft of that level, or None when the seed's world holds no such task.

        Raises ValueError for an unknown level.
        """
        ...

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        """Solves the draft by calls, from observations and the prompt alone."""
        ...


@runtime_checkable
class Varied(Protocol):
    """A domain that shows its worlds through several lists of tools, one of which each draft draws."""

    @property
    def toolsets(self) -> Sequence[tuple[Tool, ...]]: ...


@runtime_checkable
class Raising(Protocol):
    """A domain with levels that are each an easier one made harder in the same world, from the same seed."""

    def raised_from(self, level: int) -> int | None:
        """The easier level, or None where the level begins."""
        ...


@runtime_checkable
class Twinning(Protocol):
    """A domain whose worlds can be had with one fact changed (`synthesis.counterfactual`)."""

    @property
    def twin_levels(self) -> Sequence[int]: ...

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """Drafts of the seed's request in worlds one fact away from the seed's, in a fixed order."""
        ...


def toolsets_of(domain: Domain) -> Sequence[tuple[Tool, ...]]:
    """Every list of tools that a draft of the domain may have."""
    return domain.toolsets if isinstance(domain, Varied) else (domain.tools,)


def twin_levels(domain: Domain) -> Sequence[int]:
    """The levels at which the domain's tasks can have twins."""
    return domain.twin_levels if isinstance(domain, Twinning) else ()


def quote(value: str) -> str:
    """An SQL string literal."""
    return "'" + value.replace("'", "''") + "'"
