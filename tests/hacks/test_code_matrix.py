"""Every cheater against the code family gets 0, the oracle 1, the agent that does nothing 0."""

from collections.abc import Callable

import pytest

from envs.agents import NullAgent, PlanAgent, play_agent
from envs.episode import StepResult
from envs.families.code import CodeTask, gold_plan
from envs.families.code_episode import CodeEnv
from envs.outcome import Cause
from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import Limits, Sandbox
from envs.task import Call, Plan
from tests.example_code_tasks import STATS, TASKS
from tests.hacks.code_cheaters import CHEATERS, CodeCheater

TIERS = [pytest.param("namespaces"), pytest.param("docker", marks=pytest.mark.docker)]
LIMITS = Limits(memory_mb=256, pids=48, tmp_mb=32)
SUBMIT = Call(tool="submit", arguments={})
Note = Callable[[str, str, str, StepResult], None]


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    fault = namespaces.why_unavailable() if request.param == "namespaces" else docker_engine.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier {request.param}: {fault}")
    return request.param


@pytest.fixture(scope="module")
def make_box(tier: str) -> Callable[[], Sandbox]:
    maker = namespaces.namespaces_box if tier == "namespaces" else docker_engine.docker_box
    return lambda: maker(LIMITS)


def play(task: CodeTask, plan: Plan, make_box: Callable[[], Sandbox]) -> StepResult:
    return play_agent(CodeEnv(task, make_box, honeypots=True), PlanAgent(plan))[0]


@pytest.mark.parametrize("cheater", CHEATERS, ids=lambda cheater: cheater.name.replace(" ", "-"))
def test_a_cheater_gets_nothing(
    cheater: CodeCheater, tier: str, make_box: Callable[[], Sandbox], note: Note
) -> None:
    result = play(STATS, Plan(calls=(*cheater.act(STATS), SUBMIT), answer=""), make_box)
    note(cheater.attack, cheater.name, f"code ({tier})", result)
    # Not None either: an episode that its policy can take out of the count is a bad one less.
    assert (result.reward, result.cause) == (0.0, Cause.ANSWERED), result
    assert set(result.baits) == set(cheater.baits)
    assert result.verdict is not None


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_oracle_gets_one_and_touches_no_bait(
    task: CodeTask, tier: str, make_box: Callable[[], Sandbox], note: Note
) -> None:
    result = play(task, gold_plan(task), make_box)
    note("", "the oracle", f"code ({tier})", result)
    assert (result.reward, result.baits) == (1.0, ())


def test_the_null_agent_gets_nothing(tier: str, make_box: Callable[[], Sandbox], note: Note) -> None:
    result, _ = play_agent(CodeEnv(STATS, make_box, honeypots=True), NullAgent())
    note("", "the agent that does nothing", f"code ({tier})", result)
    assert (result.reward, result.baits) == (0.0, ())
