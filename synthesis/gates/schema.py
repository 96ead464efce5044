"""G0: the task survives its own file form; its SQL depends on nothing outside; its tools can be shown and
withstand every call that an agent may send.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from envs.task import Call, GateRecord, task_from_json, task_to_json
from envs.tool_server import ToolServer
from envs.tools import ParamType, Tool, json_schema
from synthesis.gates.pure_sql import impure, sql_of
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G0", "schema", 2
_BOUNDARIES: Final[dict[ParamType, tuple[Any, ...]]] = {
    "string": ("", "' OR 1=1 --", "\ud800", "x" * 5000),
    "integer": (-1, 2**63 - 1, 2**70, 0),
    "number": (-1.5, 1e308, float("nan"), 2**70),
    "boolean": (True, False, True, False),
}


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
    faults += [f"{where} depends on {what}" for where, sql in sql_of(task) if (what := impure(sql))]
    num_calls = 0
    if not faults:
        num_calls, faults = fuzz(trial)
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(not faults),
        evidence="; ".join(faults[:3])
        or f"{len(names)} tools, {len(text)} characters, equal after a round trip; {num_calls} fuzzed calls",
        version=VERSION,
    )


def fuzz(trial: Trial) -> tuple[int, list[str]]:
    """How many calls were tried on the tools, and what went wrong.

    A call with wrong arguments is an error; neither it nor a tool that declares no write changes the world;
    nothing raises.
    """
    faults: list[str] = []
    num_calls = 0
    with closing(ToolServer(trial.image, trial.task.tools)) as server:
        before = server.snapshot()
        wrong = [(tool, arguments, True) for tool in trial.task.tools for arguments in _wrong(tool)]
        edge = [(tool, arguments, False) for tool in trial.task.tools for arguments in _boundary(tool)]
        harmless = [case for case in edge if not case[0].writes]
        for tool, arguments, must_fail in (*wrong, *harmless):
            num_calls += 1
            faults += _try(server, tool, arguments, must_fail=must_fail)
        if server.snapshot() != before:
            faults.append("a call that fails or only reads changes the world")
        for tool, arguments, _ in edge:
            if tool.writes:
                num_calls += 1
                faults += _try(server, tool, arguments, must_fail=False)
    return num_calls, faults


def _try(server: ToolServer, tool: Tool, arguments: dict[str, Any], *, must_fail: bool) -> list[str]:
    try:
        observation = server.call(Call(tool=tool.name, arguments=arguments))
    except Exception as error:  # whatever it is, an agent could bring an episode down by it
        return [f"{tool.name} raises {type(error).__name__} for {str(arguments)[:60]}"]
    if must_fail and not observation.error:
        return [f"{tool.name} takes the wrong arguments {str(arguments)[:60]}"]
    return []


def _wrong(tool: Tool) -> Iterator[dict[str, Any]]:
    good: dict[str, Any] = {param.name: _BOUNDARIES[param.type][0] for param in tool.parameters}
    yield {**good, "no such parameter": 1}
    if tool.parameters:
        yield {}
        yield {**good, tool.parameters[0].name: None}


def _boundary(tool: Tool) -> Iterator[dict[str, Any]]:
    for index in range(len(_BOUNDARIES["string"]) if tool.parameters else 1):
        yield {
            param.name: param.enum[index % len(param.enum)] if param.enum else _BOUNDARIES[param.type][index]
            for param in tool.parameters
        }
