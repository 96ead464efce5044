"""G0: the task survives its own file form, and its tools can be shown and called."""

from envs.task import GateRecord, task_from_json, task_to_json
from envs.tools import json_schema
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G0", "schema", 1


def check(trial: Trial) -> GateRecord:
    task = trial.task
    text = task_to_json(task)
    faults = [] if task_from_json(text) == task else ["the task changes when it is written and read"]
    names = [tool.name for tool in task.tools]
    if len(set(names)) != len(names):
        faults.append("two tools share a name")
    for tool in task.tools:
        properties = json_schema(tool)["parameters"]["properties"]
        if tool.ends_episode and [schema["type"] for schema in properties.values()] != ["string"]:
            faults.append(f"{tool.name} ends the episode, so it takes one text")
        if tool.ends_episode and (tool.statements or tool.query):
            faults.append(f"{tool.name} ends the episode, so it does nothing else")
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(not faults),
        evidence="; ".join(faults) or f"{len(names)} tools, {len(text)} characters, equal after a round trip",
        version=VERSION,
    )
