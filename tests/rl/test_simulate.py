"""The simulator against times worked by hand, and the schedule's promises over random machinery."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.buffer import Limits
from rl.latency import Latency
from rl.simulate import Episodes, Plant, recommend, simulate


def limits(**fields: int) -> Limits:
    sizes = {"group_size": 2, "groups_trained": 1, "groups_per_step": 1, "max_staleness": 0, "episodes": 100}
    return Limits(**(sizes | {"num_steps": 10} | fields))


def plant(**fields: object) -> Plant:
    usual = {"replicas": 1, "boxes": 100, "step_s": 0.1, "token_s": 0.0, "learner_s": [3.0]}
    return Plant(**(usual | fields))  # pyright: ignore[reportArgumentType]


def test_taking_turns_costs_the_sum_and_going_on_beside_the_learner_the_longer_of_both() -> None:
    # Two turns of five tokens at 0.1 s and a tool of 1 s after each: 3 s an episode, 3 s a learner step.
    episodes = Episodes(turns=[[5, 5]], tools=[1.0])
    turns = simulate(plant(), episodes, limits(group_size=1))
    assert turns.seconds == pytest.approx(10 * (3.0 + 3.0))
    assert turns.bubble_share == pytest.approx(0.5)
    assert turns.staleness == {0: 10}
    assert turns.tokens == 10 * 10
    beside = simulate(plant(), episodes, limits(group_size=1, max_staleness=1))
    assert beside.seconds == pytest.approx(3.0 + 10 * 3.0)
    assert beside.bubble_share == pytest.approx(3.0 / 33.0)
    assert beside.staleness == {0: 1, 1: 9}


def test_replicas_that_take_weights_hold_up_rollouts_and_not_the_learner() -> None:
    # An episode of 1 s, a learner step of 3 s, 1 s for the weights, which the first step does not need.
    episodes = Episodes(turns=[[5]], tools=[0.5])
    turns = simulate(plant(sync_s=1.0), episodes, limits(group_size=1))
    assert turns.seconds == pytest.approx(10 * (1.0 + 3.0) + 9 * 1.0)
    beside = simulate(plant(sync_s=1.0), episodes, limits(group_size=1, max_staleness=1))
    assert beside.seconds == pytest.approx(1.0 + 10 * 3.0)


def test_words_with_actors_delay_episodes_beside_the_learner_alone() -> None:
    # Episodes of 3 s, a learner step of next to nothing: a run is its episodes, one after the other.
    episodes = Episodes(turns=[[5]], tools=[2.5])
    quick, slow = plant(learner_s=[0.001]), plant(learner_s=[0.001], word_s=0.5)
    assert simulate(slow, episodes, limits()).seconds == simulate(quick, episodes, limits()).seconds
    room = limits(max_staleness=1, episodes=2)  # for one group at a time
    assert simulate(quick, episodes, room).seconds == pytest.approx(10 * 3.0, abs=0.1)
    delay = simulate(slow, episodes, room).seconds / 10 - 3.0
    assert 0.25 < delay < 2 * 0.5  # one word before, and the later of two words after


def test_episodes_share_a_replicas_steps_and_queue_for_its_boxes() -> None:
    episodes = Episodes(turns=[[10]])
    # 0.1 s a step and 0.01 s for each of four running episodes.
    shared = simulate(plant(token_s=0.01), episodes, limits(groups_trained=2, groups_per_step=2, num_steps=1))
    assert shared.seconds == pytest.approx(10 * 0.14 + 3.0)
    one_by_one = simulate(
        plant(boxes=2), episodes, limits(groups_trained=2, groups_per_step=2, num_steps=1, episodes=2)
    )
    assert one_by_one.seconds == pytest.approx(2 * 10 * 0.1 + 3.0)


def test_groups_without_a_signal_are_replaced_and_cost_their_time() -> None:
    episodes = Episodes(turns=[[10]], signal=0.0)
    run = simulate(plant(), episodes, limits(groups_per_step=4, num_steps=5))
    assert run.replaced == pytest.approx(3.0)
    assert run.seconds == pytest.approx(5 * (4 * 1.0 + 3.0))


def test_a_heavy_tail_is_trained_and_not_left_behind() -> None:
    """The longest episodes that are trained are as long under any bound: none is dropped for being slow."""
    episodes = Episodes(turns=[[3, 3, 3]], latency=Latency(median_s=0.5, sigma=1.5, longest_s=60))
    longest = [
        simulate(plant(), episodes, limits(group_size=4, groups_trained=2, groups_per_step=2, num_steps=60,
                                           max_staleness=bound), seed=3).longest_trained_s
        for bound in (0, 2, 4)
    ]  # fmt: skip
    assert min(longest) > 10
    assert max(longest) / min(longest) < 3


def test_the_least_stale_setting_that_is_nearly_the_fastest_is_recommended() -> None:
    episodes = Episodes(turns=[[5, 5]], tools=[1.0])
    chosen, tried = recommend(
        plant(), episodes, limits(num_steps=40), stalenesses=(0, 1, 2, 4), replicas=[1, 2]
    )
    assert len(tried) == 8
    assert (chosen.max_staleness, chosen.replicas) == (1, 1)
    # The learner takes next to nothing and episodes at once are no quicker: there is nothing to overlap.
    busy = plant(step_s=0.0, token_s=0.1, learner_s=[0.001])
    quick, _ = recommend(busy, Episodes(turns=[[50]]), limits(), stalenesses=(0, 4))
    assert quick.max_staleness == 0


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    bound=st.integers(0, 4),
    trained=st.integers(1, 3),
    spare=st.integers(0, 2),
    boxes=st.integers(1, 20),
    replicas=st.integers(1, 3),
    signal=st.floats(0, 1),
)
def test_whatever_the_machinery_the_bound_holds_and_every_step_is_trained(  # noqa: PLR0913
    seed: int, bound: int, trained: int, spare: int, boxes: int, replicas: int, signal: float
) -> None:
    rng = random.Random(seed)
    turns = [[rng.randint(1, 20) for _ in range(rng.randint(1, 4))] for _ in range(5)]
    latency = Latency(median_s=rng.random(), sigma=2 * rng.random(), longest_s=30)
    run = simulate(
        plant(replicas=replicas, boxes=boxes, learner_s=[rng.random() * 5, rng.random()], token_s=0.001),
        Episodes(turns=turns, latency=latency, signal=signal),
        limits(groups_trained=trained, groups_per_step=trained + spare, max_staleness=bound, num_steps=8,
               episodes=replicas * boxes),
        seed=seed,
    )  # fmt: skip
    assert sum(run.staleness.values()) == 8 * trained
    assert set(run.staleness) <= set(range(bound + 1))
    assert 0 <= run.bubble_share <= 1
    assert 0 < run.busy_share <= 1
    assert run.replaced <= spare


@pytest.mark.parametrize(
    ("machinery", "episodes", "sizes"),
    [
        (plant(), Episodes(turns=[[1]]), limits(num_steps=0)),
        (plant(replicas=0), Episodes(turns=[[1]]), limits()),
        (plant(), Episodes(turns=[[]]), limits()),
    ],
)
def test_what_cannot_be_simulated_is_said(machinery: Plant, episodes: Episodes, sizes: Limits) -> None:
    with pytest.raises(ValueError, match=r"at least one|must be a replica"):
        simulate(machinery, episodes, sizes)
