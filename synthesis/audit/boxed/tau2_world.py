"""A tau2-bench domain from a checkout's own code, and its verdict on a play, without a model.

The verdict follows tau2's evaluator: the reward is the product of the parts that `reward_basis` names. DB:
agent's and user's databases have the hashes that the reference actions leave, whose errors it swallows.
ENV_ASSERTION: all hold. ACTION: each reference action was made. COMMUNICATE: each string stands in what the
agent said. NL_ASSERTION asks a model and is not measured, but where there is none: then it is paid.
"""

import importlib
from typing import Any

from synthesis.audit.boxed.damage import damaged, unordered_hash
from synthesis.audit.boxed.forks import in_child, one_line

DEFAULT_BASIS = ("DB", "COMMUNICATE")
REFERENCE_TIMEOUT_S = 60


class Tau2Domain:
    """The domain's databases, loaded once; a task gets its environment in a process of its own."""

    def __init__(self, name: str) -> None:
        self._environment = importlib.import_module(f"tau2.domains.{name}.environment")
        self._tasks = importlib.import_module("tau2.data_model.tasks")
        self._messages = importlib.import_module("tau2.data_model.message")
        self._env = self._environment.get_environment()

    def task(self, raw: dict[str, Any]) -> "Tau2World":
        """Raises what the checkout's code raises where it cannot be set up. Uses up this process' copy."""
        task = self._tasks.Task.model_validate(raw)
        state = task.initial_state
        if state is not None:
            self._env.set_state(
                initialization_data=state.initialization_data,
                initialization_actions=state.initialization_actions,
                message_history=list(state.message_history or []),
            )
        return Tau2World(self._env, task, self._messages.ToolCall)


class Tau2World:
    def __init__(self, env: Any, task: Any, tool_call: Any) -> None:
        self._env = env
        self._task = task
        self._tool_call = tool_call
        self._criteria = task.evaluation_criteria
        reference = in_child(self._reference, timeout_s=REFERENCE_TIMEOUT_S)
        if "fault" in reference:
            raise ValueError(f"the reference actions: {reference['fault']}")
        self._notes: list[str] = []
        self._target = reference["hashes"]
        self._reference_errors = reference["errors"]

    def _hashes(self) -> list[Any]:
        return [self._env.get_db_hash(), self._env.get_user_db_hash()]

    def _reference(self) -> dict[str, Any]:
        errors = []
        for action in (self._criteria.actions if self._criteria else None) or []:
            try:
                self._env.make_tool_call(
                    tool_name=action.name, requestor=action.requestor, **action.arguments
                )
            except Exception as error:  # as the evaluator does, which goes on
                errors.append(f"{action.name}: {one_line(error)}")
        return {"hashes": self._hashes(), "errors": errors}

    def play(self, plan: dict[str, Any]) -> dict[str, Any]:
        before = self._env.tools.db.model_dump() if plan.get("damage") is not None else None
        calls = [self._call(index, *call) for index, call in enumerate(plan["calls"])]
        harmed = None
        if before is not None:
            made = damaged(before, self._env.tools.db.model_dump(), *plan["damage"])
            if made is None:
                return {"nothing": True}
            self._env.tools.db, harmed = type(self._env.tools.db).model_validate(made[0]), made[1]
        parts, unmeasured, notes = self._parts(plan)
        reward = 1.0
        for part in parts.values():
            reward *= part
        return {
            "parts": parts,
            "reward": reward,
            "unmeasured": unmeasured,
            "calls": calls,
            "state": "/".join(map(str, self._hashes())),
            "content": self._content() if plan["needs_content"] else "",
            "harmed": harmed,
            "notes": notes,
            "reference_errors": self._reference_errors,
        }

    def _content(self) -> str:
        user_tools = getattr(self._env, "user_tools", None)
        users = user_tools.db.model_dump() if user_tools is not None and user_tools.db is not None else None
        return unordered_hash([self._env.tools.db.model_dump(), users])

    def _call(self, index: int, requestor: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = self._tool_call(id=f"audit_{index}", name=tool, arguments=arguments, requestor=requestor)
        reply = self._env.get_response(call)
        return {
            "error": str(reply.content)[:300] if reply.error else "",
            "writes": bool(self._env._is_mutating_tool(tool)),
        }

    def _parts(self, plan: dict[str, Any]) -> tuple[dict[str, float], list[str], list[str]]:
        criteria = self._criteria
        if criteria is None:
            return {}, [], ["no evaluation criteria: everything is rewarded"]
        basis = [str(getattr(part, "value", part)) for part in criteria.reward_basis]
        parts: dict[str, float] = {}
        notes = self._notes
        if criteria.actions is None and criteria.env_assertions is None:
            notes.append("neither actions nor assertions: every database is rewarded")
        measures = {
            "DB": self._database,
            "ENV_ASSERTION": self._assertions,
            "ACTION": self._actions,
            "COMMUNICATE": self._communicated,
        }
        if not getattr(criteria, "nl_assertions", None):  # nothing to judge, which tau2 pays
            measures["NL_ASSERTION"] = lambda plan: True
        for name in basis:
            if name in measures:
                parts[name] = float(measures[name](plan))
        return parts, [name for name in basis if name not in measures], notes

    def _database(self, plan: dict[str, Any]) -> bool:
        criteria = self._criteria
        if criteria.actions is None and criteria.env_assertions is None:
            return True
        return self._hashes() == self._target

    def _assertions(self, plan: dict[str, Any]) -> bool:
        for one in self._criteria.env_assertions or []:
            try:
                if not self._env.run_env_assertion(one, raise_assertion_error=False):
                    return False
            except Exception as error:
                self._notes.append(f"the assertion {one.func_name} raises: {one_line(error)}")
                return False
        return True

    def _actions(self, plan: dict[str, Any]) -> bool:
        made = [
            self._tool_call(id="audit", name=tool, arguments=arguments, requestor=requestor)
            for requestor, tool, arguments in plan["calls"]
        ]
        return all(
            any(action.compare_with_tool_call(call) for call in made)
            for action in self._criteria.actions or []
        )

    def _communicated(self, plan: dict[str, Any]) -> bool:
        said = [text.lower().replace(",", "") for text in plan["says"]]
        return all(
            any(wanted.lower() in text for text in said) for wanted in self._criteria.communicate_info or []
        )
