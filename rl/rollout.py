"""Plays episodes with an engine: many at once, each on its own turn, none waiting for the longest.

Rollout semantics, pinned by tests: a reply that cannot be parsed is told so and counted; a turn that spends
its token budget, or a context that is full, ends the episode with 0; an environment's text that no longer
fits ends it too.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field

from envs.episode import StepResult, TaskEnv
from envs.outcome import Cause
from envs.task import Message
from policies import chat_format
from policies.engine import Sampling, SessionRecord, Turn
from policies.policy_engine import PolicyEngine
from policies.tokenizer import TextCodec
from rl.latency import Latency
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from rl.transcript import environment_text, prompt_text, to_message

LONGEST_WAIT_S = 0.05
"""For a tool's answer, while no episode is the engine's to go on with."""


@dataclass(eq=False, slots=True)
class _Play:
    request: PlayRequest
    env: TaskEnv
    messages: list[Message]
    num_prompt_tokens: int
    session: int
    num_turns: int = 0
    seconds: list[float] = field(default_factory=list)
    """The environment's part of each turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Acted:
    """What a turn came to: how it reads as text, the message that it makes, and what the environment said."""

    text: str
    message: Message
    result: StepResult
    seconds: float
    """Of the environment, what `Latency` added included."""


@dataclass(slots=True)
class Player:
    """Plays requests over `tasks` with one engine.

    `play` plays some to their end; `open` and `step` go on step by step, and more may be opened in between.
    """

    engine: PolicyEngine
    codec: TextCodec
    tasks: Sequence[PlayableTask]
    honeypots: bool = False
    """Bait in every episode (`envs.honeypots`): the prompts then have one tool more."""
    tools: Executor | None = None
    """Runs the environments' part of a turn beside the engine; None: between its steps."""
    latency: Latency = field(default_factory=Latency)
    """Added to each turn's tools; with `tools` alone, where it does not hold up the engine."""
    _prompts: dict[int, list[int]] = field(default_factory=dict)
    _plays: dict[int, _Play] = field(default_factory=dict)
    _acting: dict[Future[_Acted], tuple[_Play, Turn]] = field(default_factory=dict)
    _aside: list[Trajectory] = field(default_factory=list)
    """Ended while others were being played."""

    @property
    def num_open(self) -> int:
        return len(self._plays)

    def play(self, requests: Iterable[PlayRequest], sampling: Sampling) -> Iterator[Trajectory]:
        """Trajectories in the order in which they end. Every request gives exactly one."""
        own: set[tuple[int, int]] = set()
        for request in requests:
            self.open(request, sampling)
            own.add((request.group, request.sample))
        try:
            while own:
                for trajectory in self._step():
                    if (trajectory.group, trajectory.sample) in own:
                        own.remove((trajectory.group, trajectory.sample))
                        yield trajectory
                    else:
                        self._aside.append(trajectory)
        finally:
            self.cancel(own)

    def open(self, request: PlayRequest, sampling: Sampling) -> None:
        """Begins an episode, which goes on with the next `step`."""
        playable = self.tasks[request.task_index]
        env = TaskEnv(playable.task, playable.image, honeypots=self.honeypots)
        messages = list(env.start())
        if request.task_index not in self._prompts:
            text = prompt_text(playable.task.prompt, env.tools)
            self._prompts[request.task_index] = self.codec.encode(text)
        prompt = self._prompts[request.task_index]
        session = self.engine.open(prompt, seed=request.seed, sampling=sampling)
        self._plays[session] = _Play(
            request=request, env=env, messages=messages, num_prompt_tokens=len(prompt), session=session
        )

    def step(self) -> list[Trajectory]:
        """One step of the engine and of the tools that have answered; the episodes that ended."""
        ended, self._aside = self._aside, []
        return [*ended, *self._step()]

    def cancel(self, episodes: Collection[tuple[int, int]]) -> None:
        """Ends these (group, sample) without a trajectory."""
        for session, play in list(self._plays.items()):
            if (play.request.group, play.request.sample) in episodes:
                del self._plays[session]
                self.engine.close(session)
                if not any(acting is play for acting, _ in self._acting.values()):
                    play.env.close()

    def _step(self) -> list[Trajectory]:
        turns = self.engine.step() if len(self._plays) > len(self._acting) else []
        ended: list[Trajectory] = []
        for turn in turns:
            play = self._plays[turn.session]
            if self.tools is None:
                ended += self._hand_back(play, turn, self._act(play, turn))
            else:
                self._acting[self.tools.submit(self._act, play, turn)] = (play, turn)
        if self._acting:
            all_wait = len(self._plays) == len(self._acting)
            done, _ = wait(self._acting, LONGEST_WAIT_S if all_wait else 0, FIRST_COMPLETED)
            for future in [future for future in self._acting if future in done]:
                play, turn = self._acting.pop(future)
                if play.session in self._plays:
                    ended += self._hand_back(play, turn, future.result())
                else:  # cancelled meanwhile
                    play.env.close()
        return ended

    def _act(self, play: _Play, turn: Turn) -> _Acted:
        """The environment's part of a turn; touches nothing but the episode's own environment."""
        started = time.perf_counter()
        if self.tools is not None and (seconds := self.latency.draw(play.request.seed, play.num_turns)):
            time.sleep(seconds)
        text = self.codec.decode(turn.token_ids)
        if turn.stop_reason != "stop_token":
            message = Message(role="assistant", content=text)
            result = play.env.stop(Cause.REPLICA_FAILED if turn.stop_reason == "lost" else Cause.TOKENS)
        elif isinstance(reply := chat_format.parse_reply(text), chat_format.ParseFault):
            message = Message(role="assistant", content=text)
            result = play.env.play_malformed(reply.fault)
        else:
            message = to_message(reply)
            result = play.env.play(message)
        return _Acted(text=text, message=message, result=result, seconds=time.perf_counter() - started)

    def _hand_back(self, play: _Play, turn: Turn, acted: _Acted) -> list[Trajectory]:
        """Gives the policy what its calls gave back, if that still fits; else the episode has ended."""
        started = time.perf_counter()
        play.num_turns += 1
        play.messages.append(acted.message)
        result = acted.result
        if result.cause is None:
            play.messages += result.messages
            reply = environment_text(result.messages, ended=acted.text.endswith(chat_format.EOS))
            tokens = self.codec.encode(reply)
            if len(tokens) >= self.engine.room(turn.session):
                result = play.env.stop(Cause.TOKENS)
            else:
                self.engine.extend(turn.session, tokens)
        play.seconds.append(acted.seconds + time.perf_counter() - started)
        if result.cause is None:
            return []
        del self._plays[turn.session]
        return [self._finish(play, self.engine.close(turn.session), result)]

    def _finish(self, play: _Play, record: SessionRecord, result: StepResult) -> Trajectory:
        assert result.cause is not None
        task, request = play.env.task, play.request
        play.env.close()
        return Trajectory(
            task_id=task.task_id,
            domain=task.domain,
            level=task.level,
            group=request.group,
            sample=request.sample,
            attempt=request.attempt,
            seed=request.seed,
            token_ids=tuple(record.token_ids),
            num_prompt_tokens=play.num_prompt_tokens,
            sampled=tuple(record.sampled_mask),
            logps=tuple(record.logps),
            routes=record.routes,
            versions=tuple(record.weights_versions),
            reward=result.reward,
            cause=result.cause,
            verdict=result.verdict,
            messages=tuple(play.messages),
            num_turns=play.num_turns,
            seconds_environment=sum(play.seconds),
            tool_seconds=tuple(play.seconds),
            baits=result.baits,
            kept_sets=tuple(record.kept_sets),
            selected=record.selected,
        )
