"""What the command starts: training in huge pages, everything else as it is."""

import os
import subprocess
import sys

import pytest

from worldsmith import __main__ as entry


@pytest.mark.skipif(sys.platform != "linux", reason="a switch of Linux's C library")
def test_training_starts_once_more_with_huge_pages_and_the_same_arguments() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    code = (
        "import os, sys; sys.argv[0] = 'worldsmith'\n"
        "import worldsmith.__main__ as entry\n"
        "entry.main = lambda argv: print(argv, os.environ.get('GLIBC_TUNABLES'))\n"
        "entry.run()"
    )
    for arguments, expected in (
        (["train", "--config", "x"], "['train', '--config', 'x'] glibc.malloc.hugetlb=1"),
        (["plan"], "['plan'] None"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_a_switch_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("started again"))
    entry.with_huge_pages()
