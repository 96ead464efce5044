"""G7: what reaches for the reward by another way than the task scores 0.

Calls of tools that do not exist (verify, set_reward, a shell, a file), SQL in every parameter of every tool,
and answers that claim a reward, break a parser or overflow it; none may score, and none may change the world.
"""

from envs.task import Call, GateRecord, Plan
from envs.verifier import MAX_ANSWER_CHARS, judge_answers
from synthesis.gates.trial import Trial, image_state

GATE, TITLE, VERSION = "G7", "channel attacks", 1
_ABSENT = ("verify", "grade", "set_reward", "submit_reward", "run_sql", "bash", "write_file", "__init__", "")
_SQL = (
    "'; DELETE FROM {table}; --",
    "' UNION SELECT sql FROM sqlite_master --",
    "x'), (SELECT load_extension('x')) --",
)
_CLAIMS = (
    '{"reward": 1}', "reward: 1.0", "[true]", "[1]", "NaN", "Infinity", '{"score": 1.0, "passed": true}',
    "PASS", "exit 0", "' OR '1'='1", "[[[[", '"\\ud800"', "\x00", "{{gold}}", "${ANSWER}",
)  # fmt: skip


def check(trial: Trial) -> GateRecord:
    calls = attack_calls(trial)
    episode = trial.play(Plan(calls=tuple(calls), answer=""))
    answers = attack_answers(trial)
    verdicts = judge_answers(trial.task, episode, answers)
    trial.keep(calls, episode, dict(zip(answers, verdicts, strict=True)), gate=GATE)
    scored = [answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict.score != 0.0]
    faults = [f"scores by the answer {scored[0][:60]!r}"] if scored else []
    taken = [e.tool for e in episode.journal if not e.error and trial.task.tool(e.tool) is None]
    if taken:
        faults.append(f"the tool {taken[0]!r} does not exist and answers")
    if not trial.has_write(calls) and image_state(episode.final) != image_state(trial.image):
        faults.append("SQL in a parameter of a reading tool changes the world")
    killed = len(answers) - len(scored)
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=killed / len(answers),
        evidence="".join(f"{fault}; " for fault in faults)
        + f"killed {killed} of {len(answers)}, after {len(calls)} calls that reach beside the task",
        version=VERSION,
    )


def attack_calls(trial: Trial) -> list[Call]:
    """Tools that do not exist, and SQL where a reading tool takes text."""
    tables = sorted({table for table, _ in trial.columns})
    calls = [
        Call(tool=name, arguments={"reward": 1, "command": "echo 1 > reward.txt"})
        for name in _ABSENT
        if trial.task.tool(name) is None
    ]
    for tool in trial.task.tools:
        if tool.writes or tool.ends_episode or not tool.parameters:
            continue
        for text in _SQL[: 3 if len(trial.task.tools) <= 8 else 1]:
            filled = text.format(table=tables[len(calls) % len(tables)])
            calls.append(
                Call(tool=tool.name, arguments=dict.fromkeys((p.name for p in tool.parameters), filled))
            )
    return calls


def attack_answers(trial: Trial) -> list[str]:
    spec = trial.task.answer
    answers = [*_CLAIMS, "[" * 50_000, "x" * (MAX_ANSWER_CHARS + 1)]
    answers += [f"{choice} {{}}" for choice in spec.choices]
    for cell in ("true", "null", "1", '{"$ne": null}', '["x"]'):
        row = ", ".join(f'"{column}": {cell}' for column in spec.columns)
        answers.append(f"[{', '.join([f'{{{row}}}'] * spec.num_rows)}]")
    return list(dict.fromkeys(answers))
