"""Items by Ray actors: all of them, in spite of a worker that dies, and with the function's own errors."""

import os
import signal
import time
from pathlib import Path

import pytest

from synthesis.ray_shards import map_on_ray

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def in_turn(item: tuple[int, str]) -> tuple[int, int]:
    """The number and the process; the first two numbers wait for each other, so that two must be at work."""
    number, folder = item
    Path(folder, str(number)).touch()
    until = time.monotonic() + 30
    while number < 2 and not (Path(folder, "0").exists() and Path(folder, "1").exists()):
        assert time.monotonic() < until, "the other never began"
        time.sleep(0.01)
    return number, os.getpid()


def deadly(item: tuple[int, str]) -> int:
    number, folder = item
    marker = Path(folder, "died")
    if number == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def faulty(item: int) -> int:
    if item == 2:
        raise ValueError("two is not to be had")
    return item


def test_two_workers_share_the_items_and_give_each_one_once(tmp_path: Path) -> None:
    found = list(map_on_ray(in_turn, [(number, str(tmp_path)) for number in range(9)], 2))
    assert sorted(number for number, _ in found) == list(range(9))
    assert len({pid for _, pid in found}) == 2


def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    found = list(map_on_ray(deadly, [(number, str(tmp_path)) for number in range(7)], 2))
    assert sorted(found) == list(range(7))
    assert (tmp_path / "died").exists()


def test_what_the_function_raises_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^two is not to be had$"):
        list(map_on_ray(faulty, list(range(4)), 1))
