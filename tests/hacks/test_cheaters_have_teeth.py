"""A grader as most are, in one process and by the exit code, pays cheaters that get nothing here.

Without this the matrix could be full of noughts because the cheaters are bad at cheating.
"""

from pathlib import Path

import pytest

from envs.tool_server import ToolServer
from envs.verifier import Episode, grade_answers, judge
from synthesis.general import DOMAINS, make_candidate
from tests.envs.grading_boxes import LocalBox
from tests.example_code_tasks import STATS
from tests.hacks.code_cheaters import CHEATERS
from tests.hacks.general_cheaters import gold_writes

NAIVE = """
import sys
sys.path.insert(0, ".")
import stats
def test_odd():
    assert stats.median([7, 1, 4]) == 4
def test_even():
    assert stats.median([7, 1, 4, 2]) == 3.0
"""
RUN = "\ntest_odd()\ntest_even()\n"
PAID = {
    "sys.exit(0) at import",
    "os._exit(0) at import",
    "an object that equals everything",
    "a number that equals everything",
    "an object that claims to be a float",
    "forges its answers and leaves",
}
"""What a grader pays that runs tests and solution in one interpreter and looks at its exit code."""


def naive_reward(text: str, folder: Path) -> float:
    box = LocalBox(folder)
    box.write_file("stats.py", text.encode())
    box.write_file("tests.py", (NAIVE + RUN).encode())
    return float(box.exec(["python3", "tests.py"]).exit_code == 0)


@pytest.mark.parametrize("name", sorted(PAID))
def test_a_grader_in_the_same_process_pays_these(name: str, tmp_path: Path) -> None:
    cheater = next(cheater for cheater in CHEATERS if cheater.name == name)
    (call,) = cheater.act(STATS)
    assert naive_reward(call.arguments["content"], tmp_path / "box") == 1.0
    assert naive_reward(STATS.gold[0].text, tmp_path / "gold") == 1.0
    assert naive_reward(STATS.files[0].text, tmp_path / "start") == 0.0


def test_the_heap_of_a_shared_process_gives_the_answers_away(tmp_path: Path) -> None:
    """The cheater that walks stack and heap finds what is expected where the test's source is in memory."""
    cheater = next(cheater for cheater in CHEATERS if cheater.name.startswith("walks the stack"))
    (call,) = cheater.act(STATS)
    box = LocalBox(tmp_path / "box")
    box.write_file("stats.py", call.arguments["content"].encode())
    one = NAIVE.split("def test_even")[0]
    box.write_file(
        "tests.py", f"SOURCE = {one!r}\nexec(compile(SOURCE + 'test_odd()', 'tests', 'exec'))".encode()
    )
    assert box.exec(["python3", "tests.py"]).exit_code == 0


def test_without_the_replay_the_goal_state_alone_is_paid() -> None:
    """The last snapshot is the goal's own: only the journal, played again, tells that no call made it."""
    paid = 0
    for candidate in (make_candidate(DOMAINS["retail"], 1, seed) for seed in range(100, 130)):
        if candidate is None or not gold_writes(candidate.task):
            continue
        task, writes = candidate.task, gold_writes(candidate.task)
        done, read = ToolServer(candidate.image, task.tools), ToolServer(candidate.image, task.tools)
        for call in task.gold.calls:
            done.call(call)
            if call not in writes:
                read.call(call)
        episode = Episode(
            initial=candidate.image,
            final=done.snapshot(),
            journal=tuple(read.journal),
            answer=task.gold.answer,
        )
        done.close()
        read.close()
        paid += grade_answers(task, episode, [episode.answer])[0].score
        assert judge(task, episode).score == 0.0
    assert paid > 0
