"""The matrix of cheaters against families: printed with -s, written into docs/security.md where asked.

pytest tests/hacks -q -s
pytest tests/hacks -q --write-matrix
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.episode import StepResult
from envs.files import write_whole

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"
Cells = defaultdict[tuple[str, str], dict[str, str]]
CELLS = pytest.StashKey[Cells]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", action="store_true", help="write the table into docs/security.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS] = defaultdict(dict)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, str, str, StepResult], None]:
    """Enters what a cheater got into the matrix: (attack, cheater, column, result)."""
    cells = request.config.stash[CELLS]

    def enter(attack: str, cheater: str, column: str, result: StepResult) -> None:
        label = " suspected" if result.baits else ""
        cells[attack, cheater][column] = f"{result.reward:g}{label}" if result.reward is not None else "-"

    return enter


def table(cells: Cells) -> str:
    columns = sorted({column for row in cells.values() for column in row})
    lines = ["| attack | cheater | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for (attack, cheater), row in sorted(cells.items(), key=lambda item: _order(item[0])):
        lines.append(f"| {attack} | {cheater} | " + " | ".join(row.get(c, "") for c in columns) + " |")
    return "\n".join(lines) + "\n"


def _order(key: tuple[str, str]) -> tuple[int, str]:
    number = key[0].removeprefix("A")
    return int(number) if number.isdigit() else 1000, key[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cells = config.stash[CELLS]
    if cells and (config.getoption("capture") == "no" or config.getoption("--write-matrix")):
        terminalreporter.write("\n" + table(cells))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and session.config.getoption("--write-matrix"):
        text = DOCUMENT.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        page = f"{head}{BEGIN}{table(session.config.stash[CELLS])}{END}{tail}"
        write_whole(DOCUMENT, page.encode())
