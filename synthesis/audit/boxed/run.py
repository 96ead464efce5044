"""The program in the box: a batch of tasks on stdin, one line of JSON for each play on stdout.

A task is set up in a process of its own and each of its plays is a fork of that, so that no play sees another
and a crash is the fault of one.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from synthesis.audit.boxed import stand_ins
from synthesis.audit.boxed.forks import in_child, one_line

PLAY_TIMEOUT_S = 30


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    # What foreign code prints while it is imported is no line of ours.
    sys.stdout = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    try:
        make_world = _loader(request)
    except BaseException as error:
        _say({"fault": f"cannot be loaded: {one_line(error)}"})
        return
    for task in request["tasks"]:
        timeout_s = PLAY_TIMEOUT_S * (len(task["plans"]) + 1)
        for line in _task_lines(make_world, task, timeout_s):
            _say({"task": task["task"], **line})


def _loader(request: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    if request["kind"] == "general-agent":
        stand_ins.install_for_general_agent()
        from synthesis.audit.boxed.agent_world import AgentWorld

        return AgentWorld
    stand_ins.install_for_tau2()
    sys.path.insert(0, request["source"])
    os.environ["TAU2_DATA_DIR"] = request["data"]
    from synthesis.audit.boxed.tau2_world import Tau2Domain

    return Tau2Domain(request["domain"]).task


def _task_lines(make_world: Callable[[Any], Any], task: dict[str, Any], timeout_s: int) -> list[Any]:
    def play_all() -> list[dict[str, Any]]:
        world = make_world(task["raw"])
        return [
            {"plan": plan["name"], **in_child(lambda plan=plan: world.play(plan), timeout_s=PLAY_TIMEOUT_S)}
            for plan in task["plans"]
        ]

    lines = in_child(play_all, timeout_s=timeout_s)
    return [lines] if isinstance(lines, dict) else lines


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
