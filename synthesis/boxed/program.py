"""Runs in the box: seeds on stdin, and for each a line: no task, the gate that refuses, or the task.

Each candidate has a process of its own. World, planner, gold, mutants and attacks run there; then the gold,
each mutant and each attack is played once more over MCP, against a server process that holds the world, and
must leave the journal and the state that it left in process.
"""

import base64
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO, Any

from pydantic import TypeAdapter

from envs.mcp_server import McpServer
from envs.task import Call, GateRecord, digest, task_to_json
from envs.tool_server import ToolServer
from envs.tools import Tool
from synthesis.audit.boxed.forks import in_child
from synthesis.gates.suite import GATES
from synthesis.gates.trial import Probe, Trial
from synthesis.general import Candidate, domain_named, make_candidate

CANDIDATE_TIMEOUT_S = 120
RESET = "worldsmith/reset"
STATE = "worldsmith/state"


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # what a grammar prints is no line of ours
        os.dup2(nowhere, descriptor)
    for seed in request["seeds"]:

        def make(seed: int = seed) -> dict[str, Any]:
            return made(request["domain"], request["level"], seed)

        line = in_child(make, timeout_s=CANDIDATE_TIMEOUT_S)
        replies.write(json.dumps({"seed": seed, **line}) + "\n")
        replies.flush()


def made(domain: str, level: int, seed: int) -> dict[str, Any]:
    candidate = make_candidate(domain_named(domain), level, seed)
    if candidate is None:
        return {"none": True}
    records: list[GateRecord] = []
    with closing(Trial(candidate)) as trial:
        for check in GATES.values():
            records.append(check(trial))
            if not records[-1].passed:
                return {"refused": records[-1].gate}
        num_plays = check_over_mcp(candidate, trial.probes())
    task = replace(candidate.task, quality=tuple(records))
    image = base64.b64encode(candidate.image).decode()
    return {"task": task_to_json(task), "image": image, "mcp_plays": num_plays}


def check_over_mcp(candidate: Candidate, probes: Sequence[Probe]) -> int:
    """Plays every different list of calls again over MCP; how many. Raises RuntimeError for a difference."""
    plays = {repr(probe.calls): probe for probe in probes}
    client = McpClient(candidate.image, candidate.task.tools)
    try:
        for probe in plays.values():
            client.request(RESET, {})
            texts = [client.call(call) for call in probe.calls]
            state = client.request(STATE, {})
            entries = probe.episode.journal
            same = texts == [(entry.result, entry.error) for entry in entries]
            chain = entries[-1].chain if entries else ""
            if not same or state != {"chain": chain, "snapshot": digest(probe.episode.final)}:
                raise RuntimeError(f"over MCP another journal or state after {probe.calls[-1:]}")
    finally:
        client.close()
    return len(plays)


class PlayServer(McpServer):
    """The task's MCP server with two methods of our own, so that one process serves many plays."""

    def __init__(self, image: bytes, tools: Sequence[Tool]) -> None:
        self._image = image
        self._world = ToolServer(image, tools)
        super().__init__(self._world, tools)
        self._methods |= {RESET: self._reset, STATE: self._state}

    def _reset(self, params: dict[str, Any]) -> dict[str, Any]:
        self._world.close()
        self._server = self._world = ToolServer(self._image, self._tools)
        return {}

    def _state(self, params: dict[str, Any]) -> dict[str, Any]:
        journal = self._world.journal
        return {"chain": journal[-1].chain if journal else "", "snapshot": digest(self._world.snapshot())}


class McpClient:
    """Starts the server as a process and speaks to it over two pipes."""

    def __init__(self, image: bytes, tools: Sequence[Tool]) -> None:
        (self._theirs, ours_out), (ours_in, their_out) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(ours_out)
            os.close(ours_in)
            self._serve(image, tools, their_out)
        os.close(self._theirs)
        os.close(their_out)
        self._requests: IO[bytes] = os.fdopen(ours_out, "wb")
        self._replies: IO[bytes] = os.fdopen(ours_in, "rb")
        self._count = 0
        self.request("initialize", {"protocolVersion": "2025-11-25"})

    def _serve(self, image: bytes, tools: Sequence[Tool], their_out: int) -> None:
        """In the server's process: never returns."""
        try:
            with os.fdopen(self._theirs, "rb") as requests, os.fdopen(their_out, "wb") as replies:
                PlayServer(image, tools).serve(requests, replies)
        finally:
            os._exit(0)

    def request(self, method: str, params: dict[str, Any]) -> Any:
        self._count += 1
        message = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": params}
        self._requests.write(json.dumps(message).encode() + b"\n")
        self._requests.flush()
        reply = json.loads(self._replies.readline())
        if reply.get("id") != self._count or "result" not in reply:
            raise RuntimeError(f"the MCP server answered {str(reply)[:200]}")
        return reply["result"]

    def call(self, call: Call) -> tuple[str, bool]:
        arguments = TypeAdapter(dict[str, Any]).dump_python(call.arguments, mode="json")
        result = self.request("tools/call", {"name": call.tool, "arguments": arguments})
        return result["content"][0]["text"], result["isError"]

    def close(self) -> None:
        self._requests.close()
        self._replies.close()
        os.waitpid(self._pid, 0)


if __name__ == "__main__":
    main()
