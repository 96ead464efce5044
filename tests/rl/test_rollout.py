"""Rollout semantics, pinned with a scripted engine: what is said, what is answered, how an episode ends."""

from collections.abc import Sequence

import numpy as np
import pytest

from envs.agents import gold_plan, plan_messages
from envs.outcome import Cause
from policies import chat_format
from policies.engine import Sampling, SessionRecord, Turn
from policies.tokenizer import TextCodec, build_tokenizer
from rl.rollout import Player
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from rl.transcript import reply_text
from synthesis.general import DOMAINS, make_candidate


class ScriptedEngine:
    """Says the given texts, one a turn; records what it read as the real engine does."""

    def __init__(
        self, codec: TextCodec, replies: Sequence[str], *, stop_reason: str = "stop_token", room: int = 10_000
    ) -> None:
        self._codec, self._replies, self._stop_reason, self._room = codec, list(replies), stop_reason, room
        self.tokens: list[int] = []
        self.sampled: list[bool] = []
        self.waiting = False

    def open(self, prompt_ids: Sequence[int], *, seed: int, sampling: Sampling) -> int:
        self._add(prompt_ids, False)
        self.waiting = True
        return 7

    def room(self, session: int) -> int:
        return self._room

    def extend(self, session: int, token_ids: Sequence[int]) -> None:
        self._add(token_ids, False)
        self.waiting = True

    def step(self) -> list[Turn]:
        assert self.waiting
        said = self._codec.encode(self._replies.pop(0))
        self._add(said, True)
        self.waiting = False
        return [Turn(session=7, token_ids=said, logps=[0.0] * len(said), stop_reason=self._stop_reason)]

    def close(self, session: int) -> SessionRecord:
        size = len(self.tokens)
        return SessionRecord(
            token_ids=self.tokens,
            sampled_mask=self.sampled,
            logps=[-0.5 if s else 0.0 for s in self.sampled],
            routes=np.zeros((size, 1, 2), np.uint8),
            kept_sets=[[] for _ in range(size)],
            weights_versions=[3] * size,
        )

    def _add(self, token_ids: Sequence[int], sampled: bool) -> None:
        self.tokens += token_ids
        self.sampled += [sampled] * len(token_ids)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(build_tokenizer({}))


@pytest.fixture(scope="module")
def playable() -> PlayableTask:
    candidate = make_candidate(DOMAINS["trip"], 1, 3)
    assert candidate is not None
    return PlayableTask(task=candidate.task, image=candidate.image)


def play(
    codec: TextCodec, playable: PlayableTask, replies: Sequence[str], **engine: object
) -> tuple[Trajectory, ScriptedEngine]:
    scripted = ScriptedEngine(codec, replies, **engine)  # type: ignore[arg-type]
    player = Player(engine=scripted, codec=codec, tasks=[playable])  # type: ignore[arg-type]
    request = PlayRequest(task_index=0, group=0, sample=0, attempt=0, seed=1)
    (trajectory,) = player.play([request], Sampling())
    return trajectory, scripted


def gold_replies(playable: PlayableTask) -> list[str]:
    return [reply_text(message) for message in plan_messages(gold_plan(playable.task))]


def test_the_gold_played_in_tokens_earns_the_reward(codec: TextCodec, playable: PlayableTask) -> None:
    trajectory, engine = play(codec, playable, gold_replies(playable))
    assert (trajectory.reward, trajectory.cause) == (1.0, Cause.ANSWERED)
    assert list(trajectory.token_ids) == engine.tokens
    assert list(trajectory.sampled) == engine.sampled
    said = [t for t, s in zip(trajectory.token_ids, trajectory.sampled, strict=True) if s]
    assert codec.decode(said) == "".join(gold_replies(playable)[: trajectory.num_turns])
    assert not any(trajectory.sampled[: trajectory.num_prompt_tokens])


def test_what_a_tool_says_is_read_between_the_turns(codec: TextCodec, playable: PlayableTask) -> None:
    trajectory, _ = play(codec, playable, gold_replies(playable))
    text = codec.decode(trajectory.token_ids)
    first = trajectory.messages[3]
    assert first.role == "tool"
    assert f"<result>{first.content}</result>" in text


def test_a_reply_that_cannot_be_read_is_told_so_and_three_end_the_episode(
    codec: TextCodec, playable: PlayableTask
) -> None:
    bad = f"<think>hm{chat_format.EOS}"
    trajectory, _ = play(codec, playable, [bad, *gold_replies(playable)])
    assert trajectory.reward == 1.0
    assert trajectory.messages[3].content.startswith("error:")
    trajectory, _ = play(codec, playable, [bad] * 3)
    assert (trajectory.reward, trajectory.cause) == (0.0, Cause.FORMAT)


def test_a_turn_that_never_ends_scores_nothing(codec: TextCodec, playable: PlayableTask) -> None:
    trajectory, _ = play(codec, playable, ["aaaa"], stop_reason="length")
    assert (trajectory.reward, trajectory.cause) == (0.0, Cause.TOKENS)


def test_a_context_that_is_full_ends_the_episode(codec: TextCodec, playable: PlayableTask) -> None:
    trajectory, _ = play(codec, playable, gold_replies(playable), room=5)
    assert (trajectory.reward, trajectory.cause) == (0.0, Cause.TOKENS)
    assert trajectory.num_turns == 1
