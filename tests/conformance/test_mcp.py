"""The judgement of a peer: the official MCP SDK's client reads our tool server while it plays a gold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.mcp_server import mcp_tool
from envs.task import stable_seed, task_to_json
from envs.tool_server import JournalEntry, ToolServer
from envs.verifier import Episode, judge
from synthesis.general import domain_named, make_candidate
from tests.conformance.peers import peer_python

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize("domain", ["retail", "trip"])
def test_the_sdks_client_plays_a_gold_and_the_verifier_pays_it(domain: str, tmp_path: Path) -> None:
    python = peer_python("mcp")
    tries = (make_candidate(domain_named(domain), 1, stable_seed("mcp", domain, n)) for n in range(50))
    candidate = next(one for one in tries if one is not None)
    task = candidate.task
    (tmp_path / "task.json").write_text(task_to_json(task))
    (tmp_path / "world").write_bytes(candidate.image)
    calls = [*[[call.tool, call.arguments] for call in task.gold.calls], ["no_such_tool", {}]]
    argv = [python, HERE / "mcp_client.py", sys.executable]
    argv += [tmp_path / name for name in ("task.json", "world", "journal.json")]
    environment = {**os.environ, "WORLDSMITH_CHECKOUT": str(HERE.parents[1])}
    done = subprocess.run(
        argv, input=json.dumps(calls), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)

    assert said["initialize"]["serverInfo"]["name"] == "worldsmith"
    assert said["tools"] == [mcp_tool(tool) for tool in task.tools]
    server = ToolServer(candidate.image, task.tools)
    texts = [server.call(call).text for call in task.gold.calls]
    final = server.snapshot()
    server.close()
    assert [one["content"][0]["text"] for one in said["results"][:-1]] == texts
    assert [one["isError"] for one in said["results"]] == [False] * len(texts) + [True]
    journal = [JournalEntry(**entry) for entry in json.loads((tmp_path / "journal.json").read_text())]
    episode = Episode(
        initial=candidate.image, final=final, journal=tuple(journal[:-1]), answer=task.gold.answer
    )
    assert judge(task, episode).score == 1.0
