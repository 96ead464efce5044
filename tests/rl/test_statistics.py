import pytest

from rl.statistics import paired_difference, pass_at_k, pass_hat_k, pass_rate, wilson_interval


def test_wilsons_interval_matches_the_published_example() -> None:
    low, high = wilson_interval(10, 20)  # p = 0.5, n = 20: 0.299 to 0.701
    assert (low, high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_no_failures_still_leaves_doubt() -> None:
    low, high = wilson_interval(0, 100)
    assert low == 0.0
    assert high == pytest.approx(0.0370, abs=1e-4)


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
