import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from worldsmith.transcripts import three_to_read
from worldsmith.view import write_view

WriteRun = Callable[..., Path]


def story(task_id: str, when: str, reward: float) -> dict[str, object]:
    return {"task_id": task_id, "when": when, "reward": reward, "messages": [], "cause": "answered"}


def test_the_page_holds_every_trajectory_and_filters_them(write_run: WriteRun) -> None:
    page = write_view(write_run()).read_text()
    assert page.count('<details class="story"') == 6
    assert re.findall(r'data-filter="(\w+)"', page) == ["outcome", "when", "domain", "level", "cause"]
    assert "list_hotels" in page


def test_the_limit_holds_for_every_file_and_is_said(write_run: WriteRun) -> None:
    page = write_view(write_run(), limit=2).read_text()
    assert page.count('<details class="story"') == 4
    assert "the first 2 of every file" in page


def test_three_to_read_prefers_one_task_failed_before_and_solved_after() -> None:
    records = [
        story("a", "before", 0),
        story("b", "before", 0),
        story("b", "after", 1),
        story("a", "after", 0),
    ]
    chosen = [(title, one.task_id) for title, one in three_to_read(records)]
    assert chosen == [("Before: not solved", "b"), ("After: the same task, solved", "b"),
                      ("After: still not solved", "a")]  # fmt: skip


def test_three_to_read_takes_what_there_is() -> None:
    assert three_to_read([]) == []
    assert len(three_to_read([story("a", "before", 0)])) == 1
    assert len(three_to_read([story(str(i), "before", 1) for i in range(9)])) == 3


@pytest.mark.browser
def test_the_page_of_a_task_shows_that_task_alone(write_run: WriteRun, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    assert browser is not None
    page = write_view(write_run()).resolve().as_uri() + "#trip-2-1"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path}/profile", "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.count('hidden=""') == 4
    assert '<span id="shown">2</span>' in shown
