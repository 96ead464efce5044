"""One task as a gymnasium environment, by scripted agents and by JSON text."""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs.agents import NullAgent, PlanAgent, gold_plan, greedy_plan, make_agent, play_agent, play_plan
from envs.episode import MAX_MALFORMED, TaskEnv, parse_message
from envs.outcome import Cause
from envs.registration import TASK_ENV_ID, register
from envs.task import Call, Clause, Message, Plan, Task, task_to_json
from envs.tools import Param, Tool


def text(*calls: Call, content: str = "") -> str:
    listed = [{"name": call.tool, "arguments": call.arguments} for call in calls]
    return json.dumps({"content": content, "tool_calls": listed})


@pytest.fixture
def files(task: Task, image: bytes, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "task.json").write_text(task_to_json(task))
    (tmp_path / "world.sqlite").write_bytes(image)
    return {"task_file": str(tmp_path / "task.json"), "world_file": str(tmp_path / "world.sqlite")}


def make(files: dict[str, str]) -> gymnasium.Env[str, str]:
    return gymnasium.make(TASK_ENV_ID, task_file=files["task_file"], world_file=files["world_file"])


def test_gymnasium_finds_no_fault(files: dict[str, str]) -> None:
    register()
    check_env(make(files).unwrapped)


def test_gymnasium_makes_it_by_its_id(files: dict[str, str]) -> None:
    register()
    register()
    env = make(files)
    observation, info = env.reset(seed=1)
    assert observation == "[user] Sell one apple, then answer done."
    assert info["task_id"] == "tiny"
    env.close()
    with pytest.raises(ValueError, match="no such file"):
        make(files | {"task_file": "nowhere.json"})


def test_the_right_messages_score_one_at_the_end_and_zero_before(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    env.reset()
    observation, reward, terminated, truncated, _ = env.step(text(task.gold.calls[0]))
    assert (observation, reward, terminated, truncated) == ("[tool] 3", 0.0, False, False)
    env.step(text(task.gold.calls[1]))
    _, reward, terminated, truncated, info = env.step(text(content="done"))
    assert (reward, terminated, truncated, info["cause"], info["measured"]) == (
        1.0,
        True,
        False,
        "answered",
        True,
    )
    assert "sell" in env.render()


def test_several_calls_in_one_message_run_in_order(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    env.start()
    result = env.play(Message(role="assistant", tool_calls=(*task.gold.calls, task.gold.calls[0])))
    assert [message.content for message in result.messages] == ["3", "sold", "2"]


def test_a_call_that_ends_the_episode_carries_the_answer(task: Task, image: bytes) -> None:
    end = Tool(
        name="submit", description="", parameters=(Param(name="answer", description=""),), ends_episode=True
    )
    ending = replace(task, tools=(*task.tools, end))
    plan = gold_plan(ending)
    assert plan.calls[-1] == Call(tool="submit", arguments={"answer": "done"})
    assert play_plan(ending, image, plan).reward == 1.0


@pytest.mark.parametrize(
    "action",
    [
        "", "hello", "[]", "null",
        '{"text": 1}', '{"content": 3}', '{"tool_calls": {}}', '{"tool_calls": [3]}',
        '{"tool_calls": [{"name": "look"}]}', '{"tool_calls": [{"name": 3, "arguments": {}}]}',
        '{"tool_calls": [{"name": "look", "arguments": []}]}', "[" * 5000,
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_read_is_answered_and_ends_the_episode_when_repeated(
    task: Task, image: bytes, action: str
) -> None:
    assert isinstance(parse_message(action), str)
    env = TaskEnv(task, image)
    env.reset()
    for _ in range(MAX_MALFORMED - 1):
        observation, reward, terminated, truncated, _ = env.step(action)
        assert observation.startswith("[user] error: ")
        assert (reward, terminated, truncated) == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["cause"]) == (0.0, False, True, "format")


def test_the_turns_run_out(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    env.start()
    for _ in range(task.max_turns - 1):
        assert env.play(Message(role="assistant", tool_calls=(task.gold.calls[0],))).cause is None
    last = env.play(Message(role="assistant", tool_calls=(task.gold.calls[0],)))
    assert (last.cause, last.reward) == (Cause.TURNS, 0.0)
    with pytest.raises(RuntimeError, match="call reset first"):
        env.play(Message(role="assistant", content="done"))


def test_a_grader_that_fails_is_not_measured(task: Task, image: bytes) -> None:
    broken = replace(task, clauses=(Clause(name="odd", part="goal", sql="SELECT nothing"),))
    result = play_plan(broken, image, broken.gold)
    assert (result.cause, result.reward) == (Cause.GRADER_FAILED, None)
    assert Cause.GRADER_FAILED.is_infrastructure


def test_scripted_agents(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    assert play_agent(env, make_agent("oracle", task, 0))[0].reward == 1.0
    assert play_agent(env, make_agent("null", task, 0))[0].reward == 0.0
    assert isinstance(make_agent("null", task, 0), NullAgent)
    rewards = [play_agent(env, make_agent("random", task, seed))[0].reward for seed in range(40)]
    assert 0 < sum(reward or 0 for reward in rewards) < 40  # one of its two plans is right
    assert play_agent(env, PlanAgent(greedy_plan(task)))[0].reward == 0.0  # the first plan does nothing
    with pytest.raises(ValueError, match="no scripted agent 'clever'"):
        make_agent("clever", task, 0)


def test_an_agents_conversation_is_kept_whole(task: Task, image: bytes) -> None:
    _, transcript = play_agent(TaskEnv(task, image), PlanAgent(task.gold))
    assert [message.role for message in transcript] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]


def test_resetting_gives_a_fresh_world(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    for _ in range(2):
        assert play_agent(env, PlanAgent(Plan(calls=task.gold.calls, answer="done")))[0].reward == 1.0
