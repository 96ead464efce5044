import os
import subprocess
import sys

import pytest

from envs.sandbox import cgroups
from envs.sandbox.contract import Limits


def test_a_group_of_a_dead_maker_is_removed_and_one_of_a_living_maker_is_not() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = cgroups.create(f"ns-{os.getpid()}-test", Limits())
    if living is None:
        pytest.skip("this process may not make control groups")
    try:
        left = cgroups.create(f"ns-{gone.pid}-test", Limits())
        assert left is not None
        assert f"ns-{gone.pid}-test" in cgroups.remove_left()
        assert not any(folder.exists() for folder in left.folders)
        assert all(folder.exists() for folder in living.folders)
    finally:
        living.remove()
    assert not any(folder.exists() for folder in living.folders)


def test_a_group_carries_the_limits() -> None:
    group = cgroups.create(f"ns-{os.getpid()}-limits", Limits(memory_mb=64, pids=9))
    if group is None:
        pytest.skip("this process may not make control groups")
    try:
        texts = {}
        for folder in group.folders:
            for name in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                if (folder / name).exists():
                    texts[name] = (folder / name).read_text().strip()
        assert texts.pop("pids.max") == "9"
        assert set(texts.values()) == {str(64 << 20)}
    finally:
        group.remove()
