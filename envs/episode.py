"""One task as a gymnasium environment: an assistant message in, what its tool calls gave back out.

An instance plays one task at a time in a private world, which `close` frees. The reward is 0.0 until the
episode ends, then the verifier's score. `terminated`: the policy answered; `truncated`: turns ran out, or too
many of its messages could not be read. Rollouts use `play` with records; `step` is the same with JSON text,
for gymnasium.

What other families' environments share with it is here, too: `Turns`, `step_with`, `observation_text`.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import gymnasium
from gymnasium import spaces

from envs.honeypots import Honeypots
from envs.outcome import Bait, Cause
from envs.task import Call, Message, Task
from envs.tool_server import JournalEntry, ToolServer
from envs.tools import Tool
from envs.verifier import Episode, GraderError, Verdict, judge

MAX_MALFORMED = 3
MAX_CALLS_PER_TURN = 16
_CHARSET = "".join(map(chr, range(32, 127))) + "\n"
_CHARSET_SET = frozenset(_CHARSET)
ACTION_SPACE = spaces.Text(max_length=20_000, min_length=0, charset=_CHARSET)
OBSERVATION_SPACE = spaces.Text(max_length=200_000, min_length=0, charset=_CHARSET)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """`messages`: what the policy reads next. `cause` is None while the episode goes on.

    reward: the verifier's score at the end; None when the episode could not be measured.
    baits: at the end, the bait that the episode touched (`envs.honeypots`).
    """

    messages: tuple[Message, ...]
    reward: float | None
    cause: Cause | None
    verdict: Verdict | None = None
    baits: tuple[Bait, ...] = ()


class Playable(Protocol):
    """What plays one task by messages, whatever its family."""

    def start(self) -> tuple[Message, ...]: ...

    def play(self, message: Message) -> StepResult: ...

    def play_malformed(self, fault: str) -> StepResult: ...


@dataclass(slots=True)
class Turns:
    """How many messages the policy may still write."""

    limit: int
    used: int = 0
    malformed: int = 0

    def end(self) -> Cause | None:
        return Cause.TURNS if self.used >= self.limit else None

    def take_malformed(self) -> Cause | None:
        """Counts a message that could not be read; why the episode is over with it, if it is."""
        self.used += 1
        self.malformed += 1
        return Cause.FORMAT if self.malformed >= MAX_MALFORMED else self.end()


class TaskEnv(gymnasium.Env[str, str]):
    """Plays `task` in `image`, the world's bytes. `honeypots` adds bait (`envs.honeypots`)."""

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self, task: Task, image: bytes, *, honeypots: bool = False, render_mode: str | None = None
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self.action_space = ACTION_SPACE
        self.observation_space = OBSERVATION_SPACE
        self._image = image
        self._with_honeypots = honeypots
        self._honeypots: Honeypots | None = None
        self._server: ToolServer | None = None
        self._cause: Cause | None = None
        self._turns = Turns(task.max_turns)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the policy is shown: the task's tools, and the bait."""
        if not self._with_honeypots:
            return self.task.tools
        return (*self.task.tools, Honeypots(self.task.task_id, self.task.tools).tool)

    def start(self) -> tuple[Message, ...]:
        """Opens a fresh world and returns the prompt."""
        self.close()
        self._server = ToolServer(self._image, self.task.tools)
        self._cause = None
        self._turns = Turns(self.task.max_turns)
        if self._with_honeypots:
            self._honeypots = Honeypots(self.task.task_id, self.task.tools)
        return self.task.prompt

    def play(self, message: Message) -> StepResult:
        """Takes one assistant message: its tool calls run in order; without calls its content is the final
        answer.
        """
        server = self._running_server()
        self._turns.used += 1
        if self._honeypots is not None:
            self._honeypots.watch(message.content)
        if not message.tool_calls:
            return self._finish(message.content)
        replies: list[Message] = []
        for index, call in enumerate(message.tool_calls):
            if index >= MAX_CALLS_PER_TURN:
                replies.append(
                    Message(role="tool", content=f"error: at most {MAX_CALLS_PER_TURN} calls a message")
                )
                continue
            bait = self._honeypots.answer(call) if self._honeypots is not None else None
            if bait is not None:
                replies.append(Message(role="tool", content=bait))
                continue
            observation = server.call(call)
            tool = self.task.tool(call.tool)
            if tool is not None and tool.ends_episode and not observation.error:
                return self._finish(str(call.arguments[tool.parameters[0].name]))
            text = observation.text
            if self._honeypots is not None and not observation.error:
                text = self._honeypots.planted(tool, text)
            replies.append(Message(role="tool", content=text))
        if (cause := self._turns.end()) is not None:
            return self.stop(cause)
        return StepResult(messages=tuple(replies), reward=0.0, cause=None)

    def play_malformed(self, fault: str) -> StepResult:
        """Takes a message that could not be read; the policy is told why, and `MAX_MALFORMED` of them end the
        episode.
        """
        self._running_server()
        if (cause := self._turns.take_malformed()) is not None:
            return self.stop(cause)
        return StepResult(messages=(Message(role="user", content=f"error: {fault}"),), reward=0.0, cause=None)

    def stop(self, cause: Cause) -> StepResult:
        """Ends the episode without an answer: 0 for the policy's own doing, no reward for a fault of the
        machinery.
        """
        self._cause = cause
        reward = None if cause.is_infrastructure else 0.0
        return StepResult(messages=(), reward=reward, cause=cause, baits=self._baits())

    def _finish(self, answer: str) -> StepResult:
        server = self._running_server()
        episode = Episode(
            initial=self._image, final=server.snapshot(), journal=tuple(server.journal), answer=answer
        )
        try:
            verdict = judge(self.task, episode)
        except GraderError:
            return self.stop(Cause.GRADER_FAILED)
        self._cause = Cause.TAMPERING if verdict.tampering else Cause.ANSWERED
        return StepResult(
            messages=(), reward=verdict.score, cause=self._cause, verdict=verdict, baits=self._baits()
        )

    def _baits(self) -> tuple[Bait, ...]:
        return self._honeypots.baits if self._honeypots is not None else ()

    def _running_server(self) -> ToolServer:
        if self._server is None or self._cause is not None:
            raise RuntimeError("the episode is not running: call reset first")
        return self._server

    @property
    def journal(self) -> tuple[JournalEntry, ...]:
        return tuple(self._server.journal) if self._server is not None else ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        prompt = self.start()
        return observation_text(prompt), {
            "task_id": self.task.task_id,
            "messages": [asdict(m) for m in prompt],
        }

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a message as JSON: {"content": str, "tool_calls": [{"name": str, "arguments": object}]}."""
        return step_with(self, action)

    def render(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (gymnasium's union is wider)
        return "\n".join(f"{entry.tool}({entry.arguments}) -> {entry.result}" for entry in self.journal)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def step_with(env: Playable, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """`gymnasium.Env.step` of an environment that plays messages."""
    message = parse_message(action)
    result = env.play_malformed(message) if isinstance(message, str) else env.play(message)
    info: dict[str, Any] = {"messages": [asdict(m) for m in result.messages]}
    if result.cause is not None:
        info |= {"cause": str(result.cause), "measured": result.reward is not None}
        info["baits"] = [str(bait) for bait in result.baits]
    if result.verdict is not None:
        info["verdict"] = asdict(result.verdict)
    terminated = result.cause in (Cause.ANSWERED, Cause.TAMPERING)
    truncated = result.cause is not None and not terminated
    return observation_text(result.messages), result.reward or 0.0, terminated, truncated, info


def parse_message(text: str) -> Message | str:
    """An assistant message from its JSON text, or one line that says why it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 'a message is JSON: {"content": text, "tool_calls": [{"name": text, "arguments": object}]}'
    if not isinstance(value, dict) or not set(value) <= {"content", "tool_calls"}:
        return "a message has the keys content and tool_calls"
    content, calls = value.get("content", ""), value.get("tool_calls", [])
    if not isinstance(content, str) or not isinstance(calls, list):
        return "content must be text and tool_calls a list"
    parsed: list[Call] = []
    for call in calls:
        if (
            not isinstance(call, dict)
            or set(call) != {"name", "arguments"}
            or not isinstance(call["name"], str)
        ):
            return "a tool call has the keys name and arguments"
        if not isinstance(call["arguments"], dict):
            return "arguments must be an object"
        parsed.append(Call(tool=call["name"], arguments=call["arguments"]))
    return Message(role="assistant", content=content, tool_calls=tuple(parsed))


def observation_text(messages: tuple[Message, ...]) -> str:
    """The messages as the observation text: printable ASCII, everything else escaped."""
    text = "\n\n".join(f"[{message.role}] {message.content}" for message in messages)
    return "".join(c if c in _CHARSET_SET else c.encode("unicode_escape").decode() for c in text)[:200_000]
