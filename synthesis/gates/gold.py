"""G2: the gold, as a client of the tool server with no other hold on the world, scores 1 three times of
three.
"""

from envs.agents import gold_plan
from envs.task import GateRecord
from envs.verifier import judge
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G2", "gold by tools only", 1
TIMES = 3


def check(trial: Trial) -> GateRecord:
    task = trial.task
    plan = gold_plan(task)
    if len(plan.calls) + 1 > task.max_turns:
        return _record(0.0, f"the gold needs {len(plan.calls) + 1} turns of {task.max_turns}")
    for num_passed in range(TIMES):
        episode = trial.play(plan)
        if (failed := next((entry for entry in episode.journal if entry.error), None)) is not None:
            return _record(num_passed / TIMES, f"step {failed.step} {failed.tool}: {failed.result}")
        verdict = judge(task, episode)
        if verdict.score != 1.0:
            return _record(num_passed / TIMES, f"scored {verdict.score}: {verdict.reason}")
    return _record(1.0, f"1.0 in {TIMES} of {TIMES}, {len(plan.calls)} calls, no error")


def _record(value: float, evidence: str) -> GateRecord:
    return GateRecord(gate=GATE, passed=value == 1.0, value=value, evidence=evidence, version=VERSION)
