"""Scripted agents that act by messages and tool calls, as a policy does: gates, tests and `eval` play the
same ones.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from envs.episode import Playable, StepResult, TaskEnv
from envs.task import Call, Message, Plan, Task


class Agent(Protocol):
    """Answers each batch of new messages with one assistant message."""

    def act(self, messages: Sequence[Message]) -> Message: ...


class PlanAgent:
    """Makes the calls of a plan one a message, then gives its answer."""

    def __init__(self, plan: Plan) -> None:
        self._messages = iter(plan_messages(plan))

    def act(self, messages: Sequence[Message]) -> Message:
        return next(self._messages)


class NullAgent:
    """Does nothing and answers with nothing."""

    def act(self, messages: Sequence[Message]) -> Message:
        return Message(role="assistant", content="")


def plan_messages(plan: Plan) -> list[Message]:
    messages = [Message(role="assistant", tool_calls=(call,)) for call in plan.calls]
    return [*messages, Message(role="assistant", content=plan.answer)]


def gold_plan(task: Task) -> Plan:
    """The gold as an agent plays it: through the tool that ends the episode, where the task has one."""
    return submit_plan(task, task.gold)


def submit_plan(task: Task, plan: Plan) -> Plan:
    end = next((tool for tool in task.tools if tool.ends_episode), None)
    if end is None:
        return plan
    last = Call(tool=end.name, arguments={end.parameters[0].name: plan.answer})
    return replace(plan, calls=(*plan.calls, last))


def random_plan(task: Task, rng: random.Random) -> Plan:
    """A uniform draw from the task's guess space: what an agent does that looks at nothing."""
    if task.guess.plans:
        return submit_plan(task, rng.choice(task.guess.plans))
    rows: list[dict[str, str]] = [{} for _ in range(task.answer.num_rows)]
    for row, column, value in task.guess.fixed:
        rows[row][column] = value
    for slot in task.guess.slots:
        rows[slot.row][slot.column] = rng.choice(slot.options)
    return submit_plan(task, Plan(calls=(), answer=json.dumps(rows)))


def greedy_plan(task: Task) -> Plan:
    """Reads what it can without an argument, then takes the first of everything it might choose."""
    reads = tuple(
        Call(tool=tool.name, arguments={})
        for tool in task.tools
        if not tool.parameters and not tool.writes and not tool.ends_episode
    )
    first = _FirstChoice()
    plan = random_plan(task, first)
    return replace(plan, calls=(*reads, *plan.calls))


class _FirstChoice(random.Random):
    def choice(self, seq):  # type: ignore[no-untyped-def] # pyright: ignore[reportIncompatibleMethodOverride]
        return seq[0]


def make_agent(name: str, task: Task, seed: int) -> Agent:
    """The scripted agent called `name`. Raises ValueError for an unknown one."""
    if name == "oracle":
        return PlanAgent(gold_plan(task))
    if name == "null":
        return NullAgent()
    if name == "random":
        return PlanAgent(random_plan(task, random.Random(seed)))
    if name == "greedy":
        return PlanAgent(greedy_plan(task))
    raise ValueError(f"no scripted agent {name!r}; there are oracle, null, random and greedy")


def play_agent(env: Playable, agent: Agent) -> tuple[StepResult, list[Message]]:
    """Plays one episode to its end; returns its last result and the whole conversation."""
    transcript = list(env.start())
    new: Sequence[Message] = tuple(transcript)
    while True:
        message = agent.act(new)
        transcript.append(message)
        result = env.play(message)
        transcript += result.messages
        if result.cause is not None:
            return result, transcript
        new = result.messages


def play_plan(task: Task, image: bytes, plan: Plan) -> StepResult:
    env = TaskEnv(task, image)
    try:
        return play_agent(env, PlanAgent(plan))[0]
    finally:
        env.close()
