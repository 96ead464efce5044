"""A tool as data: its parameters, its SQL, and the effects that it declares.

A tool holds no code of its own. It is a query, or a list of guarded writes, over the task's SQLite world, so
that a task file can be played anywhere, its effects can be observed (`envs.tool_server.observe_effects`) and
compared with what it declares, and nothing in a task file is ever executed as Python.
"""

import json
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")

ParamType = Literal["string", "integer", "number", "boolean"]
_PYTHON_TYPES: dict[ParamType, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Param:
    name: str
    description: str
    type: ParamType = "string"
    enum: tuple[str, ...] = ()
    """The allowed values; empty: any."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Requirement:
    """A precondition: `sql` (with the call's parameters) must return a row, else the call answers `error`."""

    sql: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Write:
    """A declared effect. `columns` is empty for an insert or a delete of whole rows."""

    table: str
    operation: Literal["update", "insert", "delete"]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Tool:
    """One tool. Example: the query `SELECT hotel FROM hotels WHERE city = :city`, rows as `{hotel}`.

    row_format: one row as text, `{column}` filled in; None renders the rows as JSON objects.
    separator: joins the rows.
    empty: what the agent reads when the query finds nothing.
    statements: run in order, all or none, after every requirement holds.
    done: what the agent reads after the statements ran.
    ends_episode: the call is the agent's final answer; its one parameter holds it.
    """

    name: str
    description: str
    parameters: tuple[Param, ...] = ()
    query: str | None = None
    row_format: str | None = None
    separator: str = " | "
    empty: str = "none"
    requires: tuple[Requirement, ...] = ()
    statements: tuple[str, ...] = ()
    done: str = "ok"
    reads: tuple[str, ...] = ()
    """Tables that a call reads."""
    writes: tuple[Write, ...] = ()
    ends_episode: bool = False


def json_schema(tool: Tool) -> dict[str, Any]:
    """The tool in the function-calling form (name, description, JSON Schema of the parameters)."""
    properties: dict[str, Any] = {}
    for param in tool.parameters:
        properties[param.name] = {"type": param.type, "description": param.description}
        if param.enum:
            properties[param.name]["enum"] = list(param.enum)
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": [param.name for param in tool.parameters],
            "additionalProperties": False,
        },
    }


def argument_error(tool: Tool, arguments: object) -> str | None:
    """What is wrong with a call's arguments, in one line that the agent can act on; None when they fit."""
    if not isinstance(arguments, dict):
        return f"error: arguments of {tool.name} must be an object"
    names = [param.name for param in tool.parameters]
    if unknown := sorted(set(map(str, arguments)) - set(names)):
        return f"error: {tool.name} has no parameter {unknown[0]}; it takes {', '.join(names) or 'none'}"
    for param in tool.parameters:
        if param.name not in arguments:
            return f"error: {tool.name} needs {param.name}"
        value = arguments[param.name]
        is_bool = isinstance(value, bool)
        if is_bool != (param.type == "boolean") or not isinstance(value, _PYTHON_TYPES[param.type]):
            return f"error: {param.name} must be of type {param.type}"
        if isinstance(value, int) and abs(value) >= 2**63:
            return f"error: {param.name} is out of range"
        if param.enum and value not in param.enum:
            return f"error: {param.name} must be one of {', '.join(param.enum)}"
    return None


def render_rows(tool: Tool, rows: list[dict[str, Any]]) -> str:
    """The text that the agent reads for a query's rows."""
    if not rows:
        return tool.empty
    if tool.row_format is None:
        return json.dumps(rows, ensure_ascii=False)
    return tool.separator.join(tool.row_format.format_map(row) for row in rows)
