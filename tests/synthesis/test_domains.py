"""Both domains: their tools do what they declare; the oracle scores 1 and the null agent 0 on every level."""

import random
from collections.abc import Callable

import pytest

from envs.agents import NullAgent, gold_plan, play_agent, play_plan
from envs.episode import TaskEnv
from envs.task import Call
from envs.tool_server import ToolServer
from synthesis.gates.frame import effect_fault
from synthesis.gates.solution_mutants import write_calls
from synthesis.gates.trial import Trial
from synthesis.general import DOMAINS, Candidate
from synthesis.grammar import Care, Client

Candidates = Callable[..., Candidate]
LEVELS = [(name, level) for name, domain in DOMAINS.items() for level in domain.levels[:5]]


@pytest.mark.parametrize(("domain", "level"), LEVELS)
def test_the_oracle_scores_one_and_the_null_agent_zero(
    candidate: Candidates, domain: str, level: int
) -> None:
    for index in range(5):
        made = candidate(domain, level, index)
        assert play_plan(made.task, made.image, gold_plan(made.task)).reward == 1.0
        assert play_agent(TaskEnv(made.task, made.image), NullAgent())[0].reward == 0.0


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_tool_does_what_it_declares(candidate: Candidates, domain: str) -> None:
    """Each tool once, its arguments from the world's columns of the parameters' names."""
    made = candidate(domain, DOMAINS[domain].levels[0])
    trial = Trial(made)
    words = {"info_keywords": ["rating"], "from_city": ["x"], "to_city": ["y"], "answer_text": ["[]"]}
    words |= {"after": ["-"], "min_seats": [1]}
    for tool in made.task.tools:
        arguments = {}
        for param in tool.parameters:
            values = [v for (_, column), held in trial.columns.items() if column == param.name for v in held]
            arguments[param.name] = (list(param.enum) or words.get(param.name) or values)[0]
        if not tool.ends_episode:
            assert effect_fault(made.image, tool, Call(tool=tool.name, arguments=arguments)) is None
    assert bool(write_calls(trial)) == any(tool.writes for tool in made.task.tools)


@pytest.mark.parametrize(("domain", "level"), LEVELS)
def test_a_careless_planner_never_makes_an_error_that_stops_it(
    candidate: Candidates, domain: str, level: int
) -> None:
    for index in range(5):
        made = candidate(domain, level, index)
        server = ToolServer(made.image, made.task.tools)
        care = Care(slip_rate=0.7, rng=random.Random(index))
        plan = DOMAINS[domain].plan(made.draft, Client(server), care)
        assert len(plan.calls) < made.task.max_turns
        server.close()


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_unknown_level_is_named(domain: str) -> None:
    with pytest.raises(ValueError, match="levels"):
        DOMAINS[domain].draft(99, 1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_shown_levels_leave_one_that_a_cold_start_never_sees(domain: str) -> None:
    assert set(DOMAINS[domain].shown_levels) < set(DOMAINS[domain].levels)
