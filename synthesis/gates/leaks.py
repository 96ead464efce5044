"""G14: what the agent is shown before its first call does not give the solution away.

A cell of the answer may stand in the prompt or the tools' descriptions only where every other option of that
place stands there too; no hash, seed or word of the machinery stands anywhere.
"""

import json
import re

from envs.task import GateRecord
from envs.tools import json_schema
from envs.verifier import parse_answer
from synthesis.gates.grounding import appears
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G14", "leak scan", 1
_MACHINERY = re.compile(
    r"\b(?:gold (?:answer|solution|plan|calls)|verifier|verdict|ground truth|reference solution|answer key"
    r"|reward function)\b",
    re.IGNORECASE,
)


def check(trial: Trial) -> GateRecord:
    task = trial.task
    prompt = "\n".join(message.content for message in task.prompt)
    tools = "\n".join(json.dumps(json_schema(tool), ensure_ascii=False) for tool in task.tools)
    shown = f"{prompt}\n{tools}"
    leaks = _answer_leaks(trial, shown)
    secrets = {
        "the world's hash": task.world.content_hash,
        "the task's id": task.task_id,
        "the seed": str(task.world.seed),
    }
    leaks += [name for name, text in secrets.items() if len(text) >= 6 and text in shown]
    leaks += [f"the gold's answer in {param}" for param in _described_answers(trial, tools)]
    if (found := _MACHINERY.search(prompt)) is not None:
        leaks.append(f"the word {found[0]!r}")
    return GateRecord(
        gate=GATE,
        passed=not leaks,
        value=float(len(leaks)),
        evidence=f"shown before the first call: {leaks[0]}"
        if leaks
        else f"{len(shown)} characters of prompt and tools give nothing away",
        version=VERSION,
    )


def _answer_leaks(trial: Trial, shown: str) -> list[str]:
    """Cells that the shown text singles out among their options."""
    task = trial.task
    rows = parse_answer(task.answer, task.gold.answer) or []
    if task.answer.kind == "choice":
        word = rows[0]["choice"] if rows else ""
        named = [choice for choice in task.answer.choices if appears(choice, shown)]
        return [f"the answer {word!r} alone of its choices"] if named == [word] else []
    leaks: list[str] = []
    for slot in task.guess.slots:
        value = rows[slot.row][slot.column] if slot.row < len(rows) else ""
        # A number or a time may stand there as a bound, which singles nothing out.
        is_name = any(character.isalpha() for character in value)
        if is_name and appears(value, shown) and not all(appears(option, shown) for option in slot.options):
            leaks.append(f"{slot.column} {value!r}, not all of its options")
    return leaks


def _described_answers(trial: Trial, tools: str) -> list[str]:
    """Rows as a whole: three cells or more of the gold's answer next to each other in a description."""
    rows = parse_answer(trial.task.answer, trial.task.gold.answer) or []
    texts = [" ".join(row.values()) for row in rows if len(row) >= 3]
    return ["a tool's description" for text in texts if text in tools]
