"""Tool calls as a model garbles them: each is answered by what is wrong with it, and the episode goes on."""

import asyncio
import json
from collections.abc import Callable

import pytest

from envs.episode import TaskEnv
from envs.task import Call, Message, Task
from envs.tool_server import ToolServer

GOOD = '{"content": "", "tool_calls": [{"name": "look", "arguments": {"item": "apple"}}]}'
VALUES = (
    *("null", "true", "1", "-1", "1e400", "NaN", "-Infinity", "2.5", '""', '"\\ud800"', '"\\u0000"'),
    *('"x" ', "[]", "{}", '["apple"]', '{"item": "apple"}', str(1 << 70), '"' + "y" * 1_000_000 + '"'),
    *('"; DROP TABLE stock; --"', "[" * 900 + "]" * 900),
)
NAMES = ("look", "sell", "Look", "look ", "", "__class__", "no_such_tool", "\\ud800", "x" * 10_000)


def garbled() -> list[str]:
    """Every prefix of a good message, each value as an argument of each tool, and some of the usual slips."""
    cases = [GOOD[:length] for length in range(len(GOOD))]
    for name in NAMES:
        for value in VALUES:
            cases.append(GOOD.replace("look", name).replace('"apple"', value))
    cases += [GOOD.replace("}", ",}"), GOOD.replace('"', "'"), GOOD + GOOD, f"```json\n{GOOD}\n```"]
    return cases


def test_whatever_a_model_writes_instead_of_a_call_is_answered(task: Task, image: bytes) -> None:
    cases = garbled()
    assert len(cases) > 200
    for action in cases:
        env = TaskEnv(task, image)
        env.reset()
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (0.0, False, False), action[:200]
        assert "Traceback" not in observation
        assert len(observation) < 30_000, action[:200]
        assert json.loads(json.dumps(info["messages"])) is not None
        # The next call finds the world as it was.
        assert env.step(GOOD)[0] == "[tool] 3"
        env.close()


def test_two_calls_in_one_message_are_answered_each_although_one_is_wrong(task: Task, image: bytes) -> None:
    env = TaskEnv(task, image)
    env.start()
    calls = (Call(tool="nothing", arguments={}), Call(tool="look", arguments={"item": "apple"}))
    result = env.play(Message(role="assistant", content="", tool_calls=calls))
    assert [message.content for message in result.messages] == ["error: no tool 'nothing'", "3"]
    assert result.cause is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, MemoryError, KeyError])
def test_what_is_no_doing_of_the_model_is_not_shown_to_it(
    task: Task, image: bytes, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    def broken(*_: object) -> None:
        raise error()

    env = TaskEnv(task, image)
    env.start()
    monkeypatch.setattr(ToolServer, "_execute", broken)
    call = Call(tool="look", arguments={"item": "apple"})
    with pytest.raises(error):  # pyright: ignore[reportArgumentType, reportCallIssue]
        env.play(Message(role="assistant", content="", tool_calls=(call,)))
    assert env.journal == ()
