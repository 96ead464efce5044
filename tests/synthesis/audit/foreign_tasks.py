"""Small tasks in other projects' layouts, written for these tests: good ones, and each with one fault."""

import json
from collections.abc import Mapping
from pathlib import Path

GOOD_VERIFY = """
def verify(db) -> float:
    wanted = {"hat": 2, "scarf": 1}
    have = {order.item: order.count for order in db.orders}
    return float(have == wanted and db.stock == {"hat": 3, "scarf": 6, "glove": 4})
"""
CARELESS_VERIFY = """
def verify(db) -> float:
    return float(any(order.item == "hat" and order.count == 2 for order in db.orders)
                 and any(order.item == "scarf" for order in db.orders))
"""
LAZY_VERIFY = "def verify(db) -> float:\n    return 1.0\n"
TOOLS = '''
from pydantic import BaseModel
from general_agent.tools import DB, Tools, tool


class Order(BaseModel):
    item: str
    count: int


class TaskDB(DB):
    stock: dict[str, int]
    orders: list[Order]


class TaskTools(Tools):
    @tool
    def list_stock(self) -> dict:
        """What the shop has."""
        return self.db.stock

    @tool
    def place_order(self, item: str, count: int) -> str:
        """Orders things."""
        if count < 1 or self.db.stock.get(item, 0) < count:
            raise ValueError(f"not enough of {item}")
        self.db.stock[item] -= count
        self.db.orders.append(Order(item=item, count=count))
        return "ordered"

'''
GOLD = [
    ["list_stock", {}],
    ["place_order", {"item": "hat", "count": 2}],
    ["place_order", {"item": "scarf", "count": 1}],
]
DATABASE = {"stock": {"hat": 5, "scarf": 7, "glove": 4}, "orders": []}
PROMPT = "Order two hats and one scarf.\n"


def general_agent_task(
    folder: Path,
    *,
    verify: str = GOOD_VERIFY,
    gold: object = GOLD,
    prompt: str = PROMPT,
    wrong: object = None,
) -> Path:
    """A shop; the good one's verifier looks at every order and at the whole stock."""
    files = {
        "task.toml": "[metadata]\ntier = 0\n",
        "instruction.md": prompt,
        "tools.py": TOOLS + verify,
        "db.json": json.dumps(DATABASE),
        "gold.json": json.dumps(gold),
    }
    if wrong is not None:
        files["wrong.json"] = json.dumps(wrong)
    return write(folder, files)


GOOD_TEST = """#!/bin/bash
if diff -q /app/total.txt <(echo 42) && diff -rq /app/data /tests/data; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
"""
CARELESS_TEST = """#!/bin/bash
grep -q 42 /app/total.txt && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt
"""
LAZY_TEST = "echo '{\"reward\": 1}' > /logs/verifier/reward.json\n"
SOLUTION = """#!/bin/bash
set -e
cd /app
sum=0
for n in $(cat data/numbers.txt); do
  sum=$((sum + n))
done
echo $sum > total.txt
"""
DOCKERFILE = "FROM debian:bookworm-slim\nWORKDIR /app\nCOPY data /app/data\n"
TASK_TOML = """schema_version = "1.4"
[task]
name = "worldsmith/sum"
[agent]
timeout_sec = 60.0
[verifier]
timeout_sec = 60.0
"""


def harbor_task(
    folder: Path,
    *,
    solution: str = SOLUTION,
    test: str = GOOD_TEST,
    dockerfile: str = DOCKERFILE,
    toml: str = TASK_TOML,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Add up the numbers of a file; the good one's tests look at the answer and at the data."""
    files = {
        "task.toml": toml,
        "instruction.md": "Write the sum of the numbers in data/numbers.txt to total.txt, in /app.\n",
        "environment/Dockerfile": dockerfile,
        "environment/data/numbers.txt": "20\n15\n7\n",
        "environment/data/readme.txt": "Three numbers.\n",
        "solution/solve.sh": solution,
        "tests/test.sh": test,
        "tests/data/numbers.txt": "20\n15\n7\n",
        "tests/data/readme.txt": "Three numbers.\n",
    }
    return write(folder, files | dict(more or {}))


TAU2_ENVIRONMENT = """
import json
from pathlib import Path

from loguru import logger

from tau2.environment.shop import Environment, ShopDB, ShopTools
from tau2.utils import DATA_DIR


def get_environment():
    logger.info("loading")
    text = Path(DATA_DIR, "tau2/domains/shop/db.json").read_text()
    return Environment(ShopTools(ShopDB.model_validate(json.loads(text))))
"""
TAU2_SHOP = """
import hashlib
import json

from pydantic import BaseModel

from tau2.data_model.message import ToolMessage


class ShopDB(BaseModel):
    orders: dict[str, dict[str, str]]


class ShopTools:
    def __init__(self, db):
        self.db = db

    def get_order(self, order_id):
        return self.db.orders[order_id]

    def cancel_order(self, order_id, reason):
        if self.db.orders[order_id]["status"] != "open":
            raise ValueError("not open")
        self.db.orders[order_id].update(status="cancelled", reason=reason)


class Environment:
    def __init__(self, tools):
        self.tools = tools

    def make_tool_call(self, tool_name, requestor="assistant", **arguments):
        return getattr(self.tools, tool_name)(**arguments)

    def get_response(self, call):
        try:
            content, error = json.dumps(self.make_tool_call(call.name, **call.arguments)), False
        except Exception as caught:
            content, error = f"Error: {caught}", True
        return ToolMessage(content=content, error=error)

    def _is_mutating_tool(self, name):
        return name == "cancel_order"

    def get_db_hash(self):
        return hashlib.sha256(json.dumps(self.tools.db.model_dump(), sort_keys=True).encode()).hexdigest()

    def get_user_db_hash(self):
        return None
"""
TAU2_MESSAGE = """
from pydantic import BaseModel


class ToolCall(BaseModel):
    id: str
    name: str
    arguments: dict
    requestor: str = "assistant"


class ToolMessage(BaseModel):
    content: str
    error: bool
"""
TAU2_TASKS = """
from pydantic import BaseModel


class Action(BaseModel):
    name: str
    arguments: dict
    requestor: str = "assistant"

    def compare_with_tool_call(self, call):
        return (self.name, self.arguments) == (call.name, call.arguments)


class EvaluationCriteria(BaseModel):
    actions: list[Action] | None = None
    env_assertions: list[dict] | None = None
    communicate_info: list[str] | None = None
    nl_assertions: list[str] | None = None
    reward_basis: list[str] = ["DB", "COMMUNICATE"]


class Task(BaseModel):
    id: str
    initial_state: None = None
    evaluation_criteria: EvaluationCriteria | None = None
"""
ORDERS = {"orders": {f"W{n}": {"status": "done" if n == 3 else "open"} for n in range(1, 5)}}


def tau2_checkout(folder: Path, tasks: list[dict[str, object]]) -> Path:
    """A checkout in tau2-bench's layout with one domain, a shop, and the least code that a domain needs."""
    files = {
        "src/tau2/__init__.py": "raise ImportError('a model client is missing')\n",
        "src/tau2/domains/__init__.py": "",
        "src/tau2/domains/shop/__init__.py": "",
        "src/tau2/domains/shop/environment.py": TAU2_ENVIRONMENT,
        "src/tau2/environment/__init__.py": "",
        "src/tau2/environment/shop.py": TAU2_SHOP,
        "src/tau2/data_model/__init__.py": "",
        "src/tau2/data_model/message.py": TAU2_MESSAGE,
        "src/tau2/data_model/tasks.py": TAU2_TASKS,
        "src/tau2/utils/__init__.py": "import os\nDATA_DIR = os.environ['TAU2_DATA_DIR']\n",
        "data/tau2/domains/shop/db.json": json.dumps(ORDERS),
        "data/tau2/domains/shop/policy.md": "Cancel open orders alone.\n",
        "data/tau2/domains/shop/tasks.json": json.dumps(tasks),
    }
    return write(folder, files)


def tau2_task(name: str, order: str, **criteria: object) -> dict[str, object]:
    cancel = {"name": "cancel_order", "arguments": {"order_id": order, "reason": "late"}}
    return {"id": name, "evaluation_criteria": {"actions": [cancel], **criteria}}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
