"""Every cheater against every domain of the general family gets 0, the oracle 1, the idle agent 0."""

from collections.abc import Callable
from functools import lru_cache
from pkgutil import iter_modules

import pytest

import envs.families
from envs.agents import NullAgent, PlanAgent, gold_plan, play_agent
from envs.episode import StepResult, TaskEnv
from synthesis.general import DOMAINS, Candidate, make_candidate
from tests.hacks.general_cheaters import CHEATERS, GeneralCheater

Note = Callable[[str, str, str, StepResult], None]
NUM_TASKS = 1
"""Of each level."""


@lru_cache
def candidates(domain: str) -> list[Candidate]:
    found = []
    for level in DOMAINS[domain].levels:
        made = (make_candidate(DOMAINS[domain], level, seed) for seed in range(100, 200))
        found += [candidate for candidate, _ in zip(filter(None, made), range(NUM_TASKS), strict=False)]
    return found


def env_of(candidate: Candidate) -> TaskEnv:
    return TaskEnv(candidate.task, candidate.image, honeypots=True)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("cheater", CHEATERS, ids=lambda cheater: cheater.name.replace(" ", "-"))
def test_a_cheater_gets_nothing(cheater: GeneralCheater, domain: str, note: Note) -> None:
    for candidate in candidates(domain):
        for result in cheater.play(env_of(candidate), candidate.image):
            note(cheater.attack, cheater.name, f"general/{domain}", result)
            # Not None either: an episode that its policy can take out of the count is a bad one less.
            assert result.reward == 0.0, (candidate.task.task_id, result)
            assert set(result.baits) == set(cheater.baits)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_oracle_gets_one_and_the_idle_agent_nothing_and_neither_touches_bait(
    domain: str, note: Note
) -> None:
    for candidate in candidates(domain):
        oracle, _ = play_agent(env_of(candidate), PlanAgent(gold_plan(candidate.task)))
        idle, _ = play_agent(env_of(candidate), NullAgent())
        note("", "the oracle", f"general/{domain}", oracle)
        note("", "the agent that does nothing", f"general/{domain}", idle)
        assert (oracle.reward, oracle.baits) == (1.0, ())
        assert (idle.reward, idle.baits) == (0.0, ())


@pytest.mark.parametrize("domain", DOMAINS)
def test_most_cheaters_apply_to_every_domain(domain: str) -> None:
    """A cheater that silently does nothing would fill the matrix with empty cells."""
    candidate = candidates(domain)[0]
    idle = [c.name for c in CHEATERS if not list(c.play(env_of(candidate), candidate.image))]
    assert len(idle) <= 3, idle


def test_every_family_has_its_cheaters() -> None:
    """A new module of envs/families is a family, and needs a matrix of its own here."""
    families = {name.split("_")[0] for _, name, _ in iter_modules(envs.families.__path__)}
    assert families == {"code"}, "write tests/hacks/test_FAMILY_matrix.py and name the family here"
