"""Candidates of each domain, and one small corpus that the tests copy."""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from envs.task import stable_seed
from synthesis.general import Candidate, domain_named, make_candidate
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig

SMALL = SynthConfig(
    domains=("trip", "retail"),
    count=8,
    seed=5,
    levels=(1, 3),
    demonstrations=12,
    slip_rates=(0.0, 0.5),
    shard_rows=2,
)


@lru_cache(maxsize=64)
def nth_candidate(domain: str, level: int, index: int = 0) -> Candidate:
    """The first that is found in the index-th run of seeds."""
    tries = (
        make_candidate(domain_named(domain), level, stable_seed("test", domain, level, index, attempt))
        for attempt in range(100)
    )
    return next(found for found in tries if found is not None)


@pytest.fixture
def candidate() -> Callable[..., Candidate]:
    return nth_candidate


@pytest.fixture
def small_config() -> SynthConfig:
    return SMALL


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "small"
    synthesize(SMALL, directory, workers=0)
    return directory


@pytest.fixture
def corpus(made_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_once, tmp_path / "corpus"))
