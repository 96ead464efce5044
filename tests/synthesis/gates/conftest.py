"""Candidates under trial, changed as a test asks."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from synthesis.gates.trial import Trial
from synthesis.general import Candidate


@pytest.fixture
def retail(candidate: Callable[..., Candidate]) -> Callable[..., Candidate]:
    """A return that the policy allows, or one that it does not."""

    def find(*, allowed: bool, level: int = 2) -> Candidate:
        made = (candidate("retail", level, index) for index in range(40))
        return next(each for each in made if bool(each.task.frame) == allowed)

    return find


@pytest.fixture
def changed() -> Callable[..., Trial]:
    def change(candidate: Candidate, **fields: object) -> Trial:
        return Trial(replace(candidate, task=replace(candidate.task, **fields)))

    return change
