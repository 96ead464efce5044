"""A run in virtual time: the schedule of `rl.buffer` over latency distributions, without a model or a tool.

Episodes take turns: a replica samples a turn's tokens, all its running episodes at once, one token each a
step (the engine's continuous batching); a tool answers after a drawn time; the last turn ends the episode.
Learner steps take a drawn time. What comes out: trained tokens a second, the learner's waiting (the bubble),
staleness, groups that were replaced; `recommend` tries settings and names the least stale that is nearly the
fastest.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rl.buffer import Group, Limits, Schedule
from rl.latency import Latency

NEARLY = 0.97
"""A setting is as good as the best from this share of its tokens a second on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """What is known of episodes. turns: tokens sampled in each turn, an entry an episode, drawn at random.

    tools: seconds of a turn's tools, drawn from at random, on top of `latency`.
    signal: the share of groups whose rewards differ.
    """

    turns: Sequence[Sequence[int]]
    tools: Sequence[float] = (0.0,)
    latency: Latency = field(default_factory=Latency)
    signal: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plant:
    """The machinery. A replica's step takes `step_s + token_s * running` seconds and gives each running
    episode a token; a learner step takes one of `learner_s`, drawn at random. Then each replica stands still
    for `sync_s`, to take and prove the new weights; tools go on, and so does the learner if it has a batch.

    replicas: each with `boxes` episodes at most.
    """

    replicas: int
    boxes: int
    step_s: float
    token_s: float
    learner_s: Sequence[float]
    sync_s: float = 0.0
    word_s: float = 0.0
    """Beside the learner, an actor hears what to begin and says what has ended once in so many seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """seconds: of all steps, in virtual time. bubble_share: of them, the learner waited. staleness: groups by
    learner steps between the oldest token and the training. replaced: groups without a signal, per step.
    busy_share: of the replicas' time in which at least one episode was being sampled.
    """

    seconds: float
    tokens: int
    bubble_share: float
    staleness: dict[int, int]
    replaced: float
    busy_share: float
    longest_trained_s: float
    """The longest that an episode took that was trained."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def staleness_mean(self) -> float:
        groups = sum(self.staleness.values())
        return sum(age * count for age, count in self.staleness.items()) / groups if groups else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "bubble_share": round(self.bubble_share, 4),
            "staleness_mean": round(self.staleness_mean, 3),
            "staleness": {str(age): count for age, count in sorted(self.staleness.items())},
            "groups_replaced_per_step": round(self.replaced, 2),
            "replicas_busy_share": round(self.busy_share, 4),
        }


@dataclass(eq=False, slots=True)
class _Episode:
    group: int
    sample: int
    version: int
    turns: Sequence[int]
    left: int
    """Tokens of this turn still to sample."""
    turn: int = 0
    oldest: int | None = None
    begun: float = 0.0


@dataclass(eq=False, slots=True)
class _Replica:
    running: list[_Episode] = field(default_factory=list)
    waiting: list[_Episode] = field(default_factory=list)
    open: int = 0
    stepping: bool = False
    ready_at: float = 0.0
    """When it has the newest weights."""
    busy_s: float = 0.0


class _Run:
    """One simulated run: a heap of events, each a time and what happens then."""

    def __init__(self, plant: Plant, episodes: Episodes, limits: Limits, seed: int) -> None:
        self.plant, self.episodes, self.limits = plant, episodes, limits
        self.rng = random.Random(seed)
        self.schedule: Schedule[tuple[int, float]] = Schedule(limits)
        self.replicas = [_Replica() for _ in range(plant.replicas)]
        self.now = 0.0
        self.events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.num_events = 0
        self.tokens = self.replaced = 0
        self.waited = 0.0
        self.waiting_since = 0.0
        self.staleness: Counter[int] = Counter()
        self.longest = 0.0
        self.rewards: dict[int, list[float]] = {}

    def at(self, delay: float, what: Any, *values: Any) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (self.now + delay, self.num_events, what, values))

    def run(self) -> None:
        assert self.limits.num_steps is not None
        self.begin_groups()
        while self.schedule.version < self.limits.num_steps:
            self.now, _, what, values = heapq.heappop(self.events)
            what(*values)

    def begin_groups(self) -> None:
        while self.schedule.may_begin():
            group = self.schedule.begin()
            replica = min(self.replicas, key=lambda replica: replica.open)
            signal = self.rng.random() < self.episodes.signal
            rewards = [float(sample == 0) if signal else 0.0 for sample in range(self.limits.group_size)]
            self.rewards[group.number] = rewards
            members = []
            for sample in range(self.limits.group_size):
                turns = self.rng.choice(self.episodes.turns)
                members.append(_Episode(group.number, sample, group.version, turns, turns[0], begun=self.now))
            replica.open += len(members)
            if delay := self.until_a_word():
                self.at(delay, self.arrived, replica, members)
            else:
                replica.waiting += members
        for replica in self.replicas:
            self.step_if_idle(replica)

    def until_a_word(self) -> float:
        """To or from an actor; 0 where rollouts and learner take turns."""
        return self.rng.uniform(0.0, self.plant.word_s) if self.limits.max_staleness else 0.0

    def arrived(self, replica: _Replica, members: list[_Episode]) -> None:
        replica.waiting += members
        self.step_if_idle(replica)

    def step_if_idle(self, replica: _Replica) -> None:
        replica.running += replica.waiting
        replica.waiting = []
        if replica.running and not replica.stepping:
            replica.stepping = True
            seconds = self.plant.step_s + self.plant.token_s * len(replica.running)
            loading = max(0.0, replica.ready_at - self.now)
            # As many steps in one event as nothing can come between.
            until_next = self.events[0][0] - self.now - loading if self.events else 0.0
            tokens = min(episode.left for episode in replica.running)
            steps = max(1, min(tokens, int(until_next / seconds)))
            busy = seconds * steps
            self.at(loading + busy, self.stepped, replica, list(replica.running), steps, busy)

    def stepped(self, replica: _Replica, ran: list[_Episode], steps: int, seconds: float) -> None:
        replica.stepping = False
        replica.busy_s += seconds
        for episode in ran:
            if episode.oldest is None:
                episode.oldest = episode.version
            episode.left -= steps
            if episode.left <= 0:
                replica.running.remove(episode)
                self.at(self.tool_seconds(episode), self.answered, replica, episode)
        self.step_if_idle(replica)

    def tool_seconds(self, episode: _Episode) -> float:
        seed = self.rng.getrandbits(62)
        return self.rng.choice(self.episodes.tools) + self.episodes.latency.draw(seed, episode.turn)

    def answered(self, replica: _Replica, episode: _Episode) -> None:
        episode.turn += 1
        if episode.turn < len(episode.turns):
            episode.left = episode.turns[episode.turn]
            replica.waiting.append(episode)
            self.step_if_idle(replica)
        elif delay := self.until_a_word():
            self.at(delay, self.ended, replica, episode)
        else:
            self.ended(replica, episode)

    def ended(self, replica: _Replica, episode: _Episode) -> None:
        replica.open -= 1
        unused = self.schedule.end(
            episode.group,
            episode.sample,
            (sum(episode.turns), self.now - episode.begun),
            reward=self.rewards[episode.group][episode.sample],
            oldest=episode.oldest if episode.oldest is not None else episode.version,
        )
        self.replaced += unused is not None
        self.begin_groups()
        self.train_if_ready()

    def train_if_ready(self) -> None:
        if self.schedule.training or (groups := self.schedule.take()) is None:
            return
        self.waited += self.now - self.waiting_since
        self.count_trained(groups)
        self.begin_groups()
        self.at(self.rng.choice(self.plant.learner_s), self.step_done)

    def count_trained(self, groups: Iterable[Group[tuple[int, float]]]) -> None:
        for group in groups:
            self.staleness[self.schedule.version - group.version] += 1
            self.tokens += sum(tokens for tokens, _ in group.members)
            self.longest = max(self.longest, *(seconds for _, seconds in group.members))

    def step_done(self) -> None:
        self.schedule.advance()
        self.waiting_since = self.now
        for replica in self.replicas:
            replica.ready_at = self.now + self.plant.sync_s
        self.begin_groups()
        self.train_if_ready()


def simulate(plant: Plant, episodes: Episodes, limits: Limits, *, seed: int = 0) -> Forecast:
    """`limits.num_steps` learner steps. Raises ValueError where there are none or nothing can be played."""
    if limits.num_steps is None or limits.num_steps < 1:
        raise ValueError(f"a simulation has at least one learner step, got {limits.num_steps}")
    if plant.replicas < 1 or plant.boxes < 1:
        raise ValueError(f"there must be a replica and a box, got {plant.replicas} and {plant.boxes}")
    if not episodes.turns or not all(turns and min(turns) > 0 for turns in episodes.turns):
        raise ValueError("every episode has at least one turn, and every turn a token")
    run = _Run(plant, episodes, limits, seed)
    run.run()
    busy = sum(replica.busy_s for replica in run.replicas)
    return Forecast(
        seconds=run.now,
        tokens=run.tokens,
        bubble_share=run.waited / run.now if run.now else 0.0,
        staleness=dict(run.staleness),
        replaced=run.replaced / limits.num_steps,
        busy_share=busy / (run.now * plant.replicas) if run.now else 0.0,
        longest_trained_s=run.longest,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    max_staleness: int
    replicas: int
    boxes: int
    forecast: Forecast


def recommend(
    plant: Plant,
    episodes: Episodes,
    limits: Limits,
    *,
    stalenesses: Sequence[int] = (0, 1, 2, 4),
    replicas: Sequence[int] | None = None,
    boxes: Sequence[int] | None = None,
) -> tuple[Setting, list[Setting]]:
    """The setting to choose, and all that were tried.

    Of those within 3 % of the most tokens a second: the least stale, then the fewest replicas, then boxes.
    """
    tried = [
        Setting(
            max_staleness=bound,
            replicas=number,
            boxes=room,
            forecast=simulate(
                replace(plant, replicas=number, boxes=room),
                episodes,
                replace(limits, max_staleness=bound, episodes=number * room),
            ),
        )
        for bound in stalenesses
        for number in replicas or [plant.replicas]
        for room in boxes or [plant.boxes]
    ]
    best = max(setting.forecast.tokens_per_s for setting in tried)
    good = [setting for setting in tried if setting.forecast.tokens_per_s >= NEARLY * best]
    chosen = min(good, key=lambda setting: (setting.max_staleness, setting.replicas, setting.boxes))
    return chosen, tried
