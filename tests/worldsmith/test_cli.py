import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from envs.sandbox.contract import SandboxLostError
from worldsmith import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Makes `worldsmith scripted` a command whose main is the given function."""

    def install(main: Callable[[list[str]], int]) -> None:
        module = ModuleType("worldsmith.scripted")
        monkeypatch.setattr(module, "main", main, raising=False)
        monkeypatch.setitem(sys.modules, "worldsmith.scripted", module)
        entry = cli.Command("worldsmith.scripted", "does as the test says", resumable=True)
        monkeypatch.setitem(cli.COMMANDS, "scripted", entry)

    return install


def fail_with(error: BaseException) -> Callable[[list[str]], int]:
    # In a module of ours, by name: a ValueError is the user's fault only where our own code raises it.
    scope = {"error": error, "__name__": "rl.scripted"}
    exec("def main(argv):\n    raise error", scope)
    return scope["main"]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_a_module_with_main_and_answers_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert importlib.util.find_spec(cli.COMMANDS[name].module) is not None
    assert cli.main([name, "--help"]) == cli.DONE
    assert capsys.readouterr().out.startswith(f"usage: worldsmith {name}")


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.DONE
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in cli.COMMANDS)
    probe = "import sys, worldsmith.cli; worldsmith.cli.main(['--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("False\n")


def test_without_arguments_the_help_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.USAGE
    assert "usage: worldsmith COMMAND" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sinth"]) == cli.USAGE
    error = capsys.readouterr().err
    assert error == "worldsmith: unknown command 'sinth', did you mean synth? (worldsmith --help lists all)\n"


def test_an_unknown_option_is_one_line_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "somewhere", "--ouit", "x"]) == cli.USAGE
    error = capsys.readouterr().err
    assert error.startswith("worldsmith report: unrecognized arguments: --ouit x, did you mean --out?")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_a_mistake_in_any_command_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--no-such-option"]) == cli.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"worldsmith {name}: ")
    assert said.count("\n") == 1


def test_a_fault_of_the_disk_says_where_and_what_to_do(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(fail_with(OSError(28, "No space left on device", "corpora/train/corpus.json")))
    assert cli.main(["scripted"]) == cli.INFRASTRUCTURE
    assert capsys.readouterr().err == (
        "worldsmith scripted: corpora/train/corpus.json: No space left on device;"
        " free some space, then run the same command again\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("count must be\nat least 1, got 0"), cli.USAGE),
        (FileNotFoundError(2, "No such file", "tasks"), cli.USAGE),
        (OSError(28, "No space left on device"), cli.INFRASTRUCTURE),
        (SandboxLostError("the box is gone"), cli.INFRASTRUCTURE),
        (KeyboardInterrupt(), cli.INTERRUPTED),
    ],
)
def test_an_expected_error_is_one_line_and_its_exit_code(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    command(fail_with(error))
    assert cli.main(["scripted"]) == code
    said = capsys.readouterr().err.strip()
    assert said.startswith("worldsmith scripted: ")
    assert "\n" not in said


def test_a_fault_of_our_own_shows_its_traceback(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(fail_with(KeyError("weights")))
    assert cli.main(["scripted"]) == cli.INFRASTRUCTURE
    assert "Traceback" in capsys.readouterr().err


def test_a_value_error_out_of_a_library_is_a_fault_of_our_own(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def library(argv: list[str]) -> int:
        return importlib.import_module("json").loads("{")

    command(library)
    assert cli.main(["scripted"]) == cli.INFRASTRUCTURE
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_an_expected_error_too(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDSMITH_DEBUG", "1")
    command(fail_with(ValueError("count must be at least 1, got 0")))
    assert cli.main(["scripted"]) == cli.USAGE
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_says_that_the_command_goes_on(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(fail_with(KeyboardInterrupt()))
    cli.main(["scripted"])
    assert "run the same command again to go on" in capsys.readouterr().err


def test_sigterm_unwinds_the_stack_and_exits_with_143(command: Callable[..., None]) -> None:
    closed = []

    def main(argv: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
            return 0
        finally:
            closed.append(True)

    command(main)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["scripted"]) == cli.TERMINATED
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_exit_code_of_a_command_is_passed_on(command: Callable[..., None]) -> None:
    command(lambda argv: len(argv))
    assert cli.main(["scripted", "x"]) == cli.FAULTS


def test_python_m_worldsmith_exits_with_the_code() -> None:
    result = subprocess.run([sys.executable, "-m", "worldsmith", "nothing"], capture_output=True, text=True)
    assert result.returncode == cli.USAGE
    assert result.stdout == ""
