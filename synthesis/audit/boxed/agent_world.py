"""A task of the general-agent layout: `tools.py`, `db.json`, `gold.json`.

Its reward is the greater of two: the database's hash equals the one that the gold leaves, and `verify(db)`.
"""

import sys
import types
from typing import Any

from synthesis.audit.boxed.damage import damaged, unordered_hash
from synthesis.audit.boxed.forks import one_line


class AgentWorld:
    def __init__(self, task: dict[str, Any]) -> None:
        module = types.ModuleType("task_tools")
        module.__file__ = "tools.py"
        sys.modules["task_tools"] = module  # where pydantic looks for the names in annotations
        exec(compile(task["tools"], "tools.py", "exec"), vars(module))  # in a box, which is what it is for
        for name in ("TaskDB", "TaskTools"):
            if not hasattr(module, name):
                raise ValueError(f"tools.py defines no {name}")
        self._module: Any = module
        self._db = task["db"]
        self._gold = task["gold"]

    def _fresh(self) -> Any:
        return self._module.TaskTools(self._module.TaskDB.model_validate(self._db))

    def play(self, plan: dict[str, Any]) -> dict[str, Any]:
        tools = self._fresh()
        before = tools.db.model_dump(mode="json")
        calls = [self._call(tools, tool, arguments) for _, tool, arguments in plan["calls"]]
        harmed = None
        if plan.get("damage") is not None:
            made = damaged(before, tools.db.model_dump(mode="json"), *plan["damage"])
            if made is None:
                return {"nothing": True}
            tools.db, harmed = self._module.TaskDB.model_validate(made[0]), made[1]
        parts, notes = self._parts(tools.db)
        return {
            "parts": parts,
            "reward": max(parts.values()),
            "calls": calls,
            "state": tools.db.get_hash(),
            "content": unordered_hash(tools.db.model_dump(mode="json")),
            "harmed": harmed,
            "notes": notes,
        }

    def _call(self, tools: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        before = tools.db.get_hash()
        error = ""
        try:
            tools.call_tool(tool, **arguments)
        except Exception as caught:
            error = one_line(caught)
        return {"error": error, "writes": tools.db.get_hash() != before}

    def _parts(self, db: Any) -> tuple[dict[str, float], list[str]]:
        notes: list[str] = []
        parts = {"db_hash": 0.0, "verify": 0.0}
        try:
            reference = self._fresh()
            for tool, arguments in self._gold:
                reference.call_tool(tool, **arguments)
            parts["db_hash"] = float(db.get_hash() == reference.db.get_hash())
        except Exception as error:
            notes.append(f"the gold does not replay: {one_line(error)}")
        verify = getattr(self._module, "verify", None)
        if verify is None:
            notes.append("no verify(db)")
            return parts, notes
        try:
            parts["verify"] = float(verify(db))
        except Exception as error:
            notes.append(f"verify raises {one_line(error)}")
        return parts, notes
