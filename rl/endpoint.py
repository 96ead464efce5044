"""Plays episodes with a model behind an OpenAI-compatible endpoint, many at once, each on a thread.

A reply that cannot be used is told to the model and counted, as in `rl.rollout`; a context that is full and a
message that its tokens cut short end the episode with 0. An episode in which the endpoint fails was not
measured; when it fails time after time, all of them stop.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from envs.episode import Playable, StepResult, TaskEnv
from envs.families.code import CodeTask
from envs.outcome import Cause
from envs.task import Call, Message, Task
from envs.tools import Tool, json_schema
from policies.openai_client import Completion, ContextFullError, Endpoint, EndpointClient, EndpointError
from rl.evaluate import Row, scripted_row
from rl.trajectory import PlayableTask, PlayRequest

PREFIX = "openai:"
MAX_FAILURES = 4
"""So many episodes in a row in which the endpoint failed, and it is given up."""


class Served(Playable, Protocol):
    @property
    def tools(self) -> tuple[Tool, ...]: ...

    def stop(self, cause: Cause) -> StepResult: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """policy: `openai:URL#MODEL`. max_tokens: of one message; None leaves it to the endpoint."""

    policy: str
    temperature: float = 1.0
    max_tokens: int | None = None

    def client(self) -> EndpointClient:
        """Raises ValueError where the policy names no endpoint."""
        endpoint = Endpoint.parse(self.policy.removeprefix(PREFIX))
        return EndpointClient(endpoint, temperature=self.temperature, max_tokens=self.max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """An episode to its end, and the tokens that the endpoint says it read and wrote."""

    result: StepResult
    messages: tuple[Message, ...]
    prompt_tokens: int
    completion_tokens: int
    failed: str = ""
    """What the endpoint failed with."""


def play_served(env: Served, client: EndpointClient, *, seed: int) -> Played:
    """One episode, from its start to its end."""
    messages = list(env.start())
    sent: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    tools = [json_schema(tool) for tool in env.tools]
    read = written = 0
    failed = ""
    while True:
        try:
            completion = client.complete(sent, tools, seed=seed)
        except ContextFullError:
            result = env.stop(Cause.TOKENS)
        except EndpointError as error:
            failed = str(error)
            result = env.stop(Cause.REPLICA_FAILED)
        else:
            read += completion.prompt_tokens
            written += completion.completion_tokens
            message, result = _act(env, completion)
            messages += [message, *result.messages]
            sent += [completion.message, *_replies(completion.message, result.messages)]
        if result.cause is not None:
            return Played(
                result=result,
                messages=tuple(messages),
                prompt_tokens=read,
                completion_tokens=written,
                failed=failed,
            )


def _act(env: Served, completion: Completion) -> tuple[Message, StepResult]:
    if completion.cut or completion.fault:
        message = Message(role="assistant", content=completion.message["content"])
        return message, env.stop(Cause.TOKENS) if completion.cut else env.play_malformed(completion.fault)
    calls = tuple(Call(tool=call.name, arguments=call.arguments) for call in completion.tool_calls)
    message = Message(role="assistant", content=completion.content, tool_calls=calls)
    return message, env.play(message)


def _replies(sent_back: dict[str, Any], replies: Sequence[Message]) -> list[dict[str, Any]]:
    """What the environment said, each result beside its call."""
    ids = iter([call["id"] for call in sent_back.get("tool_calls", [])])
    rows: list[dict[str, Any]] = []
    for reply in replies:
        row = {"role": reply.role, "content": reply.content}
        if reply.role == "tool":
            row["tool_call_id"] = next(ids)
        rows.append(row)
    return rows


class Failures:
    """Counts episodes in a row in which the endpoint failed."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, failed: str) -> None:
        """Raises EndpointError when it has failed too often in a row."""
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._in_a_row >= MAX_FAILURES:
            raise EndpointError(
                f"{failed} ({self._in_a_row} episodes in a row); run the same command again when it answers"
            )


def endpoint_row(request: PlayRequest, task: Task | CodeTask, played: Played) -> Row:
    """The episode's row; where the endpoint failed, `reason` says with what."""
    row = scripted_row(request, task, played.result, played.messages)
    if played.failed:
        row["reason"] = played.failed
    return {**row, "prompt_tokens": played.prompt_tokens, "completion_tokens": played.completion_tokens}


def play_endpoint(
    config: EndpointConfig,
    tasks: Sequence[PlayableTask],
    requests: Sequence[PlayRequest],
    *,
    at_once: int,
    honeypots: bool = False,
) -> Iterator[Row]:
    """One row for each request, as they end.

    Raises EndpointError where the endpoint fails in `MAX_FAILURES` episodes in a row.
    """
    client = config.client()
    waiting = deque(requests)
    ended: SimpleQueue[tuple[Row, str] | Exception] = SimpleQueue()

    def play(request: PlayRequest) -> tuple[Row, str]:
        playable = tasks[request.task_index]
        with closing(TaskEnv(playable.task, playable.image, honeypots=honeypots)) as env:
            played = play_served(env, client, seed=request.seed)
        return endpoint_row(request, playable.task, played), played.failed

    def work() -> None:
        with suppress(IndexError):  # nothing waits any more
            while request := waiting.popleft():
                try:
                    ended.put(play(request))
                except Exception as error:
                    ended.put(error)

    # Not a pool's threads: the interpreter would wait for those, and an endpoint may take minutes to answer.
    for _ in range(min(at_once, len(requests))):
        threading.Thread(target=work, daemon=True).start()
    failures = Failures()
    try:
        for _ in requests:
            outcome = ended.get()
            if isinstance(outcome, Exception):
                raise outcome
            row, failed = outcome
            yield row
            failures.note(failed)
    finally:
        waiting.clear()
