"""G3: doing nothing, answering nothing, refusing unread and echoing the prompt score 0."""

import json

from envs.task import GateRecord, Plan
from envs.verifier import judge_answers
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G3", "floor", 1
EMPTY = ("", " ", "[]", "{}", "[{}]", "null", "done", "refused", "I cannot do that.", "yes", "no", "true")


def check(trial: Trial) -> GateRecord:
    task = trial.task
    answers = list(
        dict.fromkeys([*EMPTY, *(m.content for m in task.prompt), *task.answer.choices, *_hollow(trial)])
    )
    episode = trial.play(Plan(calls=(), answer=""))
    verdicts = judge_answers(task, episode, answers)
    trial.keep((), episode, dict(zip(answers, verdicts, strict=True)), gate=GATE)
    scored = [answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict.score > 0]
    return GateRecord(
        gate=GATE,
        passed=not scored,
        value=max(verdict.score for verdict in verdicts),
        evidence=f"scores without a call: {scored[0][:60]!r}"
        if scored
        else f"{len(answers)} answers, no call, all 0",
        version=VERSION,
    )


def _hollow(trial: Trial) -> list[str]:
    """Answers of the right form without content: empty cells, the columns' own names, names that do not
    exist.
    """
    spec = trial.task.answer
    if spec.kind != "rows":
        return []
    fixed = {(row, column): value for row, column, value in trial.task.guess.fixed}
    fills = ("", "none", "\ud800", "%", "' OR 1=1 --")
    rows = [
        [{column: fixed.get((row, column), fill) for column in spec.columns} for row in range(spec.num_rows)]
        for fill in fills
    ]
    rows.append([{column: column for column in spec.columns}] * spec.num_rows)
    return [json.dumps(each) for each in rows]
