"""The tool server over MCP: the same results, journal and state as in process, whatever a client sends."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.mcp_server import MAX_LINE_BYTES, VERSIONS, McpServer, mcp_tool
from envs.task import Call, Task, task_to_json
from envs.tool_server import JournalEntry, ToolServer
from envs.verifier import Episode, judge

CALLS = (
    Call(tool="look", arguments={"item": "apple"}),
    Call(tool="sell", arguments={"item": "apple", "count": 1}),
    Call(tool="sell", arguments={"item": "apple", "count": 99}),
    Call(tool="sell", arguments={"item": "apple"}),
    Call(tool="rob", arguments={}),
)


@pytest.fixture
def world(task: Task, image: bytes) -> Iterator[ToolServer]:
    server = ToolServer(image, task.tools)
    yield server
    server.close()


@pytest.fixture
def served(task: Task, world: ToolServer) -> McpServer:
    return McpServer(world, task.tools)


def request(method: str, params: object = None, name: object = 1) -> bytes:
    message = {"jsonrpc": "2.0", "id": name, "method": method}
    return json.dumps(message if params is None else message | {"params": params}).encode()


def ask(served: McpServer, method: str, params: object = None) -> Any:
    reply = served.answer(request(method, params))
    assert reply is not None
    return reply["result"]


def test_calls_leave_the_journal_and_the_state_of_the_in_process_surface(
    served: McpServer, world: ToolServer, task: Task, image: bytes
) -> None:
    direct = ToolServer(image, task.tools)
    for call in CALLS:
        expected = direct.call(call)
        found = ask(served, "tools/call", {"name": call.tool, "arguments": call.arguments})
        assert found == {"content": [{"type": "text", "text": expected.text}], "isError": expected.error}
    assert [entry.chain for entry in world.journal] == [entry.chain for entry in direct.journal]
    assert world.state_hash() == direct.state_hash()
    assert [entry.error for entry in world.journal] == [False, False, True, True, True]
    direct.close()


def test_tools_are_listed_with_their_schema_and_their_effects_as_hints(served: McpServer) -> None:
    look, sell = ask(served, "tools/list")["tools"]
    assert look["inputSchema"]["required"] == ["item"]
    assert look["annotations"]["readOnlyHint"]
    assert not look["annotations"]["destructiveHint"]
    assert not sell["annotations"]["readOnlyHint"]
    assert sell["annotations"]["destructiveHint"]


def test_rows_are_shown_to_planners_alone(task: Task, world: ToolServer) -> None:
    params = {"name": "look", "arguments": {"item": "apple"}}
    assert "structuredContent" not in ask(McpServer(world, task.tools), "tools/call", params)
    found = ask(McpServer(world, task.tools, shows_rows=True), "tools/call", params)
    assert found["structuredContent"] == {"rows": [{"amount": 3}]}


@pytest.mark.parametrize("asked", [*VERSIONS, "1999-01-01", None])
def test_the_version_asked_for_is_spoken_where_it_is_known(served: McpServer, asked: str | None) -> None:
    spoken = ask(served, "initialize", {"protocolVersion": asked})["protocolVersion"]
    assert spoken == (asked if asked in VERSIONS else VERSIONS[0])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b"\xff\xfe", -32700),
        (b"[]", -32600),
        (b'{"id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/steal"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 1, "method": {"a": 1}}', -32601),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 3}}', -32602),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": "b"}}',
            -32602,
        ),
    ],
)
def test_what_is_no_request_is_an_error_with_its_code(
    served: McpServer, world: ToolServer, line: bytes, code: int
) -> None:
    reply = served.answer(line)
    assert reply is not None
    assert reply["error"]["code"] == code
    assert world.journal == []


@pytest.mark.parametrize(
    "message", [{"method": "notifications/initialized"}, {"id": 1, "result": {}}, {"method": "tools/call"}]
)
def test_notifications_and_answers_get_no_reply(served: McpServer, message: dict[str, object]) -> None:
    assert served.answer(json.dumps({"jsonrpc": "2.0", **message}).encode()) is None


def test_a_line_that_is_too_long_is_skipped_whole(served: McpServer) -> None:
    replies = io.BytesIO()
    served.serve(
        io.BytesIO(b"x" * (2 * MAX_LINE_BYTES) + b"\n\n" + request("ping", name="p") + b"\n"), replies
    )
    first, second = (json.loads(line) for line in replies.getvalue().splitlines())
    assert first["error"]["code"] == -32700
    assert second == {"jsonrpc": "2.0", "id": "p", "result": {}}


def test_the_process_writes_journal_and_snapshot_that_the_verifier_accepts(
    task: Task, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "task.json").write_text(task_to_json(task))
    (tmp_path / "world").write_bytes(image)
    lines = [
        request("tools/call", {"name": call.tool, "arguments": call.arguments}, n)
        for n, call in enumerate(task.gold.calls)
    ]
    argv = [sys.executable, "-m", "envs.mcp_server", "--task", "task.json", "--world", "world"]
    argv += ["--journal", "journal.json", "--snapshot", "final"]
    done = subprocess.run(
        argv,
        input=b"\n".join(lines),
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert len(done.stdout.splitlines()) == len(lines)
    journal = tuple(JournalEntry(**entry) for entry in json.loads((tmp_path / "journal.json").read_text()))
    final = (tmp_path / "final").read_bytes()
    answer = task.gold.answer
    verdict = judge(task, Episode(initial=image, final=final, journal=journal, answer=answer))
    assert verdict.score == 1.0


def test_a_task_that_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("{")
    argv = [sys.executable, "-m", "envs.mcp_server", "--task", "task.json", "--world", "world"]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "task.json" in done.stderr


def test_every_tool_of_mcp_has_the_names_of_the_schema(task: Task) -> None:
    assert [mcp_tool(tool)["name"] for tool in task.tools] == [tool.name for tool in task.tools]
