"""Which tasks a policy would learn most from: an item-response model of a run's episodes aims generation.

The items are cells, a domain's level each. A Rasch model with explained difficulty (a linear logistic test
model with residuals): the log-odds that the policy passes are its ability, less what the cell's dials make
of it, less what is the cell's own. Dials are what drafts of the cell show without a policy: choices, steps,
rules, writes, facts. A cell that the run did not play is predicted by its dials alone, with a wider interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from envs.task import stable_seed
from envs.world import open_image, tables_of
from synthesis.general import Candidate, domain_named, make_candidate
from synthesis.tally import Z95

Cell = tuple[str, int]
"""Domain and level."""
DIALS = ("choices", "steps", "rules", "writes", "facts")
"""log2 of the guess space and of the gold's calls, clauses, writes of the gold, log2 of the world's rows."""
DRAFTS_PER_CELL = 3
MAX_TRIES = 60
PRIOR_SD_ABILITY = 10.0
PRIOR_SD_DIAL = 1.0
"""Of the weight of a dial, in log-odds for each standard deviation of it."""
PRIOR_SD_CELL = 1.0
"""Of what is a cell's own, in log-odds."""
WIDTH = 0.15
"""Cells whose pass rate is so far from the target get 0.6 of the tasks of one that is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The chance that the policy passes a task of the cell; interval: 95 %. played: its tasks in the run."""

    rate: float
    interval: tuple[float, float]
    played: int


def dials_of(made: Candidate) -> tuple[float, ...]:
    """The values of `DIALS` of one candidate."""
    task = made.task
    guess = task.guess
    size = len(guess.plans) or math.prod(len(slot.options) for slot in guess.slots)
    writing = {tool.name for tool in task.tools if tool.writes}
    db = open_image(made.image)
    try:
        rows = sum(db.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables_of(db))
    finally:
        db.close()
    calls = task.gold.calls
    return (
        math.log2(max(1, size)),
        math.log2(1 + len(calls)),
        float(len(task.clauses)),
        float(sum(call.tool in writing for call in calls)),
        math.log2(1 + rows),
    )


def cell_dials(cell: Cell) -> tuple[float, ...]:
    """The means of a few candidates of the cell. Raises ValueError when its first seeds give none."""
    domain, level = cell
    found: list[tuple[float, ...]] = []
    for index in range(MAX_TRIES):
        made = make_candidate(domain_named(domain), level, stable_seed("dials", domain, level, index))
        if made is not None:
            found.append(dials_of(made))
        if len(found) == DRAFTS_PER_CELL:
            break
    if not found:
        raise ValueError(f"domain {domain}, level {level}: no task in {MAX_TRIES} seeds")
    return tuple(float(value) for value in np.mean(found, axis=0))


def predict(
    played: Mapping[Cell, tuple[float, int]], dials: Mapping[Cell, tuple[float, ...]]
) -> dict[Cell, Prediction]:
    """A prediction for every cell of `dials`, from the cells that were played.

    played: by cell, the sum of the tasks' mean rewards and their number: a task's samples count as one, since
    they are no news of the cell. Raises ValueError when nothing was played.
    """
    cells = list(dials)
    if not any(played.get(cell, (0.0, 0))[1] for cell in cells):
        raise ValueError("no task of these domains and levels was played")
    design_CK = _design(np.array([dials[cell] for cell in cells]))
    precision_K = np.concatenate(
        [
            [PRIOR_SD_ABILITY**-2],
            np.full(len(DIALS), PRIOR_SD_DIAL**-2),
            np.full(len(cells), PRIOR_SD_CELL**-2),
        ]
    )
    passed_C = np.array([played.get(cell, (0.0, 0))[0] for cell in cells])
    tasks_C = np.array([played.get(cell, (0.0, 0))[1] for cell in cells], dtype=float)
    weights_K, covariance_KK = _fit(design_CK, passed_C, tasks_C, precision_K)
    logit_C = design_CK @ weights_K
    sd_C = np.sqrt(np.einsum("ck,kl,cl->c", design_CK, covariance_KK, design_CK))
    return {
        cell: Prediction(
            rate=_sigmoid(logit),
            interval=(_sigmoid(logit - Z95 * sd), _sigmoid(logit + Z95 * sd)),
            played=int(num_tasks),
        )
        for cell, logit, sd, num_tasks in zip(cells, logit_C, sd_C, tasks_C, strict=True)
    }


def _design(dials_CD: np.ndarray) -> np.ndarray:
    """Ability, standardised dials, and one column for each cell."""
    spread_D = dials_CD.std(axis=0)
    scaled_CD = (dials_CD - dials_CD.mean(axis=0)) / np.where(spread_D > 0, spread_D, 1.0)
    return np.hstack([np.ones((len(dials_CD), 1)), scaled_CD, np.eye(len(dials_CD))])


def _fit(
    design_CK: np.ndarray, passed_C: np.ndarray, tasks_C: np.ndarray, precision_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The posterior's mode by Newton's method, and the covariance there (Laplace)."""
    weights_K = np.zeros(design_CK.shape[1])
    hessian_KK = np.diag(precision_K)
    for _ in range(50):
        rate_C = 1 / (1 + np.exp(-(design_CK @ weights_K)))
        gradient_K = design_CK.T @ (passed_C - tasks_C * rate_C) - precision_K * weights_K
        hessian_KK = (design_CK.T * (tasks_C * rate_C * (1 - rate_C))) @ design_CK + np.diag(precision_K)
        step_K = np.linalg.solve(hessian_KK, gradient_K)
        largest = float(np.abs(step_K).max())
        weights_K = weights_K + step_K * min(1.0, 2.0 / largest if largest > 0 else 1.0)
        if largest < 1e-9:
            break
    return weights_K, np.linalg.inv(hessian_KK)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(700.0, max(-700.0, float(value)))))


def aim(predictions: Mapping[Cell, Prediction], *, target: float, count: int) -> dict[Cell, int]:
    """How many tasks of each cell: most of those whose pass rate is near `target`, and `target` as the mean.

    Where every cell is easier, or every one harder, the nearest gets all.
    """
    cells = list(predictions)
    rate_C = np.array([predictions[cell].rate for cell in cells])
    near_C = -0.5 * ((rate_C - target) / WIDTH) ** 2
    share_C = _tilted(near_C, rate_C, target)
    exact_C = share_C * count
    counts_C = np.floor(exact_C).astype(int)
    order = sorted(range(len(cells)), key=lambda index: (counts_C[index] - exact_C[index], index))
    for index in order[: count - int(counts_C.sum())]:
        counts_C[index] += 1
    return {cell: int(number) for cell, number in zip(cells, counts_C, strict=True)}


def _tilted(near_C: np.ndarray, rate_C: np.ndarray, target: float) -> np.ndarray:
    """The shares next to `near` in relative entropy whose mean pass rate is the target."""
    low, high = -200.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        if _softmax(near_C + middle * rate_C) @ rate_C < target:
            low = middle
        else:
            high = middle
    return _softmax(near_C + low * rate_C)


def _softmax(values_C: np.ndarray) -> np.ndarray:
    shares_C = np.exp(values_C - values_C.max())
    return shares_C / shares_C.sum()
