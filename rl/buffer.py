"""Which groups may begin, which are ready, which are trained next: the schedule of asynchronous training.

Bookkeeping alone, without clocks, threads or Ray: `rl.rollouts` turns it with actors and the learner,
`rl.simulate` in virtual time. Its words: a learner step trains `groups_trained` groups; the weights' version
is the number of steps done; a group's staleness is the version that it is trained at minus the oldest version
that sampled one of its tokens, and never exceeds `max_staleness`.

The bound is held by beginning few enough groups, not by throwing finished ones away: a group is begun only
if there is a place for it in a step before its deadline, and a step waits for a slow group whose deadline has
come rather than leave it behind. So a long episode is trained like a short one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """episodes: how many may be open at once, by boxes and by the replicas' slots; one group always may."""

    group_size: int
    groups_trained: int
    """Groups that a step trains on."""
    groups_per_step: int
    """Of so many groups between two steps those without a signal are replaced; others are trained on."""
    max_staleness: int
    episodes: int
    num_steps: int | None = None
    """Steps of the whole run, beyond which nothing is begun; None: no end."""


@dataclass(eq=False, kw_only=True, slots=True)
class Group(Generic[T]):
    """version: that of the weights as it began; once it has ended, the oldest that sampled a token of it."""

    number: int
    version: int
    waiting: set[int]
    """Samples that have not ended."""
    ended: dict[int, T] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    """The measured ones."""
    oldest: list[int] = field(default_factory=list)

    @property
    def has_signal(self) -> bool:
        return bool(self.rewards) and max(self.rewards) - min(self.rewards) > 1e-6

    @property
    def members(self) -> list[T]:
        return [self.ended[sample] for sample in sorted(self.ended)]


class Schedule(Generic[T]):
    """`may_begin`, `begin`, `end` for rollouts; `take`, `advance` for the learner."""

    def __init__(self, limits: Limits, *, version: int = 0, next_group: int = 0) -> None:
        self.limits = limits
        self.version = version
        self.next_group = next_group
        self.training = False
        """Whether a step is under way; what begins now can be trained in the one after it at the earliest."""
        self.open: dict[int, Group[T]] = {}
        self.ready: dict[int, Group[T]] = {}
        self._discarded = 0

    @property
    def open_episodes(self) -> int:
        return sum(len(group.waiting) for group in self.open.values())

    def may_begin(self) -> bool:
        """Whether one more group fits: into the boxes, and into the steps before its deadline."""
        limits = self.limits
        if self.open and self.open_episodes + limits.group_size > limits.episodes:
            return False
        steps_left = self.version + limits.max_staleness - self._next_step + 1
        if limits.num_steps is not None:
            steps_left = min(steps_left, limits.num_steps - self._next_step)
        return len(self.open) + len(self.ready) < limits.groups_trained * steps_left

    def begin(self) -> Group[T]:
        """The next group, to be played with the present weights or newer ones."""
        assert self.may_begin()
        group: Group[T] = Group(
            number=self.next_group, version=self.version, waiting=set(range(self.limits.group_size))
        )
        self.next_group += 1
        self.open[group.number] = group
        return group

    def again(self, number: int) -> Group[T]:
        """A group of an earlier process that had not ended: it begins again, with the present weights."""
        assert number not in self.open
        group: Group[T] = Group(
            number=number, version=self.version, waiting=set(range(self.limits.group_size))
        )
        self.open[number] = group
        return group

    def restore(self, number: int, members: Iterable[tuple[T, float | None, int]]) -> None:
        """A group of an earlier process that was ready: (member, reward, oldest version) by sample."""
        group = self.again(number)
        for sample, (member, reward, oldest) in enumerate(members):
            self._note(group, sample, member, reward, oldest)
        self._close(group)
        self.ready[number] = group

    def end(
        self, number: int, sample: int, member: T, *, reward: float | None, oldest: int
    ) -> Group[T] | None:
        """An episode has ended; `oldest`: the oldest version that sampled one of its tokens.

        Returns its group where that has ended without a signal and another one takes its place.
        """
        group = self.open[number]
        self._note(group, sample, member, reward, oldest)
        if group.waiting:
            return None
        self._close(group)
        spare = self.limits.groups_per_step - self.limits.groups_trained
        if not group.has_signal and self._discarded < spare:
            self._discarded += 1
            return group
        self.ready[number] = group
        return None

    def take(self) -> list[Group[T]] | None:
        """The groups of the next step, the oldest first; None while it has to wait for some of them."""
        assert not self.training
        wanted = self.limits.groups_trained
        chosen = sorted(self.ready.values(), key=lambda group: (group.version, group.number))[:wanted]
        if len(chosen) < wanted or self._leaves_behind(chosen):
            return None
        for group in chosen:
            del self.ready[group.number]
        self.training = True
        return chosen

    def drop_stale(self) -> list[Group[T]]:
        """Ready groups beyond the bound, removed. There are some only if a replica served old weights."""
        oldest = self.version - self.limits.max_staleness
        stale = [group for group in self.ready.values() if group.version < oldest]
        for group in stale:
            del self.ready[group.number]
        return stale

    def advance(self) -> None:
        """The step is done: weights of the next version."""
        assert self.training
        self.training = False
        self.version += 1
        self._discarded = 0

    @property
    def _next_step(self) -> int:
        return self.version + int(self.training)

    def _leaves_behind(self, chosen: list[Group[T]]) -> bool:
        """Whether such a step leaves more groups than fit before some deadline, one of them still being
        played, so that waiting helps.
        """
        limits = self.limits
        taken = {group.number for group in chosen}
        left = [group for group in (*self.open.values(), *self.ready.values()) if group.number not in taken]
        for steps in range(limits.max_staleness + 1):
            due = [group for group in left if group.version + limits.max_staleness <= self.version + steps]
            if len(due) > limits.groups_trained * steps and any(group.waiting for group in due):
                return True
        return False

    def _note(self, group: Group[T], sample: int, member: T, reward: float | None, oldest: int) -> None:
        group.waiting.remove(sample)
        group.ended[sample] = member
        group.oldest.append(oldest)
        if reward is not None:
            group.rewards.append(reward)

    def _close(self, group: Group[T]) -> None:
        group.version = min(group.oldest)
        del self.open[group.number]
