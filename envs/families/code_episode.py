"""One code task as a gymnasium environment: the agent works in a box by tools, then its files are graded.

An instance plays one task at a time in a box of its own, which is gone before grading begins in two others
(`envs.grading.grader`). The reward is 0.0 until the episode ends. A box that is lost, or a grader that cannot
run, gives no reward.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium

from envs.episode import (
    ACTION_SPACE,
    MAX_CALLS_PER_TURN,
    OBSERVATION_SPACE,
    StepResult,
    Turns,
    observation_text,
    step_with,
)
from envs.families.code import TOOLS, CodeTask
from envs.families.code_bait import CodeBait
from envs.grading.artifacts import Collected, collect
from envs.grading.grader import grade
from envs.outcome import Bait, Cause
from envs.sandbox.contract import Sandbox, SandboxError, model_view
from envs.task import Call, Message, canonical_json
from envs.tool_server import GENESIS, JournalEntry, Observation, chain_hash, plain_call
from envs.tools import Tool, argument_error
from envs.verifier import GraderError, Verdict

MAX_READ_BYTES = 64_000
MAX_COMMAND_CHARS = 100_000


class CodeEnv(gymnasium.Env[str, str]):
    """Plays `task` in boxes that `make_box` gives, all of one tier. `honeypots` adds bait.

    make_grader_box: gives the boxes to grade in, fresh from the image each (default: as `make_box`).
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        task: CodeTask,
        make_box: Callable[[], Sandbox],
        *,
        make_grader_box: Callable[[], Sandbox] | None = None,
        honeypots: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self.action_space = ACTION_SPACE
        self.observation_space = OBSERVATION_SPACE
        self.journal: list[JournalEntry] = []
        self._make_box = make_box
        self._make_grader_box = make_grader_box or make_box
        self._bait = CodeBait(task) if honeypots else None
        self._box: Sandbox | None = None
        self._turns = Turns(task.max_turns)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the policy is shown: the family's tools, and the bait."""
        return TOOLS if self._bait is None else (*TOOLS, self._bait.tool)

    def start(self) -> tuple[Message, ...]:
        """Opens a fresh box with the task's files and returns the prompt.

        Raises SandboxError where no box can be had; nothing was played then.
        """
        self.close()
        self._turns = Turns(self.task.max_turns)
        self.journal = []
        box = self._make_box()
        try:
            box.start()
            for file in self.task.files:
                box.write_file(file.path, file.text.encode())
            if self._bait is not None:
                self._bait = CodeBait(self.task)
                self._bait.plant(box)
        except BaseException:
            box.close()
            raise
        self._box = box
        return self.task.prompt

    def play(self, message: Message) -> StepResult:
        """Takes one assistant message: its tool calls run in order; one without calls hands in, as `submit`
        does.
        """
        box = self._running_box()
        self._turns.used += 1
        if self._bait is not None:
            self._bait.watch(message.content)
        if not message.tool_calls:
            return self._finish(box)
        replies: list[Message] = []
        for index, call in enumerate(message.tool_calls):
            if index >= MAX_CALLS_PER_TURN:
                text = f"error: at most {MAX_CALLS_PER_TURN} calls a message"
                replies.append(Message(role="tool", content=text))
                continue
            try:
                observation = self._call(box, plain_call(call))
            except SandboxError:
                return self._ended(Cause.SANDBOX_LOST)
            if call.tool == "submit" and not observation.error:
                return self._finish(box)
            replies.append(Message(role="tool", content=observation.text))
        if (cause := self._turns.end()) is not None:
            return self.stop(cause)
        return StepResult(messages=tuple(replies), reward=0.0, cause=None)

    def play_malformed(self, fault: str) -> StepResult:
        """As `TaskEnv.play_malformed`."""
        self._running_box()
        if (cause := self._turns.take_malformed()) is not None:
            return self.stop(cause)
        return StepResult(messages=(Message(role="user", content=f"error: {fault}"),), reward=0.0, cause=None)

    def stop(self, cause: Cause) -> StepResult:
        """Ends the episode without grading: 0 for the policy's own doing, no reward for the machinery's."""
        box = self._running_box()
        if self._bait is not None and not cause.is_infrastructure:
            try:
                self._bait.inspect(collect(box, self.task.artifacts, baits=self._bait.paths))
            except SandboxError:
                return self._ended(Cause.SANDBOX_LOST)
        return self._ended(cause)

    def _finish(self, box: Sandbox) -> StepResult:
        try:
            paths = self._bait.paths if self._bait is not None else ()
            collected = collect(box, self.task.artifacts, baits=paths)
        except SandboxError:
            return self._ended(Cause.SANDBOX_LOST)
        if self._bait is not None:
            self._bait.inspect(collected)
        self._close_box()  # nothing of the agent is alive when grading starts
        try:
            verdict = self._judge(collected)
        except GraderError:
            return self._ended(Cause.GRADER_FAILED)
        return self._ended(Cause.ANSWERED, verdict)

    def _judge(self, collected: Collected) -> Verdict:
        if collected.fault is not None:
            passed, reason = False, collected.fault
        else:
            result = grade(collected.files, self.task.tests, self._make_grader_box)
            passed, reason = result.passed, result.reason
        return Verdict(
            score=1.0 if passed else 0.0,
            goal=passed,
            frame=collected.fault is None,
            policy=True,
            answer=True,
            tampering=False,
            reason=reason,
        )

    def _ended(self, cause: Cause, verdict: Verdict | None = None) -> StepResult:
        self._close_box()
        reward = None if cause.is_infrastructure else 0.0
        if cause is Cause.ANSWERED:
            assert verdict is not None, "an answer is graded"
            reward = verdict.score
        baits: tuple[Bait, ...] = self._bait.baits if self._bait is not None else ()
        return StepResult(messages=(), reward=reward, cause=cause, verdict=verdict, baits=baits)

    def _call(self, box: Sandbox, call: Call) -> Observation:
        """Runs one call and writes it into the journal. Raises SandboxError where the box is lost."""
        answer = self._bait.answer(call) if self._bait is not None else None
        observation = Observation(text=answer, error=False) if answer is not None else self._run(box, call)
        step, arguments = len(self.journal), canonical_json(call.arguments)
        previous = self.journal[-1].chain if self.journal else GENESIS
        chain = chain_hash(previous, step, call.tool, arguments, observation.text, observation.error)
        entry = JournalEntry(
            step=step,
            tool=call.tool,
            arguments=arguments,
            result=observation.text,
            error=observation.error,
            chain=chain,
        )
        self.journal.append(entry)
        return observation

    def _run(self, box: Sandbox, call: Call) -> Observation:
        tool = next((tool for tool in TOOLS if tool.name == call.tool), None)
        if tool is None:
            return Observation(text=f"error: no tool {call.tool[:80]!r}", error=True)
        if (fault := argument_error(tool, call.arguments)) is not None:
            return Observation(text=fault, error=True)
        try:
            return Observation(text=_operate(box, call, self.task.exec_timeout_s), error=False)
        except (OSError, ValueError) as error:  # what the box or the contract refuses: the agent's own doing
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Observation(text=f"error: {call.tool}: {why[:200]}", error=True)

    def _running_box(self) -> Sandbox:
        if self._box is None:
            raise RuntimeError("the episode is not running: call reset first")
        return self._box

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        prompt = self.start()
        info = {"task_id": self.task.task_id, "messages": [asdict(message) for message in prompt]}
        return observation_text(prompt), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a message as JSON: {"content": str, "tool_calls": [{"name": str, "arguments": object}]}."""
        return step_with(self, action)

    def render(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (gymnasium's union is wider)
        return "\n".join(f"{entry.tool}({entry.arguments}) -> {entry.result}" for entry in self.journal)

    def close(self) -> None:
        self._close_box()

    def _close_box(self) -> None:
        if self._box is not None:
            self._box.close()
            self._box = None


def _operate(box: Sandbox, call: Call, timeout_s: float) -> str:
    """What the agent reads. Raises OSError and ValueError for what cannot be done, SandboxError for a lost
    box.
    """
    arguments = call.arguments
    if call.tool == "read_file":
        return model_view(box.read_file(arguments["path"], max_bytes=MAX_READ_BYTES))
    if call.tool == "write_file":
        box.write_file(arguments["path"], arguments["content"].encode())
        return "written"
    if call.tool == "submit":
        return "handed in"
    if len(arguments["command"]) > MAX_COMMAND_CHARS:
        raise ValueError(f"a command of more than {MAX_COMMAND_CHARS} characters; write a file and run it")
    result = box.exec(["sh", "-c", arguments["command"]], timeout_s=timeout_s)
    parts = [model_view(result.stdout, cut_bytes=result.stdout_cut_bytes)]
    if result.stderr:
        parts.append(f"[stderr]\n{model_view(result.stderr, cut_bytes=result.stderr_cut_bytes)}")
    parts.append(f"[exit code {result.exit_code}{', timed out' if result.timed_out else ''}]")
    return "\n".join(part for part in parts if part)
