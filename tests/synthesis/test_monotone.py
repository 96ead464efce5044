"""Does a pass rate fall with a dial: the closest falling rates, and which rises chance does not explain."""

import numpy as np
import pytest

from synthesis.monotone import falling_fit, holm, largest_rise, trend


def test_rises_are_pooled_by_their_weights() -> None:
    fit = falling_fit(np.array([0.9, 0.4, 0.7, 0.1]), np.array([10, 10, 20, 10]))
    assert fit == pytest.approx([0.9, 0.6, 0.6, 0.1])  # (0.4 x 10 + 0.7 x 20) / 30
    assert falling_fit(np.array([0.2, 0.4, 0.9]), np.array([1, 1, 1])) == pytest.approx([0.5] * 3)
    assert falling_fit(np.array([0.9, 0.5, 0.5]), np.array([3, 1, 2])) == pytest.approx([0.9, 0.5, 0.5])


def test_the_largest_rise_is_over_any_earlier_setting() -> None:
    assert largest_rise(np.array([0.9, 0.5, 0.55, 0.6])) == pytest.approx(0.1)
    assert largest_rise(np.array([0.9, 0.5, 0.5])) == 0.0


def test_a_fall_is_seen_with_its_interval() -> None:
    found = trend([(180, 200), (140, 200), (90, 200)])
    assert (found.rise, found.p_value) == (0.0, 1.0)
    assert found.drop == pytest.approx(0.45)
    assert 0.3 < found.interval[0] < 0.45 < found.interval[1] < 0.6
    assert found.verdict(found.p_value) == "falls"


def test_a_rise_that_chance_explains_is_none_and_a_large_one_is() -> None:
    small = trend([(160, 200), (120, 200), (124, 200)])
    assert small.rise == pytest.approx(0.02)
    assert small.p_value > 0.2
    assert small.verdict(small.p_value) == "falls"
    large = trend([(160, 200), (100, 200), (150, 200)])
    assert large.p_value < 0.001
    assert large.verdict(large.p_value) == "rises"
    flat = trend([(150, 200), (149, 200), (151, 200)])
    assert flat.verdict(flat.p_value) == "flat"


def test_where_nothing_rises_in_truth_a_rise_is_called_about_as_often_as_the_level_says() -> None:
    """Equal rates are the hardest case for the test."""
    rng = np.random.default_rng(5)
    called = [
        trend([(int(hits), 100) for hits in rng.binomial(100, 0.6, size=3)], seed=run, draws=300)
        for run in range(100)
    ]
    assert 1 <= sum(each.p_value < 0.05 for each in called) <= 12


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


@pytest.mark.parametrize("steps", [[(1, 2)], [(1, 2), (0, 0)]])
def test_too_little_to_see_a_trend_is_refused(steps: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="two settings or more"):
        trend(steps)
