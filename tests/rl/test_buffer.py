"""The schedule of asynchronous training, by hand and by random plays."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.buffer import Group, Limits, Schedule

FIELDS = {"group_size": 2, "groups_trained": 2, "groups_per_step": 4, "max_staleness": 1, "episodes": 100}


def limits(**fields: int) -> Limits:
    return Limits(**(FIELDS | fields))


def begin_all(schedule: Schedule[str]) -> list[Group[str]]:
    begun = []
    while schedule.may_begin():
        begun.append(schedule.begin())
    return begun


def finish(schedule: Schedule[str], group: Group[str], rewards: tuple[float, float] = (0.0, 1.0)) -> None:
    version = group.version
    for sample, reward in enumerate(rewards):
        schedule.end(group.number, sample, f"{group.number}.{sample}", reward=reward, oldest=version)


def test_without_staleness_groups_begin_only_between_the_steps() -> None:
    schedule: Schedule[str] = Schedule(limits(max_staleness=0))
    first, second = begin_all(schedule)
    finish(schedule, second)
    assert schedule.take() is None
    finish(schedule, first)
    batch = schedule.take()
    assert batch is not None
    assert [group.members for group in batch] == [["0.0", "0.1"], ["1.0", "1.1"]]
    assert not schedule.may_begin()  # it would be played with weights that the running step replaces
    schedule.advance()
    assert len(begin_all(schedule)) == 2


def test_a_step_that_runs_leaves_room_for_as_many_groups_as_the_bound_allows() -> None:
    schedule: Schedule[str] = Schedule(limits(max_staleness=3))
    begun = begin_all(schedule)
    assert len(begun) == 8  # steps 0, 1, 2 and 3
    for group in begun[:2]:
        finish(schedule, group)
    assert schedule.take() is not None
    assert begin_all(schedule) == []  # version 0 has places in steps 1, 2 and 3, all of them taken
    schedule.advance()
    assert len(begin_all(schedule)) == 2


def test_a_step_waits_for_a_slow_group_whose_deadline_has_come() -> None:
    schedule: Schedule[str] = Schedule(limits())
    slow, *others = begin_all(schedule)
    assert len(others) == 3
    for group in others[:2]:
        finish(schedule, group)
    assert schedule.take() is not None  # the slow one may still be trained in the next step
    schedule.advance()
    finish(schedule, others[2])
    for group in begin_all(schedule):
        finish(schedule, group)
    assert len(schedule.ready) == 3
    assert schedule.take() is None  # enough are ready, but the slow one would be left behind
    finish(schedule, slow)
    batch = schedule.take()
    assert batch is not None
    assert [group.number for group in batch] == [slow.number, others[2].number]


def test_a_group_without_a_signal_is_replaced_until_the_spare_ones_are_used_up() -> None:
    schedule: Schedule[str] = Schedule(limits(groups_per_step=3))
    first, second, third, _ = begin_all(schedule)
    finish(schedule, first, (1.0, 1.0))
    assert first.number not in schedule.ready
    assert len(begin_all(schedule)) == 1
    finish(schedule, second, (0.0, 0.0))
    finish(schedule, third)
    batch = schedule.take()
    assert batch is not None
    assert [group.number for group in batch] == [second.number, third.number]


def test_boxes_bound_the_open_episodes_and_one_group_always_may_begin() -> None:
    schedule: Schedule[str] = Schedule(limits(max_staleness=4, episodes=5))
    assert len(begin_all(schedule)) == 2
    assert len(begin_all(Schedule(limits(episodes=1)))) == 1


def test_nothing_begins_that_no_step_would_train() -> None:
    schedule: Schedule[str] = Schedule(Limits(**(FIELDS | {"max_staleness": 3}), num_steps=2))
    for group in begin_all(schedule):
        finish(schedule, group)
    assert schedule.next_group == 4
    assert schedule.take() is not None
    schedule.advance()
    assert begin_all(schedule) == []
    assert schedule.take() is not None
    schedule.advance()
    assert (schedule.open, schedule.ready) == ({}, {})


def test_a_group_that_old_weights_sampled_is_never_trained() -> None:
    schedule: Schedule[str] = Schedule(limits(), version=5)
    group, other, *_ = begin_all(schedule)
    for sample in range(2):
        schedule.end(group.number, sample, "old", reward=float(sample), oldest=3)
    finish(schedule, other)
    assert schedule.drop_stale() == [group]
    assert list(schedule.ready) == [other.number]


def test_what_an_earlier_process_left_is_ready_or_begins_again() -> None:
    schedule: Schedule[str] = Schedule(limits(), version=7, next_group=20)
    schedule.restore(17, [("a", 0.0, 6), ("b", 1.0, 7)])
    schedule.again(18)
    finish(schedule, schedule.open[18])
    batch = schedule.take()
    assert batch is not None
    assert [(group.number, group.version) for group in batch] == [(17, 6), (18, 7)]
    assert schedule.begin().number == 20


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    staleness=st.integers(0, 4),
    trained=st.integers(1, 4),
    spare=st.integers(0, 4),
    episodes=st.integers(1, 40),
)
def test_whatever_ends_when_the_bound_holds_and_nothing_is_lost_or_trained_twice(
    seed: int, staleness: int, trained: int, spare: int, episodes: int
) -> None:
    """Episodes end in random order, some much later than others; steps take random times."""
    rng = random.Random(seed)
    schedule: Schedule[tuple[int, int]] = Schedule(
        limits(
            max_staleness=staleness,
            groups_trained=trained,
            groups_per_step=trained + spare,
            episodes=episodes,
        )
    )
    begun: list[int] = []
    gone: list[int] = []
    waited = 0
    while schedule.version < 12:
        while schedule.may_begin():
            begun.append(schedule.begin().number)
        assert schedule.open_episodes <= max(episodes, 2)
        if schedule.training:
            if rng.random() < 0.3:
                schedule.advance()
        elif (batch := schedule.take()) is not None:
            assert all(0 <= schedule.version - group.version <= staleness for group in batch)
            assert all(len(group.members) == 2 for group in batch)
            gone += [group.number for group in batch]
            waited = 0
        if schedule.open:
            number = rng.choice(list(schedule.open)[-3:] if rng.random() < 0.8 else list(schedule.open))
            group = schedule.open[number]
            sample = rng.choice(sorted(group.waiting))
            reward = float(rng.random() < 0.5)
            left = schedule.end(number, sample, (number, sample), reward=reward, oldest=group.version)
            if left is not None:
                gone.append(left.number)
        assert schedule.drop_stale() == []
        waited += 1
        assert waited < 400, "the schedule stands still"
    assert sorted([*gone, *schedule.open, *schedule.ready]) == begun
    assert all(b == a + 1 for a, b in pairwise(begun))


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_an_episode_that_takes_very_long_holds_up_no_more_steps_than_the_bound(staleness: int) -> None:
    schedule: Schedule[str] = Schedule(limits(max_staleness=staleness))
    slow = schedule.begin()
    while True:
        for group in begin_all(schedule):
            finish(schedule, group)
        if schedule.take() is None:
            break
        schedule.advance()
    assert schedule.version == staleness
    finish(schedule, slow)
    batch = schedule.take()
    assert batch is not None
    assert batch[0] is slow
