"""G11: each literal of the gold's calls and answer was there to be read: in the prompt, the tools, or a
result before.

A literal from nowhere means that the task cannot be solved from what it shows.
"""

import json
import re

from envs.task import GateRecord
from envs.tools import json_schema
from envs.verifier import parse_answer
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G11", "grounded arguments", 1


def check(trial: Trial) -> GateRecord:
    task = trial.task
    seen = "\n".join(
        [*(message.content for message in task.prompt), *(json.dumps(json_schema(t)) for t in task.tools)]
    )
    ungrounded: list[str] = []
    num_literals = 0
    for call, entry in zip(task.gold.calls, trial.gold.journal, strict=True):
        for name, value in call.arguments.items():
            for literal in str(value).split(", "):
                num_literals += 1
                if not appears(literal, seen):
                    ungrounded.append(f"{call.tool} {name} {literal!r}")
        seen += "\n" + entry.result
    given = {
        (row, column) for row, column, _ in task.guess.fixed
    }  # what the prompt gives away in other words
    for row, cells in enumerate(parse_answer(task.answer, task.gold.answer) or []):
        for column, value in cells.items():
            num_literals += 1
            if (row, column) not in given and not appears(value, seen):
                ungrounded.append(f"answer {column} {value!r}")
    grounded = num_literals - len(ungrounded)
    return GateRecord(
        gate=GATE,
        passed=not ungrounded,
        value=grounded / num_literals if num_literals else 1.0,
        evidence=f"from nowhere: {ungrounded[0]}"
        if ungrounded
        else f"all {num_literals} literals were shown before",
        version=VERSION,
    )


def appears(literal: str, text: str) -> bool:
    """The literal stands in the text as whole words: `12` is not in `120`."""
    return re.search(rf"(?<!\w){re.escape(literal)}(?!\w)", text) is not None
