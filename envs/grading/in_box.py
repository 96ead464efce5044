"""Runs inside a box: one file alone, sent in as text; needs Python's standard library and nothing of ours.

Two modes, two boxes, which share neither process nor user nor file system: `solve`, in the solution's box,
calls the solution's functions and says what they gave back, as data; `test`, in the grader's box, runs the
hidden tests on such data, and no line of the solution is ever there.

A request is JSON on stdin. What the solution gave back crosses as *plain data*: JSON in which a list is an
array and everything else that is not a JSON scalar an object of one key, as `{"tuple": [1, 2]}`. Objects of
any other type arrive as their type's name alone, so that no `__eq__` of theirs meets a test.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys

TYPE_CHECKING = False  # importing typing would take longer than most solutions
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Send = Callable[[str], None]

MAX_DEPTH = 40
MAX_OPS = 400
"""Calls of one test; one that asks for more has failed."""
EXACT_INT = 1 << 53
MAX_REASON = 300


def encode(value: Any, depth: int = 0) -> Any:
    """Plain data from builtin types, exactly those: of a subclass, or of NaN, only the name crosses."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -EXACT_INT < value < EXACT_INT else {"int": hex(value)}
    if kind is float and not math.isnan(value):
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is bytes:
        return {"bytes": value.hex()}
    if depth < MAX_DEPTH and kind in (list, tuple, set, frozenset):
        items = [encode(item, depth + 1) for item in value]
        return items if kind is list else {kind.__name__: items}
    if depth < MAX_DEPTH and kind is dict:
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    return {"opaque": "nan" if kind is float else str(kind.__name__)[:80]}


def decode(value: Any) -> Any:
    """What `encode` made it from. What no `encode` can have made becomes an `Opaque`."""
    try:
        return _decoded(value, 0)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return Opaque("malformed")


def _decoded(value: Any, depth: int) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > MAX_DEPTH:
        raise ValueError
    if type(value) is list:
        return [_decoded(item, depth + 1) for item in value]
    ((name, inner),) = value.items()
    if name == "dict":
        return {_decoded(key, depth + 1): _decoded(item, depth + 1) for key, item in inner}
    if name == "opaque":
        return Opaque(str(inner)[:80])
    if name in ("tuple", "set", "frozenset"):
        kind = {"tuple": tuple, "set": set, "frozenset": frozenset}[name]
        return kind(_decoded(item, depth + 1) for item in inner)
    simple = {"int": lambda text: int(text, 16), "float": _infinity, "bytes": bytes.fromhex}
    return simple[name](inner)


def _infinity(text: str) -> float:
    if text not in ("inf", "-inf"):
        raise ValueError(text)
    return float(text)


class Opaque:
    """A value that is not plain data. Whatever a test asks of it fails the test."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError(f"the solution gave back {self._name}, which is not plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = _refuse
    __contains__ = __getitem__ = __call__ = __float__ = __int__ = __index__ = __str__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"<{self._name}, not plain data>"


# In the solution's box.


def solve(request: dict[str, Any], send: Send) -> None:
    """One line for each operation, as soon as it is done: what it gave back, or what it raised."""
    sys.path[:] = [request["folder"], *(path for path in sys.path if path)]
    os.chdir(request["folder"])
    sys.argv = ["solution"]
    made: dict[int, Any] = {}
    for index, operation in enumerate(request["ops"]):
        try:
            value = _operate(operation, made)
            if operation[0] == "new":
                made[index], value = value, None
            outcome = {"value": encode(value)}
        except BaseException as error:  # SystemExit and what a solution may invent, too
            outcome = {"raised": [type(error).__name__[:80], _said(error)]}
        send(json.dumps(outcome) + "\n")


def _said(error: BaseException) -> str:
    try:
        return str(error)[:MAX_REASON]
    except BaseException:
        return ""


def _operate(operation: list[Any], made: dict[int, Any]) -> Any:
    kind, target, args, kwargs = operation
    arguments, named = decode(args), decode(kwargs)
    if kind == "run":
        done = subprocess.run(target, input=arguments[0].encode(), capture_output=True, check=False)
        return (done.returncode, *(out.decode("utf-8", "replace") for out in (done.stdout, done.stderr)))
    if kind == "method":
        return getattr(made[target[0]], target[1])(*arguments, **named)
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found(*arguments, **named)


# In the grader's box.


class Pending(BaseException):
    """The test asks for what the solution has not been asked yet; it is run again with the answer."""


class SolutionError(Exception):
    """The solution's function raised, or its process ended. `kind`: the name of what it raised."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"the solution raised {kind}: {message}")
        self.kind = kind


class Solution:
    """What a test holds in place of the solution: asks by data, is answered by data.

    A test is run from its beginning for each new question, so it must ask the same at each run; `call_each`
    asks many at once.
    """

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self._answers = answers
        self.ops: list[list[Any]] = []
        self.waits = False

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """`solution.call("stats:median", [1, 2])`: the plain data that it returns; SolutionError if it
        raises.
        """
        return self._answer(self._ask("call", function, args, kwargs))

    def call_each(self, function: str, /, *argument_lists: Any) -> list[Any]:
        """One call for each list of arguments; a list of what they return."""
        return [
            self._answer(index)
            for index in [self._ask("call", function, arguments, {}) for arguments in argument_lists]
        ]

    def error(self, function: str, /, *args: Any, **kwargs: Any) -> str | None:
        """The name of what the call raises; None where it returns."""
        try:
            self.call(function, *args, **kwargs)
        except SolutionError as error:
            return error.kind
        return None

    def new(self, function: str, /, *args: Any, **kwargs: Any) -> Handle:
        """An object of the solution's, which stays there: `.call("method", ...)` on what this gives back."""
        index = self._ask("new", function, args, kwargs)
        self._answer(index)
        return Handle(self, index)

    def run(self, argv: list[str], stdin: str = "") -> tuple[int, str, str]:
        """A program in the solution's folder: (exit code, stdout, stderr)."""
        done = self._answer(self._ask("run", list(argv), (stdin,), {}))
        if type(done) is not tuple or [type(part) for part in done] != [int, str, str]:
            raise AssertionError("no program's end")
        return done

    def _ask(self, kind: str, target: Any, args: Any, kwargs: Any) -> int:
        if len(self.ops) >= MAX_OPS:
            raise AssertionError(f"more than {MAX_OPS} calls")
        encoded = encode(tuple(args)), encode(kwargs)
        if decode(encoded[0]) != tuple(args) or decode(encoded[1]) != kwargs:
            raise AssertionError("arguments must be plain data")
        self.ops.append([kind, target, *encoded])
        return len(self.ops) - 1

    def _answer(self, index: int) -> Any:
        if index >= len(self._answers):
            self.waits = True
            raise Pending
        outcome = self._answers[index]
        if "raised" in outcome:
            raise SolutionError(*outcome["raised"])
        return decode(outcome["value"])


class Handle:
    def __init__(self, solution: Solution, index: int) -> None:
        self._solution = solution
        self._index = index

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        ask = self._solution._ask("method", [self._index, name], args, kwargs)
        return self._solution._answer(ask)


def test(request: dict[str, Any], send: Send) -> None:
    """What became of every test that the files hold; `waits` brings the questions that are still open."""
    sys.path[:] = [request["folder"], *(path for path in sys.path if path)]
    results = {}
    for file in request["files"]:
        for name, function in _tests_of(request["folder"], file):
            test_id = f"{file}::{name}"
            results[test_id] = _run(function, Solution(request["answers"].get(test_id, [])))
    send(json.dumps({"nonce": request["nonce"], "results": results}))


def _tests_of(folder: str, file: str) -> Iterator[tuple[str, Callable[[Solution], Any]]]:
    name = "hidden_" + "".join(c if c.isalnum() else "_" for c in file)
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{file}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, each in vars(module).items():
        if name.startswith("test_") and callable(each):
            yield name, each


def _run(function: Callable[[Solution], Any], solution: Solution) -> dict[str, Any]:
    try:
        value = function(solution)
        # A test that gives something back (a coroutine, a generator) has not run.
        status, reason = ("passed", "") if value is None else ("failed", "it returned something")
    except Pending:
        status, reason = "waits", ""
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {_said(error)}"[:MAX_REASON]
    # A test may have caught Pending: what it then did with no answer is no result.
    return {"status": "waits" if solution.waits else status, "reason": reason, "ops": solution.ops}


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    reply = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # what a solution or a test prints is no reply
        os.dup2(nowhere, fd)

    def send(text: str) -> None:
        data = text.encode("ascii")
        while data:
            data = data[os.write(reply, data) :]

    {"solve": solve, "test": test}[sys.argv[1]](request, send)


if __name__ == "__main__":
    main()
