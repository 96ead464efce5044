"""Plays episodes with an engine: many at once, each on its own turn, none waiting for the longest.

Rollout semantics, pinned by tests: a reply that cannot be parsed is told so and counted; a turn that spends
its token budget, or a context that is full, ends the episode with 0; an environment's text that no longer
fits ends it too.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from envs.episode import StepResult, TaskEnv
from envs.outcome import Cause
from envs.task import Message
from policies import chat_format
from policies.engine import Engine, Sampling, SessionRecord, Turn
from policies.tokenizer import TextCodec
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from rl.transcript import environment_text, prompt_text, to_message


@dataclass(slots=True)
class _Play:
    request: PlayRequest
    env: TaskEnv
    messages: list[Message]
    num_prompt_tokens: int
    num_turns: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Player:
    """Plays requests over `tasks` with one engine; the engine may go on to other requests afterwards."""

    engine: Engine
    codec: TextCodec
    tasks: Sequence[PlayableTask]
    honeypots: bool = False
    """Bait in every episode (`envs.honeypots`): the prompts then have one tool more."""
    _prompts: dict[int, list[int]] = field(default_factory=dict)

    def play(self, requests: Iterable[PlayRequest], sampling: Sampling) -> Iterator[Trajectory]:
        """Trajectories in the order in which they end. Every request gives exactly one."""
        plays: dict[int, _Play] = {}
        for request in requests:
            session, play = self._open(request, sampling)
            plays[session] = play
        try:
            while plays:
                for turn in self.engine.step():
                    play = plays[turn.session]
                    result = self._take_turn(play, turn)
                    if result.cause is not None:
                        del plays[turn.session]
                        yield self._finish(play, self.engine.close(turn.session), result)
        finally:
            for session, play in plays.items():
                self.engine.close(session)
                play.env.close()

    def _open(self, request: PlayRequest, sampling: Sampling) -> tuple[int, _Play]:
        playable = self.tasks[request.task_index]
        env = TaskEnv(playable.task, playable.image, honeypots=self.honeypots)
        messages = list(env.start())
        if request.task_index not in self._prompts:
            text = prompt_text(playable.task.prompt, env.tools)
            self._prompts[request.task_index] = self.codec.encode(text)
        prompt = self._prompts[request.task_index]
        session = self.engine.open(prompt, seed=request.seed, sampling=sampling)
        return session, _Play(request=request, env=env, messages=messages, num_prompt_tokens=len(prompt))

    def _take_turn(self, play: _Play, turn: Turn) -> StepResult:
        started = time.perf_counter()
        play.num_turns += 1
        if turn.stop_reason != "stop_token":
            play.messages.append(Message(role="assistant", content=self.codec.decode(turn.token_ids)))
            return play.env.stop(Cause.TOKENS)
        text = self.codec.decode(turn.token_ids)
        reply = chat_format.parse_reply(text)
        if isinstance(reply, chat_format.ParseFault):
            play.messages.append(Message(role="assistant", content=text))
            result = play.env.play_malformed(reply.fault)
        else:
            message = to_message(reply)
            play.messages.append(message)
            result = play.env.play(message)
        if result.cause is None:
            result = self._hand_back(play, turn, text, result)
        play.seconds += time.perf_counter() - started
        return result

    def _hand_back(self, play: _Play, turn: Turn, text: str, result: StepResult) -> StepResult:
        """Gives the policy what its calls gave back, if that still fits."""
        play.messages += result.messages
        reply = environment_text(result.messages, ended=text.endswith(chat_format.EOS))
        tokens = self.codec.encode(reply)
        if len(tokens) >= self.engine.room(turn.session):
            return play.env.stop(Cause.TOKENS)
        self.engine.extend(turn.session, tokens)
        return result

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
            seconds_environment=play.seconds,
            baits=result.baits,
            kept_sets=tuple(record.kept_sets),
            selected=record.selected,
        )
