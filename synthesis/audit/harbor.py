"""Plays Harbor tasks in boxes: each play builds the task's environment anew, acts, and runs the verifier.

An agent's play and the verifier share a box where the task lets them, as Harbor has it, else the declared
artifacts alone travel. The verifier's reward is what it writes to /logs/verifier; none is no reward, not 0.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from envs.sandbox.contract import ExecResult, Sandbox, SandboxError
from synthesis.audit.boxes import Boxes, put_files
from synthesis.audit.dockerfile import Build
from synthesis.audit.files import Folder, ForeignFileError
from synthesis.audit.harbor_task import HarborTask, NotRunError, read_task
from synthesis.audit.leaks import file_leaks
from synthesis.audit.packages import boxed_source
from synthesis.audit.records import TaskAudit
from synthesis.audit.shell_mutants import script_mutants

FORMAT = "harbor"
GOLD_PLAYS = 3
DAMAGES = 3
BUILD_TIMEOUT_S = 120.0
EMPTY = hashlib.sha256(b"").hexdigest()
PACK = """import sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for path in sys.argv[1:]:
        archive.add(path)"""
UNPACK = """import io, sys, tarfile
tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())).extractall("/")"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What one play left: `reward` None where the verifier wrote none; `files`: digests by path."""

    reward: float | None
    why: str = ""
    error: str = ""
    """How the script ended, where it did not end well."""
    before: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    failed_steps: tuple[str, ...] = ()
    """Instructions of the Dockerfile that failed, where the image is ignored."""


def audit(
    folders: Sequence[tuple[str, Folder]], boxes: Boxes, *, mutants: int, ignore_image: bool
) -> Iterator[TaskAudit]:
    """(name, folder) of each task. ignore_image: play in the box's own system, whatever its image."""
    for name, folder in folders:
        try:
            task = read_task(name, folder)
            fault = None if ignore_image else boxes.image_fault(task.image)
            if fault is not None:
                raise NotRunError(fault)
            yield HarborPlayer(task, boxes, ignore_image=ignore_image).audit(mutants)
        except (NotRunError, ForeignFileError) as error:
            yield TaskAudit(task=name, format=FORMAT, not_run=" ".join(str(error).split())[:200])
        except SandboxError as error:
            yield TaskAudit(task=name, format=FORMAT, not_run=f"the box: {error}"[:200])


class HarborPlayer:
    def __init__(self, task: HarborTask, boxes: Boxes, *, ignore_image: bool) -> None:
        self._task = task
        self._boxes = boxes
        self._ignores_image = ignore_image

    def audit(self, limit: int) -> TaskAudit:
        """Raises NotRunError where the environment cannot be built or no play has a reward."""
        task = self._task
        solve = task.solution.get("solve.sh")
        script = solve.decode("utf-8", "replace") if solve is not None else None
        self._refuse_hidden_files()
        null = self.play(None)
        golds = [self.play(script) for _ in range(GOLD_PLAYS)] if script is not None else []
        rewards = [gold.reward for gold in golds if gold.reward is not None]
        is_paid = len(rewards) == GOLD_PLAYS and min(rewards) >= 1.0
        if null.reward is None and not rewards:
            raise NotRunError(f"the verifier gave no reward: {(golds or [null])[0].why}")
        if null.failed_steps and not is_paid and not null.reward:
            # Nothing says whether a 0 is the verifier's or a missing program's.
            raise NotRunError(f"its environment could not be built: {null.failed_steps[0]}")
        tally: dict[str, Any] = {}
        if script is not None and is_paid:
            tally = self._mutants(script, golds[0], limit) | self._damages(script, golds[0])
        return TaskAudit(
            task=task.name,
            format=FORMAT,
            null_reward=null.reward,
            gold_reward=min(rewards) if rewards else None,
            gold_error=next((gold.error for gold in golds if gold.error), ""),
            leaks=file_leaks(task.instruction, task.environment, task.solution, task.tests),
            notes=self._notes(null, golds, rewards),
            **tally,
        )

    def _notes(self, null: Played, golds: Sequence[Played], rewards: Sequence[float]) -> tuple[str, ...]:
        notes = [*null.failed_steps]
        if self._ignores_image:
            notes.append(f"played without its image {self._task.image}")
        if null.reward is None:
            notes.append(f"null: {null.why}")
        if not golds:
            notes.append("no reference solution")
        if rewards and max(rewards) >= 1.0 > min(rewards):
            notes.append(f"the gold is paid in {sum(r >= 1.0 for r in rewards)} of {GOLD_PLAYS} plays")
        return tuple(dict.fromkeys(notes))

    def _mutants(self, script: str, gold: Played, limit: int) -> dict[str, Any]:
        killed = equivalent = 0
        survivors: list[str] = []
        for operator, text in script_mutants(self._statements(script), limit):
            played = self.play(text)
            if played.files == gold.files:
                equivalent += 1
            elif played.reward is None or played.reward < 1.0:
                killed += 1  # a verifier that breaks down pays nothing either
            else:
                survivors.append(operator)
        total = killed + len(survivors)
        return {"mutants": total, "killed": killed, "equivalent": equivalent, "survivors": tuple(survivors)}

    def _damages(self, script: str, gold: Played) -> dict[str, Any]:
        untouched = [
            path
            for path, digest in gold.before.items()
            if gold.files.get(path) == digest and not digest.endswith(EMPTY)
        ]
        count = min(DAMAGES, len(untouched))
        chosen = [untouched[(2 * n + 1) * len(untouched) // (2 * count)] for n in range(count)]
        accepted = []
        for path in chosen:
            try:
                played = self.play(script, damage=path)
            except OSError:  # the box's own user may not write it
                count -= 1
                continue
            if played.reward is not None and played.reward >= 1.0:
                accepted.append(f"{path} emptied")
        return {"damages": count, "damage_accepted": tuple(accepted)}

    def _statements(self, script: str) -> list[str]:
        with ExitStack() as stack:
            box = stack.enter_context(_Started(self._boxes.with_folders((), None)))
            done = box.exec(
                ["python3", "-c", boxed_source("shell"), "split"], stdin=script.encode(), timeout_s=60
            )
        found = _json(done.stdout)
        if isinstance(found, list) and "".join(map(str, found)) == script:
            return [str(statement) for statement in found]
        return [script]  # too long to split: only what does not need its statements is tried

    def play(self, script: str | None, *, damage: str = "") -> Played:
        """One play in fresh boxes; script None: the null agent. damage: a file emptied after the script."""
        task = self._task
        with ExitStack() as stack:
            box = stack.enter_context(_Started(self._box()))
            failed = self._build(box, task.build)
            before = self._tree(box)
            error = self._act(box, script)
            if damage:
                box.write_file(damage, b"")
            files = self._tree(box)
            grader = box
            if task.verifier is not None:
                grader = stack.enter_context(_Started(self._box()))
                self._build(grader, task.verifier)
                self._carry(box, grader)
            reward, why = self._verdict(grader)
        return Played(reward=reward, why=why, error=error, before=before, files=files, failed_steps=failed)

    def _refuse_hidden_files(self) -> None:
        """A box's writable folders are empty at the start; an image with files there is another one then."""
        if self._ignores_image or self._boxes.tier != "docker":
            return
        with _Started(self._boxes.with_folders((), self._task.image)) as box:
            for folder in self._task.folders:
                done = box.exec(["find", folder, "-mindepth", "1", "-print", "-quit"])
                if done.stdout:
                    raise NotRunError(
                        f"image {self._task.image} has files in {folder}, which a box would hide"
                    )

    def _box(self) -> Sandbox:
        image = None if self._ignores_image else self._task.image
        return self._boxes.with_folders(self._task.folders, image)

    def _build(self, box: Sandbox, build: Build) -> tuple[str, ...]:
        notes = []
        for step in build.steps:
            if step.files:
                put_files(box, "/", step.files)
            if not step.argv:
                continue
            done = box.exec(step.argv, env=step.env, cwd=step.cwd, timeout_s=BUILD_TIMEOUT_S)
            if done.exit_code == 0:
                continue
            why = f"{step.what} failed in a box ({_end(done)})"
            if not self._ignores_image:
                raise NotRunError(why)
            notes.append(why)
        done = box.exec(["mkdir", "-p", build.workdir, "/logs/verifier", "/logs/agent", "/logs/artifacts"])
        if done.exit_code != 0:
            raise NotRunError(f"the working folder {build.workdir} cannot be made ({_end(done)})")
        return tuple(notes)

    def _act(self, box: Sandbox, script: str | None) -> str:
        if script is None:
            return ""
        task = self._task
        put_files(box, "/solution", {**task.solution, "solve.sh": script.encode()})
        env = {**task.build.env, **task.solution_env}
        done = box.exec(
            ["bash", "/solution/solve.sh"], env=env, cwd=task.build.workdir, timeout_s=task.agent_timeout_s
        )
        return f"solve.sh: {_end(done)}" if done.exit_code != 0 else ""

    def _tree(self, box: Sandbox) -> dict[str, str]:
        folders = json.dumps(self._task.state_folders).encode()
        done = box.exec(["python3", "-c", boxed_source("shell"), "tree"], stdin=folders, timeout_s=60)
        found = _json(done.stdout)
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def _carry(self, box: Sandbox, grader: Sandbox) -> None:
        present = [path for path in self._task.artifacts if box.exec(["test", "-e", path]).exit_code == 0]
        if not present:
            return
        packed = box.exec(["python3", "-c", PACK, *present], output_cap_bytes=32 << 20, timeout_s=60)
        done = grader.exec(["python3", "-c", UNPACK], stdin=packed.stdout, timeout_s=60)
        if packed.exit_code != 0 or done.exit_code != 0:
            raise NotRunError(f"the artifacts could not be carried over ({_end(done)})")

    def _verdict(self, box: Sandbox) -> tuple[float | None, str]:
        """(the reward, why there is none)."""
        task = self._task
        box.exec(["rm", "-f", "/logs/verifier/reward.json", "/logs/verifier/reward.txt"])
        put_files(box, "/tests", task.tests)
        build = task.verifier or task.build
        done = box.exec(
            ["bash", "/tests/test.sh"],
            env={**build.env, **task.verifier_env},
            cwd=build.workdir,
            timeout_s=task.verifier_timeout_s,
        )
        for name, read in (("reward.json", _reward_of_json), ("reward.txt", _reward_of_text)):
            try:
                reward = read(box.read_file(f"/logs/verifier/{name}", max_bytes=1 << 20))
            except OSError:
                continue
            return reward, "" if reward is not None else f"{name} holds no finite number"
        return None, f"test.sh wrote no reward ({_end(done)})"


class _Started:
    """A box from its start to its end."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    def __enter__(self) -> Sandbox:
        self._box.start()
        return self._box

    def __exit__(self, *_: object) -> None:
        self._box.close()


def _reward_of_json(data: bytes) -> float | None:
    found = _json(data)
    if isinstance(found, dict):
        found = found.get("reward", next(iter(found.values())) if len(found) == 1 else None)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _reward_of_text(data: bytes) -> float | None:
    try:
        value = float(data.decode().strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _end(done: ExecResult) -> str:
    if done.timed_out:
        return "out of time"
    lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"exit code {done.exit_code}" + (f": {lines[-1].strip()[:120]}" if lines else "")
