"""Players without a policy: even samples are played by the gold, odd ones by an agent that does nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.agents import make_agent, play_agent
from envs.episode import TaskEnv
from policies.tokenizer import load_codec
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from rl.transcript import encode_conversation


class GoldPlayers:
    """The interface of `rl.rollout_worker.Workers`, as far as distillation needs it."""

    def __init__(self, policy: str, tasks: Sequence[PlayableTask]) -> None:
        self._codec = load_codec(Path(policy))
        self._tasks = tasks
        self.played: list[PlayRequest] = []

    def play(self, requests: Sequence[PlayRequest], sampling: object) -> list[Trajectory]:
        self.played += requests
        return [self._play(request) for request in requests]

    def _play(self, request: PlayRequest) -> Trajectory:
        playable = self._tasks[request.task_index]
        env = TaskEnv(playable.task, playable.image)
        name = "null" if request.sample % 2 else "oracle"
        try:
            result, messages = play_agent(env, make_agent(name, playable.task, request.seed))
            transcript = encode_conversation(messages, env.tools, self._codec)
        finally:
            env.close()
        assert result.cause is not None
        size = len(transcript.token_ids)
        return Trajectory(
            task_id=playable.task.task_id,
            domain=playable.task.domain,
            level=playable.task.level,
            group=request.group,
            sample=request.sample,
            attempt=request.attempt,
            seed=request.seed,
            token_ids=transcript.token_ids,
            num_prompt_tokens=transcript.written.index(True),
            sampled=transcript.written,
            logps=(0.0,) * size,
            routes=np.zeros((size, 1, 2), np.uint8),
            versions=(0,) * size,
            reward=result.reward,
            cause=result.cause,
            verdict=result.verdict,
            messages=tuple(messages),
            num_turns=1,
            seconds_environment=0.0,
        )

    def close(self) -> None:
        return
