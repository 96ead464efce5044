"""The file that runs in the solution's and the grader's box, here as plain processes on code of our own."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.grading import in_box
from envs.grading.grader import grade
from envs.grading.suite import TestSuite, TextFile
from envs.verifier import GraderError
from tests.envs.grading_boxes import LocalBox
from tests.example_code_tasks import TASKS


@pytest.fixture
def local(tmp_path: Path) -> Callable[[], Any]:
    return lambda: LocalBox(tmp_path / f"box-{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_examples_accept_their_gold_and_refuse_their_decoy_and_their_start(
    task: Any, local: Callable[[], Any]
) -> None:
    for files, passes in ((task.gold, True), (task.decoy, False), (task.files, False)):
        artifacts = {file.path: file.text.encode() for file in files}
        assert grade(artifacts, task.tests, local).passed == passes


def test_the_solution_is_judged_by_plain_data_alone(local: Callable[[], Any]) -> None:
    """Each function gives back something that a comparison in its own process would take for 4."""
    text = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
class Number(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def right(): return 4
def any_(): return Any()
def number(): return Number(5)
def nested(): return [Any()]
def nan(): return float("nan")
"""
    tests = """
def test_{name}(solution):
    assert solution.call("a:{name}") {claim}
"""
    for name, claim, passes in (
        ("right", "== 4", True), ("any_", "== 4", False), ("any_", "!= 5", False), ("any_", "", False),
        ("number", "== 4", False), ("number", "is not None", True), ("nested", "== [4]", False),
        ("nan", "== 4", False), ("nan", "!= 5", False),
    ):  # fmt: skip
        suite = TestSuite(
            files=(TextFile(path="test_a.py", text=tests.format(name=name, claim=claim)),),
            ids=(f"test_a.py::test_{name}",),
        )
        assert grade({"a.py": text.encode()}, suite, local).passed == passes, (name, claim)


def test_a_question_that_a_test_swallows_is_still_open() -> None:
    def swallows(solution: in_box.Solution) -> None:
        try:
            solution.call("a:f")
        except BaseException:
            return

    assert in_box._run(swallows, in_box.Solution([]))["status"] == "waits"
    assert in_box._run(swallows, in_box.Solution([{"value": 1}]))["status"] == "passed"


def test_a_test_that_gives_something_back_has_not_run() -> None:
    entry = in_box._run(lambda solution: (each for each in ()), in_box.Solution([]))
    assert entry["status"] == "failed"


def test_arguments_that_are_no_plain_data_fail_the_test_that_has_them() -> None:
    for argument in (math.nan, object(), [object()]):
        with pytest.raises(AssertionError):
            in_box.Solution([]).call("a:f", argument)


def test_a_hollow_test_is_a_fault_of_the_task(local: Callable[[], Any]) -> None:
    text = "def test_a(solution): pass"
    hollow = TestSuite(files=(TextFile(path="test_a.py", text=text),), ids=("test_a.py::test_a",))
    with pytest.raises(GraderError, match="never asks the solution"):
        grade({"a.py": b""}, hollow, local)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**60), 2**3000, 1.5, -0.0, math.inf, "", "\ud800", b"\x00\xff", [], [[1], (2, {3})],
     {"a": {1: frozenset({None})}}, {(1, 2): "x"}],
)  # fmt: skip
def test_plain_data_survives_the_way_between_the_boxes(value: Any) -> None:
    back = in_box.decode(json.loads(json.dumps(in_box.encode(value))))
    assert repr(back) == repr(value)
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1, "b": 2}, {"unknown": 1}, {"int": 5}, {"int": "x"}, {"float": "nan"}, {"set": [[1]]},
     {"dict": [[[1], 2]]}, {"dict": [1]}, {"tuple": 3}, {"bytes": "x"}, {"opaque": "T"}],
)  # fmt: skip
def test_what_no_encoder_says_equals_nothing(value: Any) -> None:
    found = in_box.decode(value)
    for claim in (lambda: found == found, lambda: found != 1, lambda: bool(found), lambda: list(found)):
        with pytest.raises((AssertionError, TypeError)):
            claim()
