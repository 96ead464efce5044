"""Grades artifacts by hidden tests in two fresh boxes: the tests in one, the solution in the other.

A test asks the solution by data and gets data (`in_box.py`); this process carries questions and answers
between the boxes. The solution is never told what was expected, never meets a test's file, interpreter, user
or file system, and cannot write the report. Only positive evidence pays: the grader's box names exactly the
tests of the suite, each as passed. The reward is written by the caller, here on the host.

Whose fault it is: what a solution does in its own box (exit, hang, crash, nonsense on its stdout) fails the
test that asked. A suite that fails, passes or hangs before the solution was asked anything is a fault of the
task: `GraderError`, not measured. A box that is lost, or a grader that breaks, once the solution's code or
values were in it is tried again in new boxes; when that fails too, the same is done without the solution,
and only when that works is it the solution's doing, and a 0.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.grading import in_box
from envs.grading.artifacts import run_in_box
from envs.grading.suite import TestSuite
from envs.sandbox.contract import ExecResult, Sandbox, SandboxError
from envs.verifier import GraderError

IN_BOX = Path(in_box.__file__)
MAX_ROUNDS = 64
"""Questions that a test may ask one after the other; a test that wants more has failed."""
MAX_ANSWER_BYTES = 1 << 20
MAX_ANSWERS_BYTES = 16 << 20
"""All answers together: what one request to the grader's box may hold."""
Outcome = dict[str, Any]
"""`{"value": plain data}` or `{"raised": [name, message]}`, as `in_box.solve` writes it."""
TIMEOUT: Outcome = {"raised": ["Timeout", "it ran out of time"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """`passed`: every test of the suite was reported as passed. `reason`: the first that was not, and why."""

    passed: bool
    reason: str


class _UnclearError(Exception):
    """Grading broke with the solution's code or values in play: its doing, or the machine's."""


def grade(artifacts: Mapping[str, bytes], suite: TestSuite, make_box: Callable[[], Sandbox]) -> Grade:
    """Grades `artifacts` (path to bytes), each attempt in two new boxes.

    Raises GraderError where the episode cannot be measured: no box works, or the suite is at fault.
    """
    try:
        return _attempt(artifacts, suite, make_box)
    except (_UnclearError, SandboxError):
        pass  # once may be the machine
    try:
        return _attempt(artifacts, suite, make_box)
    except SandboxError as error:
        raise GraderError(f"no box to grade in: {error}") from error
    except _UnclearError as error:
        breakdown = str(error)
    try:
        _attempt({}, suite, make_box)
    except (_UnclearError, SandboxError) as error:
        raise GraderError(f"grading breaks without the solution, too: {error}") from error
    return Grade(passed=False, reason=f"the solution breaks its grading, twice: {breakdown}")


def _attempt(artifacts: Mapping[str, bytes], suite: TestSuite, make_box: Callable[[], Sandbox]) -> Grade:
    with closing(make_box()) as grader_box, closing(make_box()) as solution_box:
        tests = _Tests(grader_box, suite)
        solution = _Solution(solution_box, suite, artifacts)
        return _play(tests, solution)


def _play(tests: "_Tests", solution: "_Solution") -> Grade:
    """Question and answer until a test fails or all have passed."""
    answers: dict[str, list[Outcome]] = {}
    report = tests.start()
    solution.start()
    for _ in range(MAX_ROUNDS):
        _ask(solution, report, answers)
        if solution.answered_bytes > MAX_ANSWERS_BYTES:
            return Grade(passed=False, reason=f"answers of more than {MAX_ANSWERS_BYTES} bytes in all")
        report = tests.run(answers)
        for test_id, entry in report.items():
            if entry["status"] == "failed":
                return Grade(passed=False, reason=f"{test_id}: {entry['reason']}")
        # The one way to a reward: every test by name, each with the word.
        if all(report[test_id]["status"] == "passed" for test_id in tests.ids):
            return Grade(passed=True, reason="every test passed")
    return Grade(passed=False, reason=f"a test is not done after {MAX_ROUNDS} questions")


def _ask(
    solution: "_Solution", report: Mapping[str, dict[str, Any]], answers: dict[str, list[Outcome]]
) -> None:
    """Adds what the solution answers to the open questions, up to the first process that ran out of time."""
    for test_id, entry in report.items():
        if entry["status"] == "waits":
            known = answers.get(test_id, [])
            answers[test_id] = known + solution.answer(entry["ops"])[len(known) :]
            if answers[test_id][-1:] == [TIMEOUT]:
                return  # this test has failed, most likely; else the others are asked in the next round


class _Tests:
    """The grader's box: the hidden tests and what the solution answered, no file and no process of it."""

    def __init__(self, box: Sandbox, suite: TestSuite) -> None:
        self.ids = suite.ids
        self._box = box
        self._suite = suite

    def start(self) -> dict[str, dict[str, Any]]:
        """The first questions. Raises GraderError where the tests are not what the suite says, or ask
        nothing.
        """
        self._box.start()
        _write(self._box, "tests", {file.path: file.text.encode() for file in self._suite.files})
        try:
            report = self._report({})
        except _UnclearError as error:
            raise GraderError(f"the hidden tests do not run: {error}") from error
        for test_id, entry in report.items():
            if entry["status"] != "waits":
                why = entry["reason"] or "it never asks the solution"
                raise GraderError(f"hidden test {test_id} {entry['status']} without the solution: {why}")
        return report

    def run(self, answers: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, Any]]:
        """The status of each test of the suite, given what is known. Raises _UnclearError."""
        try:
            report = self._report(answers)
        except SandboxError as error:
            raise _UnclearError(f"the grader's box is lost: {error}") from error
        for test_id, entry in report.items():
            if entry["status"] == "waits" and len(entry["ops"]) <= len(answers.get(test_id, ())):
                raise GraderError(f"hidden test {test_id} asks other things each time it runs")
        return report

    def _report(self, answers: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, Any]]:
        nonce = secrets.token_hex(16)
        request = {
            "folder": f"{self._box.work_dir}/tests",
            "files": self._suite.modules,
            "answers": answers,
            "nonce": nonce,
        }
        result = run_in_box(
            self._box,
            IN_BOX,
            "test",
            request,
            timeout_s=self._suite.suite_timeout_s,
            output_cap_bytes=MAX_ANSWERS_BYTES,
        )
        if result.exit_code != 0 or result.truncated_bytes:
            raise _UnclearError(f"the tests' process: {_end(result)}")
        return self._checked(result.stdout, nonce)

    def _checked(self, stdout: bytes, nonce: str) -> dict[str, dict[str, Any]]:
        try:
            reply = json.loads(stdout)
            report: dict[str, dict[str, Any]] = reply["results"]
            is_ours = set(reply) == {"nonce", "results"} and reply["nonce"] == nonce
            is_whole = all(
                set(entry) == {"status", "reason", "ops"}
                and entry["status"] in ("passed", "failed", "waits")
                and isinstance(entry["ops"], list)
                for entry in report.values()
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise _UnclearError("the tests' report is malformed") from None
        if not is_ours or not is_whole:
            raise _UnclearError("the tests' report is not of its form")
        if set(report) != set(self.ids):
            different = min(set(report) ^ set(self.ids))
            raise _UnclearError(f"the report and the suite differ about {different[:120]}")
        return report


class _Solution:
    """The solution's box: its files, and a new process for each test's questions."""

    def __init__(self, box: Sandbox, suite: TestSuite, artifacts: Mapping[str, bytes]) -> None:
        self.answered_bytes = 0
        self._box = box
        self._artifacts = artifacts
        self._suite = suite
        self._left_s = suite.solution_budget_s

    def start(self) -> None:
        self._box.start()
        # One file of ours, so that the folder is there where there is no artifact.
        _write(self._box, "solution", {".keep": b"", **self._artifacts})

    def answer(self, ops: Sequence[Any]) -> list[Outcome]:
        """One outcome for each operation, whatever the process did. Raises _UnclearError for a lost box."""
        if self._left_s <= 0:
            return [TIMEOUT] * len(ops)
        request = {"folder": f"{self._box.work_dir}/solution", "ops": ops}
        timeout_s = min(self._suite.test_timeout_s, self._left_s)
        try:
            result = run_in_box(
                self._box, IN_BOX, "solve", request, timeout_s=timeout_s, output_cap_bytes=MAX_ANSWERS_BYTES
            )
        except SandboxError as error:
            raise _UnclearError(f"the solution's box is lost: {error}") from error
        self._left_s -= result.duration_s
        self.answered_bytes += len(result.stdout)
        lines = [] if result.truncated_bytes else result.stdout.split(b"\n")[:-1]
        outcomes = [_outcome(line) for line in lines[: len(ops)]]
        missing = TIMEOUT if result.timed_out else _raised("Ended", _end(result))
        return outcomes + [missing] * (len(ops) - len(outcomes))


def _write(box: Sandbox, folder: str, files: Mapping[str, bytes]) -> None:
    try:
        for path, data in files.items():
            box.write_file(f"{folder}/{path}", data)
    except OSError as error:
        raise GraderError(f"a fresh box does not take the files to grade: {error}") from error


def _outcome(line: bytes) -> Outcome:
    """A line of the solution's box, checked for its form; its content is judged by the tests alone."""
    try:
        outcome = json.loads(line if len(line) <= MAX_ANSWER_BYTES else b"", parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _raised("Malformed", "its answer is no plain data")
    if isinstance(outcome, dict) and set(outcome) == {"value"}:
        return outcome
    raised = outcome.get("raised") if isinstance(outcome, dict) and len(outcome) == 1 else None
    if isinstance(raised, list) and len(raised) == 2 and all(isinstance(part, str) for part in raised):
        return _raised(*raised)
    return _raised("Malformed", "its answer is no outcome")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _raised(name: str, message: str) -> Outcome:
    return {"raised": [name[:80], message[: in_box.MAX_REASON]]}


def _end(result: ExecResult) -> str:
    if result.timed_out:
        return "it ran out of time"
    if result.oom_killed:
        return "it ran out of memory"
    if result.truncated_bytes:
        return "it wrote too much"
    return f"it ended with exit code {result.exit_code}"
