"""Domains as gymnasium environments: a seed or an id opens a certified task; vectors keep text whole."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from envs.agents import gold_plan, plan_messages
from envs.task import Message
from synthesis.general import DOMAINS
from synthesis.gym_env import DomainEnv, env_id, register
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig


@pytest.fixture(autouse=True)
def ids() -> None:
    register()
    register()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    synthesize(SynthConfig(domains=("retail",), levels=(1,), count=3, seed=5), directory, workers=0)
    return directory


def as_text(message: Message) -> str:
    calls = [{"name": call.tool, "arguments": call.arguments} for call in message.tool_calls]
    return json.dumps({"content": message.content, "tool_calls": calls})


@pytest.mark.parametrize("domain", DOMAINS)
def test_gymnasium_finds_no_fault_in_any_domain(domain: str) -> None:
    env = gymnasium.make(env_id(domain))
    assert env.spec is not None
    assert env.spec.entry_point == "synthesis.gym_env:DomainEnv"  # a string: workers import it themselves
    check_env(env.unwrapped)


def test_a_seed_names_a_task_and_another_seed_another() -> None:
    tasks = []
    for seed in (3, 3, 4):
        env = gymnasium.make("worldsmith/Parcels-v0", level=2)
        tasks.append(env.reset(seed=seed)[1]["task_id"])
        env.close()
    assert tasks[0] == tasks[1] != tasks[2]


def test_the_gold_earns_one_and_resets_without_a_seed_go_on_to_other_tasks() -> None:
    env = DomainEnv("trip")
    first = env.reset(seed=8)[1]["task_id"]
    ends = []
    for message in plan_messages(gold_plan(env.running.task)):
        _, reward, terminated, truncated, _ = env.step(as_text(message))
        ends.append((reward, terminated))
        if terminated or truncated:
            break
    assert ends[-1] == (1.0, True)
    assert env.reset()[1]["task_id"] != first
    env.close()


def test_a_task_of_a_corpus_is_opened_by_its_id(corpus: Path) -> None:
    env = DomainEnv("retail", corpus=str(corpus))
    ids = {env.reset(seed=seed)[1]["task_id"] for seed in range(30)}
    assert len(ids) == 3
    for task_id in ids:
        assert env.reset(options={"task_id": task_id})[1]["task_id"] == task_id
    with pytest.raises(ValueError, match=f"did you mean {min(ids)}"):
        env.reset(options={"task_id": min(ids) + "x"})
    with pytest.raises(ValueError, match="there is task_id, got 'level'"):
        env.reset(options={"level": 1})
    env.close()


def test_what_cannot_be_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match="no level 9; it has 1, 2"):
        DomainEnv("retail", level=9)
    with pytest.raises(ValueError, match="no tasks of domain 'trip'; it holds retail"):
        DomainEnv("trip", corpus=str(corpus))
    with pytest.raises(ValueError, match="needs corpus=DIR"):
        DomainEnv("trip").reset(options={"task_id": "trip-1-0"})
    with pytest.raises(RuntimeError, match="call reset first"):
        DomainEnv("trip").step("{}")


def first_observations(vector: SyncVectorEnv | AsyncVectorEnv) -> list[str]:
    try:
        seeds: Any = [11, 12]  # gymnasium's base class does not say that a vector takes one each
        observations, _ = vector.reset(seed=seeds)
        return [str(one) for one in observations]
    finally:
        vector.close()


def test_vector_environments_give_the_texts_of_single_ones() -> None:
    makers = [lambda: DomainEnv("retail"), lambda: DomainEnv("retail")]
    alone = [DomainEnv("retail").reset(seed=seed)[0] for seed in (11, 12)]
    assert first_observations(SyncVectorEnv(makers)) == alone
    assert first_observations(AsyncVectorEnv(makers, shared_memory=False)) == alone


def test_shared_memory_spoils_text_and_so_is_not_for_these_environments() -> None:
    """gymnasium's default: it keeps text in a block of fixed size and gives back characters of its own."""
    makers = [lambda: DomainEnv("retail"), lambda: DomainEnv("retail")]
    alone = [DomainEnv("retail").reset(seed=seed)[0] for seed in (11, 12)]
    shared = first_observations(AsyncVectorEnv(makers))
    assert shared != alone
    assert np.array(shared).shape == (2,)
