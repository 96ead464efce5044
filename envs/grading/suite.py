"""Hidden tests as data: their files, the exact names of what must pass, and the limits of grading."""

from pydantic.dataclasses import dataclass

from envs.grading.artifacts import path_fault
from envs.tools import STRICT

MAX_TESTS = 200


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class TextFile:
    """`path` is below the box's folder."""

    path: str
    text: str

    def __post_init__(self) -> None:
        if (fault := path_fault(self.path)) is not None:
            raise ValueError(f"path {self.path[:80]!r} {fault}")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class TestSuite:
    """Hidden tests. `ids` is exactly what the files hold, as `test_stats.py::test_even`; each must pass.

    A test is a function `test_NAME(solution)` of `in_box.Solution`'s methods; files whose name does not begin
    with `test_` are modules that the others may import.
    """

    __test__ = False  # not pytest's, for all its name

    files: tuple[TextFile, ...]
    ids: tuple[str, ...]
    test_timeout_s: float = 10.0
    """For the solution, in all that one test asks; past it the rest is answered as raised."""
    solution_budget_s: float = 60.0
    """For the solution in all tests and rounds together; past it the solution has failed."""
    suite_timeout_s: float = 30.0
    """For the grader's box to run all tests once."""

    def __post_init__(self) -> None:
        if not 0 < len(self.ids) <= MAX_TESTS or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"tests.ids must be 1 to {MAX_TESTS} different ids, got {len(self.ids)}")
        if strangers := {test_id.split("::")[0] for test_id in self.ids} - set(self.modules):
            raise ValueError(f"tests.ids: no test file {min(strangers)[:80]!r}")
        for name in ("test_timeout_s", "solution_budget_s", "suite_timeout_s"):
            if not 0 < getattr(self, name) <= 3600:
                raise ValueError(f"tests.{name} must lie in (0, 3600] seconds")

    @property
    def modules(self) -> list[str]:
        return [file.path for file in self.files if file.path.split("/")[-1].startswith("test_")]
