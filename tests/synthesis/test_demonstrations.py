"""Demonstrations: the same conversation and reward as the environment would give, careful or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from envs.agents import PlanAgent, gold_plan, plan_messages, play_agent
from envs.episode import TaskEnv
from envs.task import Call, Message, Plan, stable_seed
from synthesis.demonstrations import Demonstration, demonstrate_once, read_demonstrations
from synthesis.general import DOMAINS, Candidate, domain_named, make_candidate

LEVELS = [(name, level) for name, domain in DOMAINS.items() for level in domain.levels[:4]]


def shown(domain: str, level: int, index: int, slip_rate: float) -> Demonstration:
    seed = stable_seed("shown", domain, level, index)
    made = demonstrate_once(domain_named(domain), level, seed, slip_rate=slip_rate, toolset="t")
    assert made is not None
    return made


@pytest.mark.parametrize(("domain", "level"), LEVELS)
@pytest.mark.parametrize("slip_rate", [0.0, 0.6])
def test_a_demonstration_is_what_the_environment_plays(domain: str, level: int, slip_rate: float) -> None:
    for index in range(4):
        demonstration = shown(domain, level, index, slip_rate)
        candidate = make_candidate(domain_named(domain), level, demonstration.seed)
        assert candidate is not None
        own = [message for message in demonstration.messages if message.role == "assistant"]
        calls = tuple(call for message in own for call in message.tool_calls)
        result, transcript = play_agent(
            TaskEnv(candidate.task, candidate.image), PlanAgent(Plan(calls=calls, answer=own[-1].content))
        )
        assert tuple(transcript) == demonstration.messages
        assert result.reward == demonstration.reward


@pytest.mark.parametrize(("domain", "level"), LEVELS)
def test_full_care_is_always_right(domain: str, level: int) -> None:
    made = [shown(domain, level, index, 0.0) for index in range(10)]
    assert [(each.reward, each.num_slips) for each in made] == [(1.0, 0)] * 10


def test_slips_are_counted_and_cost() -> None:
    made = [shown("trip", 3, index, 0.5) for index in range(60)]
    slipped = [each for each in made if each.num_slips]
    assert 30 < len(slipped) < 60
    assert sum(each.reward for each in slipped) < 0.6 * len(slipped)
    assert all(each.reward == 1.0 for each in made if not each.num_slips)


def test_they_come_back_from_disk_as_they_were(made_once: Path) -> None:
    found = list(read_demonstrations(made_once))
    assert len(found) == len({each.id for each in found}) == 12
    assert {each.slip_rate for each in found} == {0.0, 0.5}
    again = shown("trip", 1, 0, 0.0)
    first = found[0]
    made = demonstrate_once(
        domain_named(first.domain), first.level, first.seed, slip_rate=first.slip_rate, toolset=first.tools
    )
    assert made == first
    assert again != first
    assert {each.level for each in read_demonstrations(made_once, domain="retail", level=3)} == {3}


def test_trip_ends_by_a_call_and_retail_by_a_message(candidate: Callable[..., Candidate]) -> None:
    trip, retail = shown("trip", 1, 0, 0.0).messages[-1], shown("retail", 1, 0, 0.0).messages[-1]
    assert [call.tool for call in trip.tool_calls] == ["submit_result"]
    assert (retail.tool_calls, retail.content in ("done", "refused")) == ((), True)
    made = candidate("retail", 1)
    assert plan_messages(gold_plan(made.task))[-1] == Message(role="assistant", content=made.task.gold.answer)
    assert gold_plan(candidate("trip", 1).task).calls[-1] == Call(
        tool="submit_result", arguments={"answer_text": candidate("trip", 1).task.gold.answer}
    )
