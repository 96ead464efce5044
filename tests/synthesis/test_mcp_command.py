"""`worldsmith mcp`: the prompt of one task, and a line for one that is not there."""

import json
from pathlib import Path

import pytest

from synthesis.corpus import read_corpus
from worldsmith.cli import main


def test_the_prompt_is_shown_as_messages(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = read_corpus(corpus)[0].task
    assert main(["mcp", str(corpus), "--task", task.task_id, "--show-prompt"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [message["content"] for message in shown] == [message.content for message in task.prompt]


def test_a_task_that_is_not_there_is_one_line_with_the_nearest(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task_id = read_corpus(corpus)[0].task.task_id
    assert main(["mcp", str(corpus), "--task", f"{task_id[:-1]}z"]) == 2
    told = capsys.readouterr().err
    assert f"did you mean {task_id}?" in told
    assert len(told.splitlines()) == 1
