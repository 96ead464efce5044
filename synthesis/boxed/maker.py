"""The host's side of synthesis in boxes: hands seeds to boxes of a pool and believes nothing that comes back.

What a box returns is data. The host reads the task anew, computes certificate and hashes itself, plays the
gold and an empty answer by its own tool server, and takes the task only where the verifier pays the one and
not the other. A box that says anything else is a `SandboxProtocolError`; the shard is then not made.
"""

import atexit
import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from typing import Any

from envs.agents import gold_plan
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.contract import Limits, Sandbox, SandboxLostError, SandboxProtocolError
from envs.sandbox.pool import BoxPool, PoolConfig
from envs.task import Plan, Task, content_hash, task_from_json
from envs.tool_server import ToolServer
from envs.verifier import Episode, GraderError, judge
from synthesis.boxed.packages import archive
from synthesis.certificate import certificate_json, certificate_of
from synthesis.corpus import CorpusTask
from synthesis.gates.suite import GATES, TITLES

LIMITS = Limits(memory_mb=1536, tmp_mb=512, pids=64, output_cap_bytes=32 << 20)
SECONDS_A_SEED = 20.0
PIECE_BYTES = 32 << 20
FOLDER = "/tmp/packages"
APPEND = "import sys;open(sys.argv[1],'ab').write(sys.stdin.buffer.read())"
UNPACK = "import tarfile;tarfile.open('/tmp/packages.tgz').extractall('/tmp/packages')"
RUN = "import sys;sys.path.insert(0,'/tmp/packages');from synthesis.boxed.program import main;main()"

Made = CorpusTask | str | None
"""A certified task, the gate that refused the candidate, or None: the seed's world holds no task."""


class BoxedMaker:
    """Makes candidates in the boxes of one pool; `close` ends them."""

    def __init__(self, tier: str) -> None:
        """Raises SandboxUnavailableError where the tier does not work here, ValueError for `process`."""
        if tier == "process":
            raise ValueError("--sandbox process isolates nothing; give docker or namespaces")
        chosen = choose_sandbox(tier, LIMITS, log=lambda line: None)
        self.tier = chosen.tier
        self._pool = BoxPool(chosen.make, PoolConfig(warm=1, max_boxes=2))

    def made(self, domain: str, level: int, seeds: Sequence[int]) -> Iterator[Made]:
        """What each seed gives, in order, from one box; a lost box is tried once more in another.

        Raises SandboxError.
        """
        try:
            lines = self._lines(domain, level, seeds)
        except SandboxProtocolError:
            raise
        except SandboxLostError:
            lines = self._lines(domain, level, seeds)
        for seed, line in zip(seeds, lines, strict=True):
            yield believed(domain, level, seed, line)

    def close(self) -> None:
        self._pool.close()

    def _lines(self, domain: str, level: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
        with closing(self._pool.acquire()) as box:
            _unpack(box)
            request = json.dumps({"domain": domain, "level": level, "seeds": list(seeds)}).encode()
            timeout_s = 30.0 + SECONDS_A_SEED * len(seeds)
            done = box.exec(["python3", "-c", RUN], stdin=request, timeout_s=timeout_s)
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        if done.exit_code != 0 or done.truncated_bytes:
            raise SandboxLostError(f"synthesis in a box ended with exit code {done.exit_code}: {said}")
        lines = [_line(text) for text in done.stdout.splitlines()]
        if [line.get("seed") for line in lines] != list(seeds):
            raise SandboxProtocolError("synthesis in a box answered other seeds than it was asked for")
        return lines


@lru_cache(maxsize=1)
def shared_maker(tier: str) -> BoxedMaker:
    """This process' maker: a Ray worker keeps it for all its shards. Its boxes end with the process."""
    maker = BoxedMaker(tier)
    atexit.register(maker.close)
    return maker


def believed(domain: str, level: int, seed: int, line: dict[str, Any]) -> Made:
    """A line from a box as what it says, once the host has proved it. Raises SandboxProtocolError."""
    if line.get("none") is True:
        return None
    if (gate := line.get("refused")) is not None:
        if gate not in TITLES:
            raise SandboxProtocolError(f"a box refuses seed {seed} by an unknown gate {str(gate)[:40]!r}")
        return str(gate)
    if "fault" in line:
        raise SandboxLostError(f"{domain} level {level}, seed {seed}: {str(line['fault'])[:300]}")
    try:
        task = task_from_json(str(line["task"]), where="a box")
        image = base64.b64decode(str(line["image"]), validate=True)
        certificate = certificate_json(certificate_of(task, image))
        _check(task, image, domain, level, seed)
    except (KeyError, ValueError, GraderError) as error:
        raise SandboxProtocolError(f"{domain} level {level}, seed {seed}: from a box: {error}") from None
    return CorpusTask(task=task, image=image, certificate=certificate)


def _check(task: Task, image: bytes, domain: str, level: int, seed: int) -> None:
    """Raises ValueError where the task is not what was asked for, or its verifier is not to be believed."""
    said = (task.domain, task.level, task.world.seed)
    if said != (domain, level, seed):
        raise ValueError(f"a task of {said}")
    bare = replace(task, task_id="", quality=())
    if task.task_id != f"{domain}-{level}-{content_hash(bare)[:12]}":
        raise ValueError(f"its id {task.task_id!r} is not its content's")
    if task.world.content_hash != json.loads(certificate_json(certificate_of(task, image)))["world_hash"]:
        raise ValueError("its world is not the one that it names")
    if [record.gate for record in task.quality] != list(GATES) or not all(r.passed for r in task.quality):
        raise ValueError("its quality lacks a gate")
    for plan, expected in ((gold_plan(task), 1.0), (Plan(calls=(), answer=""), 0.0)):
        if (score := _score(task, image, plan)) != expected:
            raise ValueError(f"the verifier gives {score:g} where {expected:g} is due")


def _score(task: Task, image: bytes, plan: Plan) -> float:
    with closing(ToolServer(image, task.tools)) as server:
        for call in plan.calls:
            server.call(call)
        journal, final = tuple(server.journal), server.snapshot()
    return judge(task, Episode(initial=image, final=final, journal=journal, answer=plan.answer)).score


def _unpack(box: Sandbox) -> None:
    packed = archive()
    for start in range(0, len(packed), PIECE_BYTES):
        piece = packed[start : start + PIECE_BYTES]
        _must(box, ["python3", "-c", APPEND, "/tmp/packages.tgz"], piece)
    _must(box, ["python3", "-c", UNPACK])
    _must(box, ["rm", "/tmp/packages.tgz"])


def _must(box: Sandbox, argv: list[str], stdin: bytes = b"") -> None:
    done = box.exec(argv, stdin=stdin, timeout_s=120)
    if done.exit_code != 0:
        raise SandboxLostError(
            f"a box did not take the packages: {done.stderr[-200:].decode('utf-8', 'replace')}"
        )


def _line(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise SandboxProtocolError("synthesis in a box said something that is no JSON") from None
    if not isinstance(line, dict):
        raise SandboxProtocolError("synthesis in a box said something that is no object")
    return line
