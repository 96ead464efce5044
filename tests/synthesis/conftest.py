"""Candidates of each domain, and one small corpus that the tests copy."""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from envs.task import stable_seed
from synthesis.general import Candidate, domain_named, make_candidate
from synthesis.pipeline import SynthConfig, synthesize

SMALL = SynthConfig(count=8, seed=5, levels=(1, 3), demonstrations=12, slip_rates=(0.0, 0.5), shard_rows=2)


@lru_cache(maxsize=64)
def nth_candidate(domain: str, level: int, index: int = 0) -> Candidate:
    found = make_candidate(domain_named(domain), level, stable_seed("test", domain, level, index))
    assert found is not None, "this seed's world holds no task"
    return found


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
