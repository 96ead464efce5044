"""Measure steps of episodes in this process: the gold of each task played through the environment, graded.

A step is one message of the agent, the final answer among them; a second is one of this process' CPU, over
whole episodes: a fresh world, every call, the last snapshot, the verdict.

With --tau2 DIR, a checkout of tau2-bench, its own environment code plays retail episodes in a Python of its
own (3.12 or 3.13, made where it is missing, from PyPI): the same episodes as ours, our worlds and calls
written in its data model; and its own tasks on its own database, which its constructor reads from disk for
every world. There an episode is its environment made anew, `get_response` for every call, and its
`EnvironmentEvaluator`.
The last line of --json is one JSON object.

Run as a module: `python -m benchmarks.env_steps`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from envs.agents import gold_plan, play_plan
from envs.task import Task, stable_seed
from envs.world import open_image
from synthesis.general import DOMAINS, Candidate, domain_named, make_candidate
from synthesis.shard_plan import DEFAULT_LEVELS

TAU2_SCRIPT = r"""
import json, sys, time
from loguru import logger
logger.remove()  # its default prints every response
from tau2.data_model.message import AssistantMessage, ToolCall
from tau2.data_model.tasks import EvaluationCriteria, RewardType, Task, UserScenario
from tau2.domains.retail.data_model import RetailDB
from tau2.domains.retail.environment import get_environment, get_tasks
from tau2.evaluator.evaluator_env import EnvironmentEvaluator

def play(make, task):
    env, said = make(), []
    for index, action in enumerate(task.evaluation_criteria.actions):
        call = ToolCall(id=str(index), name=action.name, arguments=action.arguments)
        said += [AssistantMessage(role="assistant", tool_calls=[call]), env.get_response(call)]
    said.append(AssistantMessage(role="assistant", content="done"))
    reward = EnvironmentEvaluator.calculate_reward(make, task, said)
    return len(task.evaluation_criteria.actions) + 1, reward.reward

def rate(episodes, least_s):
    steps = right = played = 0
    began = time.process_time()
    while time.process_time() - began < least_s:
        for make, task in episodes:
            num_steps, reward = play(make, task)
            steps, right, played = steps + num_steps, right + (reward == 1.0), played + 1
    spent = time.process_time() - began
    return {"steps_per_s": steps / spent, "episodes": played, "right": right, "steps": steps}

given = json.load(sys.stdin)
same = []
for each in given["episodes"]:
    make = lambda solo_mode=False, db=each["db"]: get_environment(db=RetailDB.model_validate(db))
    actions = [{"action_id": str(n), **action} for n, action in enumerate(each["actions"])]
    criteria = EvaluationCriteria(actions=actions, reward_basis=[RewardType.DB])
    scenario = UserScenario(instructions="x")
    same.append((make, Task(id="x", user_scenario=scenario, evaluation_criteria=criteria)))
own = [task for task in get_tasks() if task.evaluation_criteria and task.evaluation_criteria.actions]
loaded = [(lambda solo_mode=False: get_environment(), task) for task in own[: given["own"]]]
print(json.dumps({"same": rate(same, given["seconds"]), "own": rate(loaded, given["seconds"])}))
"""
_ADDRESS = {"address1": "1", "address2": "", "city": "x", "country": "x", "state": "x", "zip": "1"}


def rate_of(candidates: list[Candidate], least_s: float) -> dict[str, float]:
    """Steps a CPU second over the candidates' golds, played again and again for `least_s`."""
    steps = episodes = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < least_s:
        for made in candidates:
            plan = gold_plan(made.task)
            result = play_plan(made.task, made.image, plan)
            if result.reward != 1.0:
                raise RuntimeError(f"{made.task.task_id}: its gold scored {result.reward}")
            ends = plan.calls != made.task.gold.calls  # the last call carries the answer
            steps += len(plan.calls) + (not ends)
            episodes += 1
    return {"steps_per_s": steps / spent, "episodes": episodes, "steps": steps}


def candidates_of(name: str, num_tasks: int, *, level: int | None = None) -> list[Candidate]:
    domain = domain_named(name)
    levels = [level] if level else [each for each in domain.levels if each in DEFAULT_LEVELS]
    made = (
        make_candidate(domain, levels[index % len(levels)], stable_seed("env steps", name, index))
        for index in range(20 * num_tasks)
    )
    found = [candidate for candidate in made if candidate is not None]
    return found[:num_tasks]


def as_tau2(task: Task, image: bytes) -> dict[str, Any]:
    """Our retail task as tau2-bench's: its database, and the gold as its calls."""
    db = open_image(image)
    try:
        users = db.execute("SELECT user_id, name FROM users").fetchall()
        orders = db.execute("SELECT order_id, user_id, item, status, paid FROM orders").fetchall()
    finally:
        db.close()
    methods = {"card": "credit_card", "cash": "paypal", "points": "paypal"}
    payment: dict[str, dict[str, Any]] = {
        paid: {"source": source, "id": f"{paid}_1"}
        | ({"brand": "x", "last_four": "0000"} if source == "credit_card" else {})
        for paid, source in methods.items()
    }
    data: dict[str, Any] = {"products": {}, "users": {}, "orders": {}}
    for user_id, name in users:
        first, last = name.split(" ", 1)
        data["users"][user_id] = {
            "user_id": user_id, "name": {"first_name": first, "last_name": last}, "address": _ADDRESS,
            "email": f"{user_id}@x.org", "payment_methods": {f"{p}_1": each for p, each in payment.items()},
            "orders": [order[0] for order in orders if order[1] == user_id],
        }  # fmt: skip
    for order_id, user_id, item, status, paid in orders:
        product = {"name": item, "product_id": item, "item_id": item, "price": 10.0, "options": {}}
        paying = {"transaction_type": "payment", "amount": 10.0, "payment_method_id": f"{paid}_1"}
        data["orders"][order_id] = {
            "order_id": order_id, "user_id": user_id, "address": _ADDRESS, "items": [product],
            "status": {"shipped": "processed"}.get(status, status), "fulfillments": [],
            "payment_history": [paying],
        }  # fmt: skip
    return {"db": data, "actions": [_tau2_action(data, c.tool, c.arguments) for c in task.gold.calls]}


def _tau2_action(data: dict[str, Any], tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    order_id = arguments.get("order_id", "")
    if tool == "find_user_id":
        first, last = arguments["name"].split(" ", 1)
        return {
            "name": "find_user_id_by_name_zip",
            "arguments": {"first_name": first, "last_name": last, "zip": "1"},
        }
    if tool == "get_user_orders":
        return {"name": "get_user_details", "arguments": {"user_id": arguments["user_id"]}}
    if tool == "get_order_details":
        return {"name": tool, "arguments": {"order_id": order_id}}
    if tool == "cancel_order":
        return {
            "name": "cancel_pending_order",
            "arguments": {"order_id": order_id, "reason": "no longer needed"},
        }
    assert tool == "return_order"
    order = data["orders"][order_id]
    back = {"item_ids": [order["items"][0]["item_id"]], "order_id": order_id}
    paid = order["payment_history"][0]["payment_method_id"]
    return {"name": "return_delivered_order_items", "arguments": {**back, "payment_method_id": paid}}


def tau2_rates(checkout: Path, folder: Path, candidates: list[Candidate], seconds: float) -> dict[str, Any]:
    """Raises OSError or subprocess.SubprocessError where it cannot be installed or run."""
    python = folder / "bin" / "python"
    if not python.exists():
        base = next((path for n in ("3.12", "3.13") if (path := shutil.which(f"python{n}"))), None)
        if base is None:
            raise OSError("tau2-bench needs Python 3.12 or 3.13, and neither is on the PATH")
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(checkout)]
        subprocess.run(pip, check=True, stdout=sys.stderr, timeout=900)
    episodes = [as_tau2(made.task, made.image) for made in candidates]
    environment = {**os.environ, "TAU2_DATA_DIR": str(checkout / "data"), "PYTHONPATH": str(checkout / "src")}
    given = json.dumps({"episodes": episodes, "own": 20, "seconds": seconds})
    out = subprocess.run(
        [str(python), "-c", TAU2_SCRIPT],
        input=given, env=environment, capture_output=True, text=True, timeout=600, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    if out.returncode:
        raise OSError(f"tau2-bench failed: {out.stderr.strip()[-800:]}")
    return json.loads(out.stdout.splitlines()[-1])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=20, help="tasks of each domain (default: 20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time for each figure (default: 2)")
    parser.add_argument("--tau2", type=Path, metavar="DIR", help="a checkout of tau2-bench")
    cache = Path(os.environ.get("WORLDSMITH_CACHE", "~/.cache/worldsmith")).expanduser()
    parser.add_argument("--peer", type=Path, default=cache / "peers" / "tau2-bench", metavar="DIR",
                        help="tau2-bench's own environment, made when it is not there")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.tau2 is not None and not (args.tau2 / "src" / "tau2").is_dir():
        parser.error(f"--tau2: {args.tau2} is no checkout of tau2-bench, it has no src/tau2")
    rates: dict[str, dict[str, float]] = {}
    for name in DOMAINS:
        rates[name] = rate_of(candidates_of(name, args.tasks), args.seconds)
        print(f"{name:<12} {rates[name]['steps_per_s']:8.0f} steps/s", flush=True)
    median = statistics.median(rate["steps_per_s"] for rate in rates.values())
    print(f"median       {median:8.0f} steps/s")
    machine = platform.processor() or platform.machine()
    result: dict[str, Any] = {"machine": machine, "domains": rates, "median_steps_per_s": median}
    if args.tau2 is None:
        print("tau2-bench not measured: give --tau2 DIR, a checkout of it")
    else:
        retail = candidates_of("retail", args.tasks)
        try:
            theirs = tau2_rates(args.tau2, args.peer, retail, args.seconds)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"tau2-bench not measured: {error}", file=sys.stderr)
            return 3
        ours = rate_of(retail, args.seconds)["steps_per_s"]
        result |= {"retail_steps_per_s": ours, "tau2": theirs}
        for name, what in (("same", "the same episodes"), ("own", "its own tasks and database")):
            rate = theirs[name]
            print(
                f"tau2-bench, {what}: {rate['steps_per_s']:.0f} steps/s ({rate['right']} of"
                f" {rate['episodes']} episodes right); ours, retail: {ours:.0f},"
                f" {ours / rate['steps_per_s']:.1f} times"
            )
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
