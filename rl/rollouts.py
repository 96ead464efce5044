"""Where the learner's batches come from: rollouts that take turns with it, or that go on beside it.

Both keep the ledger. `SynchronousRollouts` plays a step's groups when the learner asks.
`AsynchronousRollouts` turns the schedule of `rl.buffer` on a thread: it feeds the actors, takes what has
ended, plays again what was lost, and begins groups as soon as the staleness bound and the boxes allow.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from policies.weights import PublishedWeights
from rl.buffer import Group, Limits, Schedule
from rl.groups import as_taught, requests_of_group, requests_of_step, teaching_groups
from rl.ledger import Bucket, Ledger, ends_of_step
from rl.rollout_worker import MAX_ATTEMPTS, Progress
from rl.run import Run, sampling
from rl.trajectory import PlayRequest, Trajectory

WHILE_S = 0.05
"""An actor plays for so long between two of our words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """taught: what the learner gets, groups adjacent. played: all that has ended since the last batch."""

    taught: list[Trajectory]
    played: list[Trajectory]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a checkpoint keeps of rollouts. open: groups that begin again; ready: groups that need not."""

    ledger: Ledger
    next_group: int = 0
    open: tuple[int, ...] = ()
    ready: tuple[tuple[Trajectory, ...], ...] = ()


class Rollouts(Protocol):
    def begin(self, published: PublishedWeights) -> None:
        """Before the first batch."""
        ...

    def next_batch(self) -> Batch:
        """Waits for the step's trajectories."""
        ...

    def step_done(self, published: PublishedWeights) -> None:
        """The step is done; these weights came of it."""
        ...

    def saved(self) -> Saved: ...

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The workers are the caller's inside."""
        ...

    def close(self) -> None: ...


class Playing(Protocol):
    """`rl.rollout_worker.Workers`, or the one worker in this process."""

    def load(self, published: PublishedWeights) -> None: ...

    def play(self, requests: Sequence[PlayRequest], sampling: Any) -> list[Trajectory]: ...


class SynchronousRollouts:
    """Plays `groups_per_step` groups for each step with the step's own weights."""

    def __init__(self, run: Run, workers: Playing, ledger: Ledger) -> None:
        self._run = run
        self._workers = workers
        self._ledger = ledger
        self._published: PublishedWeights | None = None

    def begin(self, published: PublishedWeights) -> None:
        self._published = published

    step_done = begin

    def next_batch(self) -> Batch:
        assert self._published is not None
        run, step = self._run, self._published.version
        self._workers.load(self._published)
        requests = requests_of_step(run, step)
        self._ledger.dispatch(len(requests))
        played = self._workers.play(requests, sampling(run))
        taught = teaching_groups(run, as_taught(run, played, step))
        self._ledger.settle(ends_of_step(played, taught, group_size=run.config.rl.group_size))
        return Batch(taught=taught, played=played)

    def saved(self) -> Saved:
        return Saved(ledger=self._ledger.copy())

    @contextmanager
    def quiet(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        return


class Actors(Protocol):
    """Players that are told what to play next and asked what has ended, one word at a time each.

    `rl.rollout_worker.ActorSeats` over Ray; scripted in tests.
    """

    def publish(self, published: PublishedWeights) -> None:
        """Who is called from now on gets these weights first."""
        ...

    def call(self, seat: int, requests: Sequence[PlayRequest], seconds: float) -> None:
        """Lets it begin these episodes and play for a while; `wait` brings what came of it."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[int, Progress | None]]:
        """Calls that are over, by seat; None: the actor died with its episodes, and there is a new one."""
        ...

    def lost(self, request: PlayRequest) -> Trajectory:
        """What stands for an episode that was lost too often."""
        ...


@dataclass(eq=False, slots=True)
class _Seat:
    """A place for an actor: what it plays, and what it is to begin at the next word."""

    number: int
    playing: dict[tuple[int, int], PlayRequest] = field(default_factory=dict)
    inbox: list[PlayRequest] = field(default_factory=list)
    called: bool = False

    @property
    def load(self) -> int:
        return len(self.playing) + len(self.inbox)


class AsynchronousRollouts:
    """Groups are played beside the learner, at most `max_staleness` steps behind it."""

    def __init__(self, run: Run, actors: Actors, saved: Saved, *, num_seats: int, version: int) -> None:
        self._run = run
        self._actors = actors
        self._ledger = saved.ledger
        self._schedule: Schedule[Trajectory] = Schedule(
            limits_of(run), version=version, next_group=saved.next_group
        )
        self._seats = [_Seat(number) for number in range(num_seats)]
        self._ended: list[Trajectory] = []
        self._changed = threading.Condition()
        self._paused = False
        self._closing = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._turn_until_closed, name="rollouts", daemon=True)
        for members in saved.ready:
            rows = [(member, member.reward, oldest_version(member, default=version)) for member in members]
            self._schedule.restore(members[0].group, rows)
        for number in saved.open:
            self._hand_out(self._schedule.again(number))

    def begin(self, published: PublishedWeights) -> None:
        assert published.version == self._schedule.version
        self._actors.publish(published)
        self._thread.start()

    def next_batch(self) -> Batch:
        with self._changed:
            while (groups := self._next_groups()) is None:
                self._changed.wait(1.0)
            played, self._ended = self._ended, []
            members = [member for group in groups for member in group.members]
            version = self._schedule.version
            taught = list(as_taught(self._run, members, version))
            self._ledger.settle(ends_of_step(members, taught, group_size=self._run.config.rl.group_size))
        oldest = version - self._schedule.limits.max_staleness
        assert all(oldest_version(member, default=version) >= oldest for member in taught)
        return Batch(taught=taught, played=[*played, *members])

    def step_done(self, published: PublishedWeights) -> None:
        with self._changed:
            self._schedule.advance()
            assert published.version == self._schedule.version
            self._actors.publish(published)
            self._changed.notify_all()

    def saved(self) -> Saved:
        with self._changed:
            schedule = self._schedule
            return Saved(
                ledger=self._ledger.copy(),
                next_group=schedule.next_group,
                open=tuple(sorted(schedule.open)),
                ready=tuple(tuple(group.members) for _, group in sorted(schedule.ready.items())),
            )

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Episodes stand still, each where it is."""
        with self._changed:
            self._paused = True
            while any(seat.called for seat in self._seats) and self._fault is None:
                self._changed.wait(1.0)
        try:
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    # What follows runs with `_changed` held, but for `_turn_until_closed`.

    def _next_groups(self) -> list[Group[Trajectory]] | None:
        if self._fault is not None:
            raise self._fault
        for group in self._schedule.drop_stale():
            self._leave(group, Bucket.STALE)
        return self._schedule.take()

    def _leave(self, group: Group[Trajectory], bucket: Bucket) -> None:
        """A group ends untrained."""
        causes = [member.cause for member in group.members]
        self._ledger.settle([Bucket(str(c)) if c.is_infrastructure else bucket for c in causes])
        self._ended += group.members

    def _turn_until_closed(self) -> None:
        try:
            while not self._closing:
                with self._changed:
                    self._call_seats()
                    if not any(seat.called for seat in self._seats):
                        self._changed.wait(WHILE_S)
                        continue
                over = self._actors.wait(WHILE_S)
                with self._changed:
                    for number, progress in over:
                        self._note(self._seats[number], progress)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._fault = error
                self._changed.notify_all()

    def _call_seats(self) -> None:
        if self._paused:
            return
        while self._schedule.may_begin():
            self._ledger.dispatch(self._schedule.limits.group_size)
            self._hand_out(self._schedule.begin())
        for seat in self._seats:
            if not seat.called and seat.load:
                seat.playing |= {(r.group, r.sample): r for r in seat.inbox}
                self._actors.call(seat.number, seat.inbox, WHILE_S)
                seat.inbox, seat.called = [], True

    def _hand_out(self, group: Group[Trajectory]) -> None:
        """A whole group to one actor, which reads its prompt once."""
        min(self._seats, key=lambda seat: seat.load).inbox += requests_of_group(self._run, group.number)

    def _note(self, seat: _Seat, progress: Progress | None) -> None:
        seat.called = False
        if progress is None:
            lost, seat.playing = list(seat.playing.values()), {}
            for request in lost:
                self._play_again(request, self._actors.lost(request))
            return
        for trajectory in progress.ended:
            request = seat.playing.pop((trajectory.group, trajectory.sample))
            if trajectory.cause.is_infrastructure:
                self._play_again(request, trajectory)
            else:
                self._end(trajectory)

    def _play_again(self, request: PlayRequest, lost: Trajectory) -> None:
        """From its beginning and by the same seed; `lost` is what remains when that was tried too often."""
        if request.attempt + 1 < MAX_ATTEMPTS:
            seat = min(self._seats, key=lambda seat: seat.load)
            seat.inbox.append(replace(request, attempt=request.attempt + 1))
        else:
            self._end(lost)

    def _end(self, trajectory: Trajectory) -> None:
        unused = self._schedule.end(
            trajectory.group,
            trajectory.sample,
            trajectory,
            reward=trajectory.reward,
            oldest=oldest_version(trajectory, default=self._schedule.version),
        )
        if unused is not None:
            self._leave(unused, Bucket.NO_SIGNAL)


def limits_of(run: Run) -> Limits:
    config = run.config.rl
    return Limits(
        group_size=config.group_size,
        groups_trained=config.groups_trained,
        groups_per_step=config.groups_per_step,
        max_staleness=run.config.rollout.max_staleness,
        episodes=run.config.rollout.episodes_at_once,
        num_steps=config.steps,
    )


def oldest_version(trajectory: Trajectory, *, default: int) -> int:
    """The oldest weights that sampled a token of it; of an episode that was lost, `default`."""
    versions = [v for v, wrote in zip(trajectory.versions, trajectory.sampled, strict=True) if wrote]
    return min(versions, default=default)


def staleness(batch: Batch, version: int) -> dict[str, float]:
    """Of the taught tokens, in learner steps: their mean and their largest."""
    ages = [
        version - age
        for trajectory in batch.taught
        for age, wrote in zip(trajectory.versions, trajectory.sampled, strict=True)
        if wrote
    ]
    return {
        "staleness_mean": sum(ages) / len(ages) if ages else 0.0,
        "staleness_max": max(ages, default=0),
    }
