import pytest

from rl.statistics import (
    mean_over_tasks,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    pass_rate,
    wilson_interval,
)


def test_wilsons_interval_matches_the_published_example() -> None:
    low, high = wilson_interval(10, 20)  # p = 0.5, n = 20: 0.299 to 0.701
    assert (low, high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_no_failures_still_leaves_doubt() -> None:
    low, high = wilson_interval(0, 100)
    assert low == 0.0
    assert high == pytest.approx(0.0370, abs=1e-4)


def test_the_interval_ends_at_none_and_at_all_and_covers_everything_without_a_trial() -> None:
    for trials in range(1, 200):
        assert wilson_interval(0, trials)[0] == 0.0
        assert wilson_interval(trials, trials)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_rate_is_the_mean_over_tasks_and_tasks_that_agree_are_as_many_trials() -> None:
    told = pass_rate({"a": [1.0], "b": [0.0, 0.0, 0.0], "c": []})
    assert (told.pass_rate, told.episodes, told.tasks) == (0.5, 4, 2)
    same = pass_rate({str(task): [1.0, 0.0] for task in range(10)})  # no variance between tasks
    assert same.interval == wilson_interval(5, 10)


def test_the_effective_trials_are_by_the_variance_of_the_tasks_means_and_at_most_the_episodes() -> None:
    # means 1, 1, 0, 0: their variance is 1/3, the mean's 1/12; 0.25 / (1/12) = 3 trials, of 8 episodes
    apart = pass_rate({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "d": [0.0, 0.0]})
    assert apart.interval == pytest.approx(wilson_interval(1.5, 3))
    # means 0.5, 0.5, 0.5, 0.75 and 16 episodes: more trials than that are not believed
    near = pass_rate({name: [1.0, 1.0, 0.0, 0.0] for name in "abc"} | {"d": [1.0, 1.0, 1.0, 0.0]})
    assert near.interval == pytest.approx(wilson_interval(16 * 0.5625, 16))


def test_samples_that_agree_within_their_task_count_once() -> None:
    twins = pass_rate({str(task): [float(task % 2)] * 4 for task in range(100)})
    alone = pass_rate({str(task): [float(task % 2)] for task in range(100)})
    assert twins.episodes == 400
    assert twins.interval == (
        pytest.approx(alone.interval[0], abs=1e-3),
        pytest.approx(alone.interval[1], abs=1e-3),
    )


def test_samples_that_differ_within_their_task_narrow_the_interval() -> None:
    mixed = pass_rate({str(task): [1.0, 0.0] if task % 2 else [0.0, 1.0] for task in range(100)})
    alone = pass_rate({str(task): [float(task % 2)] for task in range(100)})
    assert mixed.interval[1] - mixed.interval[0] <= alone.interval[1] - alone.interval[0]


def test_nothing_measured_is_no_rate() -> None:
    assert pass_rate({}).pass_rate is None


def test_pass_at_k_and_pass_hat_k_by_hand() -> None:
    # 4 samples, 2 passed: of 6 pairs, 1 holds no pass and 1 holds only passes
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_hat_k(4, 2, 2) == pytest.approx(1 / 6)


def test_a_task_with_as_many_failures_as_samples_drawn_may_fail() -> None:
    assert pass_at_k(4, 2, 3) == 1.0  # of any 3, one passed
    assert pass_at_k(4, 1, 3) == pytest.approx(3 / 4)
    assert pass_at_k(2, 0, 2) == 0.0
    assert mean_over_tasks([]) is None
    assert mean_over_tasks([1.0, 0.0]) == 0.5


def test_one_pair_says_nothing_certain_and_an_interval_stays_a_difference_of_rates() -> None:
    assert paired_difference({"a": [1.0]}, {"a": [0.0]}) == (1.0, (-1.0, 1.0))
    assert paired_difference({"a": [1.0], "b": [1.0]}, {"a": [0.0], "b": [1.0]})[1] == (
        pytest.approx(0.5 - 1.959964 * 0.5),
        1.0,
    )
    assert paired_difference({"a": [0.0], "b": [1.0]}, {"a": [1.0], "b": [1.0]})[1][0] == -1.0


def test_a_paired_difference_by_hand() -> None:
    ours = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [0.0, 0.0], "only ours": [1.0]}
    theirs = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 0.0], "not measured": []}
    difference, (low, high) = paired_difference(ours, theirs)
    assert difference == pytest.approx(0.5 / 3)  # gaps of 0.5, 0 and 0
    # about their mean of 1/6 the squares add up to 1/6: a variance of 1/12, and a third of it is the mean's
    half = 1.959964 * (1 / 12 / 3) ** 0.5
    assert (low, high) == (pytest.approx(0.5 / 3 - half), pytest.approx(0.5 / 3 + half))


def test_pairing_takes_out_what_makes_tasks_easy_or_hard() -> None:
    theirs = {str(task): [float(task % 2)] for task in range(200)}
    ours = {**theirs, "0": [1.0]}
    difference, (low, high) = paired_difference(ours, theirs)
    assert difference == pytest.approx(1 / 200)
    assert high - low < 0.03  # unpaired: 0.2


def test_no_task_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="share no task"):
        paired_difference({"a": [1.0]}, {"b": [1.0]})
