"""Rules of the repository that no linter knows: sizes, the README's commands, one folder one package."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.mutations import read_mutants

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "synthesis", "policies", "rl", "worldsmith")
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
"""Statements, those of nested functions among them; ruff's limit of 40 leaves those out."""

EXCEPTIONS: dict[str, str] = {
    "envs/sandbox/executor.py": "the one file that runs inside a box, which is given a single text",
}
"""A module's path, or `path::function`, and why it is longer."""


def modules() -> list[Path]:
    folders = [ROOT / name for name in (*PACKAGES, "benchmarks", "tests", ".ci")]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_statements(function: ast.AST) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1


def test_no_module_is_too_long() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    long = {
        name: length for name, length in lengths.items() if length > LONGEST_MODULE and name not in EXCEPTIONS
    }
    assert not long, (
        f"over {LONGEST_MODULE} lines: split by subject, or name it in EXCEPTIONS with the reason"
    )


def test_no_function_is_too_long() -> None:
    long = {}
    for path in modules():
        for function in functions(ast.parse(path.read_text())):
            name = f"{name_of(path)}::{function.name}"
            if num_statements(function) > LONGEST_FUNCTION and name not in EXCEPTIONS:
                long[name] = num_statements(function)
    assert not long, f"over {LONGEST_FUNCTION} statements: split it, or name it in EXCEPTIONS with the reason"


def test_every_exception_is_still_needed() -> None:
    needed = {name_of(path) for path in modules() if len(path.read_text().splitlines()) > LONGEST_MODULE}
    for path in modules():
        for function in functions(ast.parse(path.read_text())):
            if num_statements(function) > LONGEST_FUNCTION:
                needed.add(f"{name_of(path)}::{function.name}")
    assert set(EXCEPTIONS) <= needed


def test_nested_statements_count() -> None:
    tree = ast.parse("def f():\n    if x:\n        y = 1\n    def g():\n        return 2\n")
    assert num_statements(functions(tree)[0]) == 4  # if, assignment, def, return


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_it_is_for_and_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, f"{name_of(path)} holds more than a docstring"
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_modules_is_a_package(package: str) -> None:
    """Else the wheel leaves it out in silence."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_every_command_that_a_document_names_exists(document: str) -> None:
    from worldsmith.cli import COMMANDS

    text = (ROOT / document).read_text()
    targets = re.findall(r"(?:`|^\s*)make ([a-z-]+)", text, flags=re.MULTILINE)
    commands = re.findall(r"(?:`|^\s*)(?:\.venv/bin/)?worldsmith ([a-z]+)", text, flags=re.MULTILINE)
    assert set(targets) <= make_targets()
    assert set(commands) <= set(COMMANDS)


@pytest.mark.parametrize("document", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=str))
def test_every_link_into_the_repository_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_target_is_phony_and_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == make_targets()
    assert set(re.findall(r"^([a-z-]+):.*## \w", text, flags=re.MULTILINE)) == make_targets()


def test_every_dependency_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = [re.fullmatch(r"([\w.-]+)==[\w.!-]+", line) for line in lines]
    assert all(pins), "constraints.txt holds exact versions alone, without a local label such as +cpu"
    pinned = [normal(pin[1]) for pin in pins if pin]
    assert len(pinned) == len(set(pinned))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {normal(re.split(r"[\[<>=~]", one)[0]) for one in asked} <= set(pinned)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_mutant_still_finds_the_line_it_breaks_and_changes_it() -> None:
    mutants = read_mutants()
    assert len({(mutant.area, mutant.what) for mutant in mutants}) == len(mutants) > 100
    for mutant in mutants:
        text = (ROOT / mutant.path).read_text()
        ast.parse(mutant.applied(text))
        assert mutant.applied(text) != text
        assert all((ROOT / test).is_file() for test in mutant.tests)
