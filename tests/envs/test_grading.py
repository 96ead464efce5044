"""Grading in other boxes: what pays, what does not, and whose fault it is when nothing can be measured.

Scripted boxes stand for the real ones: each is told what it answers. Real boxes are attacked in tests/hacks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from envs.grading.grader import MAX_ROUNDS, Grade, grade
from envs.grading.suite import TestSuite, TextFile
from envs.sandbox.contract import ExecResult, SandboxLostError, SandboxStartError
from envs.verifier import GraderError
from tests.envs.grading_boxes import ScriptedBox, done
from tests.example_code_tasks import CANARY

ID = "test_a.py::test_a"
SUITE = TestSuite(files=(TextFile(path="test_a.py", text=""),), ids=(ID,))
WAITS = {"status": "waits", "reason": "", "ops": [["call", "a:f", {"tuple": []}, {"dict": []}]]}
PASSED = {"status": "passed", "reason": "", "ops": []}
FAILED = {"status": "failed", "reason": "no", "ops": []}
Reply = Callable[[dict[str, Any]], ExecResult]


def report(entry: Mapping[str, Any], **names: Any) -> Reply:
    """The grader's box: one entry for the one test, with the request's own nonce."""
    return lambda request: done(
        json.dumps({"nonce": request["nonce"], "results": {ID: entry}, **names}).encode()
    )


class Boxes:
    """Gives grader's and solution's boxes in turn, the same script for each attempt unless told otherwise."""

    def __init__(self, tests: Sequence[Any], answers: Sequence[Any], *, control: Sequence[Any] = ()) -> None:
        self.made: list[ScriptedBox] = []
        self._tests, self._answers, self._control = tests, answers, control

    def __call__(self) -> Any:
        is_control = len(self.made) >= 4 and self._control
        tests = self._control if is_control else self._tests
        self.made.append(ScriptedBox({"test": tests, "solve": self._answers}))
        return self.made[-1]


def graded(tests: Sequence[Any], answers: Sequence[Any] = (done(b'{"value": 1}\n'),)) -> Grade:
    boxes = Boxes(tests, answers)
    result = grade({"a.py": b"x"}, SUITE, boxes)
    assert not any(box.is_open for box in boxes.made)
    return result


WORKS = (report(WAITS), report(FAILED))
"""What the tests say without the solution, as a control sees it."""


def test_every_test_passed_by_name_pays_and_nothing_else_does() -> None:
    assert graded([report(WAITS), report(PASSED)]) == Grade(passed=True, reason="every test passed")
    assert graded([report(WAITS), report(FAILED)]) == Grade(passed=False, reason=f"{ID}: no")


BROKEN: dict[str, Any] = {
    "nothing": done(),
    "no JSON": done(b"1 passed in 0.01s"),
    "an exit code alone": done(b"", exit_code=0),
    "a report and a failing exit code": lambda r: ExecResult(
        exit_code=1, stdout=report(PASSED)(r).stdout, stderr=b""
    ),
    "a report that was cut": lambda r: done(report(PASSED)(r).stdout, stdout_cut_bytes=1),
    "another nonce": report(PASSED, nonce="0" * 32),
    "no test": report(PASSED, results={}),
    "a test more": report(PASSED, results={ID: PASSED, "test_a.py::test_b": PASSED}),
    "another test": report(PASSED, results={"test_a.py::test_b": PASSED}),
    "another word": report({**PASSED, "status": "Passed"}),
    "a number for a word": report({**PASSED, "status": 1}),
    "another field": report(PASSED, reward=1.0),
    "a list": lambda r: done(json.dumps([r["nonce"], PASSED]).encode()),
    "no end": lambda r: done(report(PASSED)(r).stdout[:-1]),
    "too deep": done(b"[" * 100_000),
    "a lost box": SandboxLostError("gone"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_report_that_is_not_whole_is_never_a_reward(broken: Any) -> None:
    boxes = Boxes([report(WAITS), broken], [done(b'{"value": 1}\n')], control=WORKS)
    result = grade({"a.py": b"x"}, SUITE, boxes)
    assert not result.passed
    assert "breaks its grading, twice" in result.reason
    assert len(boxes.made) == 6  # two attempts with the solution, one without
    assert [sorted(box.files) for box in boxes.made[5:]] == [["solution/.keep"]]


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_before_the_solution_is_asked_or_without_it_that_is_not_measured(broken: Any) -> None:
    with pytest.raises(GraderError):
        graded([broken])
    with pytest.raises(GraderError, match="without the solution, too"):
        grade({}, SUITE, Boxes([report(WAITS), broken], [done(b'{"value": 1}\n')]))


@pytest.mark.parametrize("status", [PASSED, FAILED])
def test_a_hidden_test_that_ends_without_asking_is_a_fault_of_the_task(status: dict[str, Any]) -> None:
    with pytest.raises(GraderError, match="without the solution"):
        graded([report(status)])


def test_a_solution_that_loses_its_box_gets_nothing_and_lost_boxes_as_such_are_not_measured() -> None:
    lost = [SandboxLostError("gone")]
    asked = [report(WAITS), report(FAILED)]
    boxes = Boxes(asked, lost)
    with pytest.raises(GraderError):  # the control's box is lost, too
        grade({"a.py": b"x"}, SUITE, boxes)
    boxes = _ControlAnswers(asked, lost)
    assert not grade({"a.py": b"x"}, SUITE, boxes).passed
    once = _LostOnce([report(WAITS), report(PASSED)], [done(b'{"value": 1}\n')])
    assert grade({"a.py": b"x"}, SUITE, once).passed


class _ControlAnswers(Boxes):
    def __call__(self) -> Any:
        box = super().__call__()
        return box if len(self.made) <= 4 else ScriptedBox({"test": self._tests, "solve": [done()]})


class _LostOnce(Boxes):
    def __call__(self) -> Any:
        box = super().__call__()
        is_first = len(self.made) == 2
        return ScriptedBox({"solve": [SandboxLostError("gone")]}) if is_first else box


def test_a_box_that_does_not_start_is_not_measured() -> None:
    class Dead(ScriptedBox):
        def start(self) -> None:
            raise SandboxStartError("no memory")

    with pytest.raises(GraderError, match="no box to grade in: no memory"):
        grade({}, SUITE, lambda: cast(Any, Dead({})))


def test_a_test_that_always_wants_more_is_over_after_the_last_round() -> None:
    def more(request: dict[str, Any]) -> ExecResult:
        known = len(request["answers"].get(ID, ()))
        return report({**WAITS, "ops": WAITS["ops"] * (known + 1)})(request)

    assert graded([more]) == Grade(passed=False, reason=f"a test is not done after {MAX_ROUNDS} questions")
    with pytest.raises(GraderError, match="other things each time"):
        graded([report(WAITS)])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (done(b'{"value": 1}\n'), {"value": 1}),
        (done(b'{"value": 1}\n{"value": 2}\n'), {"value": 1}),
        (done(b'{"value": 1}'), "Ended"),
        (done(exit_code=0), "Ended"),
        (done(exit_code=137, oom_killed=True), "Ended"),
        (done(exit_code=143, timed_out=True), "Timeout"),
        (done(b'{"value": 1}\n', stdout_cut_bytes=9), "Ended"),
        (done(b'{"value": NaN}\n'), "Malformed"),
        (done(b'{"value": 1, "status": "passed"}\n'), "Malformed"),
        (done(b'{"raised": ["ValueError"]}\n'), "Malformed"),
        (done(b'{"raised": ["ValueError", "x"]}\n'), "ValueError"),
        (done(b"[" * 100_000 + b"\n"), "Malformed"),
        (done(b'{"value": "' + b"x" * (2 << 20) + b'"}\n'), "Malformed"),
        (done(b"\xff\xfe\n"), "Malformed"),
    ],
)
def test_what_a_solutions_process_leaves_is_an_answer_of_known_form(said: ExecResult, expected: Any) -> None:
    boxes = Boxes([report(WAITS), report(FAILED)], [said])
    grade({"a.py": b"x"}, SUITE, boxes)
    (answer,) = boxes.made[0].requests[-1]["answers"][ID]
    assert (answer if isinstance(expected, dict) else answer["raised"][0]) == expected


def test_nothing_of_the_tests_enters_the_solutions_box() -> None:
    suite = TestSuite(files=(TextFile(path="test_a.py", text=CANARY),), ids=(ID,))
    boxes = Boxes([report(WAITS), report(PASSED)], [done(b'{"value": 1}\n')])
    grade({"a.py": b"x"}, suite, boxes)
    tests, solution = boxes.made
    assert CANARY in tests.files["tests/test_a.py"].decode()
    assert solution.files == {"solution/.keep": b"", "solution/a.py": b"x"}
    assert tests.files.keys() == {"tests/test_a.py"}
    assert all(request.keys() == {"folder", "ops"} for request in solution.requests)
