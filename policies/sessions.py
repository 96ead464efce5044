"""What a replica is asked for and what came of it, kept outside of it: a session outlives its replicas."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.engine import SessionRecord, Turn
from policies.model.sampling import Sampling
from policies.vllm_replica import Request, Sampled

MAX_MOVES = 3
"""A session whose replica died so often is given up: it may be what they die of."""


@dataclass(eq=False, kw_only=True, slots=True)
class Session:
    """T tokens so far, and which of them were sampled, when and by what."""

    number: int
    seed: int
    sampling: Sampling
    max_length: int
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)
    routes: np.ndarray | None = None
    selected: np.ndarray | None = None
    turn_start: int = 0
    paused: bool = False
    moves: int = 0
    round: int = 0
    """How often it was asked for: an answer to an earlier asking is of no use any more."""

    @property
    def name(self) -> str:
        return f"{self.number}-{self.round}"

    def begin(self, token_ids: Sequence[int], *, version: int) -> None:
        """The environment's tokens: what follows them is a new turn."""
        self.tokens += token_ids
        self.sampled += [False] * len(token_ids)
        self.logps += [0.0] * len(token_ids)
        self.versions += [version] * len(token_ids)
        self.turn_start = len(self.tokens)
        self.paused = False

    def request(self, stop_token_ids: list[int]) -> Request:
        """Go on from all the tokens there are, some of this turn's perhaps among them."""
        self.round += 1
        spent = len(self.tokens) - self.turn_start
        room = self.max_length - len(self.tokens)
        return Request(
            name=self.name,
            token_ids=list(self.tokens),
            seed=self.seed,
            sampling=self.sampling,
            max_new_tokens=min(self.sampling.max_new_tokens - spent, room),
            stop_token_ids=stop_token_ids,
        )

    def add(self, news: Sampled, stop_token_ids: Collection[int]) -> Turn | None:
        """Takes what was sampled; the turn, if it ended with it."""
        for token, logp, kept in zip(news.token_ids, news.logps, news.kept_sets, strict=True):
            if kept:
                self.kept[len(self.tokens)] = kept
            self.tokens.append(token)
            self.sampled.append(True)
            self.logps.append(logp)
            self.versions.append(news.version)
        if not news.ended:
            return None
        self.routes, self.selected = news.routes, news.selected
        return self._turn("stop_token" if self.tokens[-1] in stop_token_ids else self._limit())

    def lost(self) -> Turn | None:
        """Its replica died. The turn, if it was the last time."""
        self.moves += 1
        return self._turn("lost") if self.moves >= MAX_MOVES else None

    def _limit(self) -> str:
        spent = len(self.tokens) - self.turn_start
        return "length" if spent >= self.sampling.max_new_tokens else "context"

    def _turn(self, reason: str) -> Turn:
        self.paused = True
        start = self.turn_start
        return Turn(
            session=self.number,
            token_ids=self.tokens[start:],
            logps=self.logps[start:],
            stop_reason=reason,
        )

    def record(self) -> SessionRecord:
        count = len(self.tokens)
        routes = np.zeros((count, 0, 1), np.uint8) if self.routes is None else _stretched(self.routes, count)
        return SessionRecord(
            token_ids=self.tokens,
            sampled_mask=self.sampled,
            logps=self.logps,
            routes=routes,
            kept_sets=[self.kept.get(place, []) for place in range(count)],
            weights_versions=self.versions,
            selected=None if self.selected is None else _stretched(self.selected, count),
        )


def _stretched(record: np.ndarray, count: int) -> np.ndarray:
    """A record of the tokens read, with "not recorded" for those never read, as the last sampled one."""
    whole = np.full((count, *record.shape[1:]), np.iinfo(record.dtype).max, record.dtype)
    whole[: len(record)] = record
    return whole
