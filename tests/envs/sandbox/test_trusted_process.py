import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from envs.sandbox.contract import SandboxUnavailableError
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.trusted_process import trusted_process_box


@pytest.fixture
def box() -> Iterator[ExecutorSandbox]:
    with closing(trusted_process_box(allow_unsafe=True)) as started:
        started.start()
        yield started


def test_it_is_refused_unless_asked_for_by_its_flag() -> None:
    with pytest.raises(SandboxUnavailableError, match="isolates nothing"):
        trusted_process_box()


def test_it_says_aloud_that_nothing_is_isolated(
    box: ExecutorSandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(trusted_process_box(allow_unsafe=True)) as second:
        second.start()
    assert "isolates NOTHING" in capfd.readouterr().err


def test_it_runs_commands_with_bytes_and_files_in_a_folder_of_its_own(box: ExecutorSandbox) -> None:
    data = bytes(range(256))
    box.write_file("a/b", data)
    assert box.exec(["cat", "a/b", "-"], stdin=data).stdout == data * 2
    assert box.exec(["pwd"]).stdout.decode().strip() == box.work_dir


def test_a_timeout_and_the_end_of_a_call_leave_no_process(box: ExecutorSandbox) -> None:
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    started = time.monotonic()
    result = box.exec(["sh", "-c", f"(setsid sleep 4321 &); {stubborn}"], timeout_s=0.2)
    assert (result.timed_out, result.exit_code) == (True, 137)
    assert time.monotonic() - started < 5
    box.exec(["sh", "-c", "(setsid sleep 4321 &)"])
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\x004321\0" not in commands


def test_its_folder_is_gone_after_close() -> None:
    box = trusted_process_box(allow_unsafe=True)
    box.start()
    folder = Path(box.work_dir)
    assert folder.is_dir()
    box.close()
    box.close()
    assert not folder.exists()
