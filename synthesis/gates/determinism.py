"""G1: the same seed gives the same world and the same task, byte for byte.

Here within this process; `certify` does it again in another one, on whatever machine it runs.
"""

from envs.task import GateRecord, task_to_json
from synthesis.counterfactual import made_again
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G1", "determinism", 1


def check(trial: Trial) -> GateRecord:
    task = trial.task
    again = made_again(task)
    faults = []
    if again is None or again.image != trial.image:
        faults.append("the seed gives another world")
    if again is None or task_to_json(again.task) != task_to_json(task):
        faults.append("the seed gives another task")
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(not faults),
        evidence="; ".join(faults) or f"world of {len(trial.image)} bytes and task made twice, equal",
        version=VERSION,
    )
