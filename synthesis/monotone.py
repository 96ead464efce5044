"""Whether a pass rate falls as a dial is turned up, and what chance alone would explain.

`steps` are settings from the easiest on, each (passed, played). The *fit* is the closest rate to each that
never rises (pool adjacent violators, weighted by tasks). How far the rates lie from it is compared with what
as many tasks drawn at the fitted rates give: the share of draws that lie as far is the p-value of a rise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from synthesis.tally import wilson

DRAWS = 4000
Steps = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """drop: the first setting's rate less the last's, with Newcombe's 95 % interval. rise: the most that a
    later setting's rate lies above an earlier one's; most: 97.5 % of what drawing the tasks again gives.
    p_value: of the rates, or worse ones, where the true ones never rise.
    """

    drop: float
    interval: tuple[float, float]
    rise: float
    most: float
    p_value: float

    def verdict(self, p_value: float) -> Literal["falls", "flat", "rises"]:
        """p_value: this one, or as corrected for how many were looked at."""
        if p_value < 0.05:
            return "rises"
        return "falls" if self.interval[0] > 0 else "flat"


def trend(steps: Steps, *, seed: int = 0, draws: int = DRAWS) -> Trend:
    """Raises ValueError for fewer than two settings, or one that was not played."""
    if len(steps) < 2 or not all(played for _, played in steps):
        raise ValueError("a trend needs two settings or more, each played")
    passed_S, played_S = (np.array(column) for column in zip(*steps, strict=True))
    rate_S = passed_S / played_S
    rng = np.random.default_rng(seed)
    fit_S = falling_fit(rate_S, played_S)
    fitted_DS = rng.binomial(played_S, fit_S, size=(draws, len(steps))) / played_S
    again_DS = rng.binomial(played_S, rate_S, size=(draws, len(steps))) / played_S
    found = _distance(rate_S, played_S)
    as_far = [_distance(rate, played_S) >= found - 1e-12 for rate in fitted_DS]
    (low_a, high_a), (low_b, high_b) = wilson(*steps[0]), wilson(*steps[-1])
    first, last = float(rate_S[0]), float(rate_S[-1])
    return Trend(
        drop=first - last,
        interval=(
            first - last - math.hypot(first - low_a, high_b - last),
            first - last + math.hypot(high_a - first, last - low_b),
        ),
        rise=largest_rise(rate_S),
        most=float(np.quantile([largest_rise(rate) for rate in again_DS], 0.975)),
        p_value=float(np.mean(as_far)) if found > 1e-12 else 1.0,
    )


def falling_fit(rate_S: np.ndarray, weight_S: np.ndarray) -> np.ndarray:
    """[S] the rates closest to `rate_S` in weighted squares that never rise."""
    blocks: list[list[float]] = []  # rate, weight, settings
    for rate, weight in zip(rate_S, weight_S, strict=True):
        blocks.append([float(rate), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            rate_b, weight_b, count_b = blocks.pop()
            rate_a, weight_a, count_a = blocks.pop()
            both = weight_a + weight_b
            blocks.append([(rate_a * weight_a + rate_b * weight_b) / both, both, count_a + count_b])
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])


def largest_rise(rate_S: np.ndarray) -> float:
    return float(np.max(rate_S - np.minimum.accumulate(rate_S)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for their number: so that one of them is below 0.05 by chance alone with 5 % at most."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _distance(rate_S: np.ndarray, played_S: np.ndarray) -> float:
    return float(np.sum(played_S * (rate_S - falling_fit(rate_S, played_S)) ** 2))
