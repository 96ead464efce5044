"""A task's tools over the Model Context Protocol, stdio transport: one JSON-RPC message a line.

The subset that a tool server needs, written out: initialize, ping, tools/list, tools/call. It needs nothing
but what the tool server needs, so that it runs inside a box, and each call goes through `envs.tool_server`:
results, journal and state are those of the in-process surface.

    python -m envs.mcp_server --task task.json --world world.sqlite --journal journal.json

A call that cannot run (unknown tool, wrong arguments) is a result with `isError`, as the agent is to read it
and the journal to hold it. At the end of its input the server writes journal and snapshot, where asked to.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

from envs.files import write_whole
from envs.task import Call, Task, canonical_json, task_from_json
from envs.tool_server import ToolServer
from envs.tools import Tool, json_schema

VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Of the protocol, newest first: tool calls are the same in all of them."""
MAX_LINE_BYTES: Final = 4 << 20
PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602


class McpServer:
    """Answers messages for one play of one world. `shows_rows`: results also carry the query's rows as
    structured content, for planners; a policy reads the text alone.
    """

    def __init__(self, server: ToolServer, tools: Sequence[Tool], *, shows_rows: bool = False) -> None:
        self._server = server
        self._tools = tuple(tools)
        self._shows_rows = shows_rows
        self._methods: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "initialize": self._initialize,
            "ping": lambda params: {},
            "tools/list": lambda params: {"tools": [mcp_tool(tool) for tool in self._tools]},
            "tools/call": self._call,
        }

    def answer(self, line: bytes) -> dict[str, Any] | None:
        """The reply to one line; None for a notification. Never raises for what a client sent."""
        try:
            message = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
        except (ValueError, RecursionError):
            message = None
        if message is None:
            return _error(None, PARSE_ERROR, f"not JSON, or longer than {MAX_LINE_BYTES} bytes")
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _error(None, INVALID_REQUEST, "a message is an object with jsonrpc 2.0")
        if "method" not in message:
            return None  # an answer to a request, of which this server makes none
        if "id" not in message:
            return None
        name, method, params = message["id"], message["method"], message.get("params", {})
        if isinstance(name, bool) or not isinstance(name, str | int):
            return _error(None, INVALID_REQUEST, "id must be a string or an integer")
        if not isinstance(method, str) or method not in self._methods:
            return _error(name, NO_METHOD, f"no method {str(method)[:80]!r}")
        if not isinstance(params, dict):
            return _error(name, INVALID_PARAMS, "params must be an object")
        try:
            return {"jsonrpc": "2.0", "id": name, "result": self._methods[method](params)}
        except ParamsError as error:
            return _error(name, INVALID_PARAMS, str(error))

    def serve(self, requests: BinaryIO, replies: BinaryIO) -> None:
        """Until the end of the input."""
        while line := requests.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                _skip_line(requests, line)
            if line.strip() and (reply := self.answer(line)) is not None:
                replies.write(json.dumps(reply).encode("ascii") + b"\n")
                replies.flush()

    def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {"listChanged": False}},
            "serverInfo": {"name": "worldsmith", "version": "1"},
        }

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name, arguments = params.get("name"), params.get("arguments") or {}
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ParamsError("tools/call takes a name and an object of arguments")
        observation = self._server.call(Call(tool=name, arguments=arguments))
        result: dict[str, Any] = {
            "content": [{"type": "text", "text": observation.text}],
            "isError": observation.error,
        }
        if self._shows_rows:
            result["structuredContent"] = {"rows": list(observation.rows)}
        return result


class ParamsError(ValueError):
    """Parameters that a method does not take."""


def mcp_tool(tool: Tool) -> dict[str, Any]:
    """The tool as tools/list gives it; the hints are its declared effects."""
    schema = json_schema(tool)
    writes = [write.operation for write in tool.writes]
    return {
        "name": schema["name"],
        "description": schema["description"],
        "inputSchema": schema["parameters"],
        "annotations": {
            "readOnlyHint": not writes,
            "destructiveHint": any(operation != "insert" for operation in writes),
            "idempotentHint": not writes,
            "openWorldHint": False,
        },
    }


def _error(name: str | int | None, code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": text}}


def _skip_line(requests: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = requests.readline(MAX_LINE_BYTES)


def serve_task(task: Task, image: bytes, *, journal: Path | None, snapshot: Path | None) -> None:
    """Serves a fresh copy of the world over this process' stdio. Raises OSError where a file cannot be
    written.
    """
    with closing(ToolServer(image, task.tools)) as server:
        McpServer(server, task.tools).serve(sys.stdin.buffer, sys.stdout.buffer)
        if journal is not None:
            lines = canonical_json([asdict(entry) for entry in server.journal])
            write_whole(journal, lines.encode())
        if snapshot is not None:
            write_whole(snapshot, server.snapshot())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m envs.mcp_server", description=__doc__)
    parser.add_argument("--task", type=Path, required=True, help="a task's JSON, as a corpus holds it")
    parser.add_argument("--world", type=Path, required=True, help="its world, an SQLite file")
    parser.add_argument("--journal", type=Path, help="where the journal goes at the end")
    parser.add_argument("--snapshot", type=Path, help="where the last state goes at the end")
    args = parser.parse_args(argv)
    try:
        task = task_from_json(args.task.read_bytes(), where=str(args.task))
        serve_task(task, args.world.read_bytes(), journal=args.journal, snapshot=args.snapshot)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"envs.mcp_server: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
