"""The item-response model: what it makes of cells that were played, and of the others; and the aim."""

import itertools
import math
from collections.abc import Callable

import pytest

from synthesis.general import Candidate
from synthesis.learnability import DIALS, Cell, Prediction, aim, cell_dials, dials_of, predict

Candidates = Callable[..., Candidate]


def rated(*rates: float) -> dict[Cell, Prediction]:
    return {
        ("trip", level): Prediction(rate=rate, interval=(0.0, 1.0), played=1)
        for level, rate in enumerate(rates, start=1)
    }


def ladder(length: int) -> dict[Cell, tuple[float, ...]]:
    """Cells whose first dial rises by one, the others standing still."""
    return {("trip", level): (float(level), *([1.0] * (len(DIALS) - 1))) for level in range(1, length + 1)}


def test_a_cell_that_was_played_often_is_predicted_as_it_was() -> None:
    found = predict({("trip", 1): (180.0, 200), ("trip", 2): (20.0, 200)}, ladder(2))
    for level, rate in ((1, 0.9), (2, 0.1)):
        each = found["trip", level]
        assert each.rate == pytest.approx(rate, abs=0.02)
        assert each.interval[0] < rate < each.interval[1]
        assert each.played == 200


def test_dials_predict_the_cells_that_nobody_played() -> None:
    found = predict({("trip", 1): (45.0, 50), ("trip", 2): (35.0, 50), ("trip", 3): (25.0, 50)}, ladder(5))
    rates = [found["trip", level].rate for level in range(1, 6)]
    assert all(easier > harder for easier, harder in itertools.pairwise(rates))
    assert found["trip", 5].played == 0
    widths = [found["trip", level].interval[1] - found["trip", level].interval[0] for level in (2, 5)]
    assert widths[1] > 2 * widths[0]


def test_nothing_played_is_no_prediction() -> None:
    with pytest.raises(ValueError, match="was played"):
        predict({("retail", 1): (1.0, 2)}, ladder(2))


def test_the_mean_is_the_target_and_cells_near_it_get_most() -> None:
    assert aim(rated(0.2, 0.8), target=0.5, count=10) == {("trip", 1): 5, ("trip", 2): 5}
    counts = aim(rated(0.05, 0.45, 0.5, 0.95), target=0.5, count=1000)
    assert sum(counts.values()) == 1000
    assert counts["trip", 3] > counts["trip", 2] > 100 * counts["trip", 1]
    mean = sum(rate * counts["trip", level] for level, rate in enumerate((0.05, 0.45, 0.5, 0.95), 1)) / 1000
    assert mean == pytest.approx(0.5, abs=0.002)


def test_a_target_beyond_every_cell_takes_the_nearest() -> None:
    assert aim(rated(0.8, 0.9), target=0.5, count=7) == {("trip", 1): 7, ("trip", 2): 0}
    assert aim(rated(0.1, 0.3), target=0.5, count=7) == {("trip", 1): 0, ("trip", 2): 7}


def test_dials_are_read_off_a_candidate(candidate: Candidates) -> None:
    easy, hard = (dict(zip(DIALS, dials_of(candidate("warehouse", level)), strict=True)) for level in (6, 10))
    assert easy["choices"] == 4.0  # two items, four suppliers each
    assert hard["choices"] == 8.0
    assert (easy["rules"], hard["rules"]) == (3.0, 5.0)
    assert easy["writes"] == hard["writes"] == 0.0
    assert easy["steps"] > math.log2(3)  # at least a look for each item
    assert cell_dials(("warehouse", 6)) == cell_dials(("warehouse", 6))
