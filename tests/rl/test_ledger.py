"""Every dispatched episode is counted once, and a ledger that does not add up is noticed."""

from collections import Counter
from dataclasses import replace

import pytest

from envs.outcome import Cause
from rl.ledger import Bucket, Ledger, ends_of_step
from rl.trajectory import Trajectory
from tests.rl.test_learner import batch_of

GROUP = 4


def episodes(rewards: list[float | None], causes: dict[int, Cause] | None = None) -> list[Trajectory]:
    """Groups of four with these rewards; `causes` by place."""
    made = [*batch_of(1), *batch_of(2)][: len(rewards)]
    return [
        replace(
            trajectory,
            group=index // GROUP,
            sample=index % GROUP,
            reward=reward,
            cause=(causes or {}).get(index, Cause.ANSWERED),
        )
        for index, (trajectory, reward) in enumerate(zip(made, rewards, strict=True))
    ]


def test_each_episode_of_a_step_ends_in_the_bucket_that_says_what_became_of_it() -> None:
    played = episodes(
        [1.0, 0.0, 0.0, None, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0], {3: Cause.SANDBOX_LOST, 5: Cause.TURNS}
    )
    ends = ends_of_step(played, played[:8], group_size=GROUP)
    assert ends == [
        *[Bucket.TRAINED] * 3,
        Bucket.SANDBOX_LOST,
        *[Bucket.NO_SIGNAL] * 4,  # handed to the learner, but equal rewards teach nothing
        *[Bucket.SURPLUS] * 4,
    ]
    ledger = Ledger()
    ledger.dispatch(len(played))
    assert ledger.in_flight == 12
    ledger.settle(ends)
    fields = ledger.as_fields()
    assert fields["dispatched"] == sum(fields[str(bucket)] for bucket in Bucket) == 12
    assert (fields["in_flight"], fields["trained"], fields["sandbox_lost"]) == (0, 3, 1)


def test_every_fault_of_the_machinery_has_a_bucket() -> None:
    assert {str(cause) for cause in Cause if cause.is_infrastructure} <= {str(bucket) for bucket in Bucket}


def test_what_ends_twice_is_refused() -> None:
    ledger = Ledger()
    ledger.dispatch(2)
    ledger.settle([Bucket.TRAINED])
    with pytest.raises(ValueError, match="2 episodes end, 1 were in flight"):
        ledger.settle([Bucket.TRAINED, Bucket.SURPLUS])
    assert ledger.buckets == Counter({Bucket.TRAINED: 1})


def test_a_copy_is_not_changed_by_what_comes_after() -> None:
    ledger = Ledger()
    ledger.dispatch(1)
    ledger.dispatch(2)
    kept = ledger.copy()
    ledger.settle([Bucket.TRAINED] * 3)
    assert (ledger.in_flight, kept.in_flight, kept.dispatched) == (0, 3, 3)


def test_a_group_may_be_trained_in_part_and_each_group_has_a_signal_of_its_own() -> None:
    played = episodes([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    ends = ends_of_step(played, played[4:6], group_size=GROUP)
    assert ends == [*[Bucket.NO_SIGNAL] * 4, *[Bucket.TRAINED] * 2, *[Bucket.SURPLUS] * 2]


def test_a_checkpoints_ledger_comes_back_whole_or_not_at_all() -> None:
    ledger = Ledger()
    ledger.dispatch(5)
    ledger.settle([Bucket.TRAINED] * 3 + [Bucket.CANCELLED])
    fields = ledger.as_fields()
    again = Ledger.from_fields(fields, where="step-3")
    assert again.as_fields() == fields
    assert again.in_flight == 1
    for wrong in ({"trained": 4}, {"dispatched": 6}, {"in_flight": 0}):
        with pytest.raises(ValueError, match="step-3: its ledger does not balance"):
            Ledger.from_fields(fields | wrong, where="step-3")
    for wrong in ({}, fields | {"trained": -1}, fields | {"other": 1}, fields | {"trained": "3"}):
        with pytest.raises(ValueError, match="not one of this program's"):
            Ledger.from_fields(wrong, where="step-3")
    for name in ("dispatched", "in_flight"):
        with pytest.raises(ValueError, match="not one of this program's"):
            Ledger.from_fields({key: n for key, n in fields.items() if key != name}, where="step-3")
