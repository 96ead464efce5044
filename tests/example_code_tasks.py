"""Hand-made code tasks, in the form of the code family: small, with a gold, a decoy and hidden tests.

`CANARY` stands in every hidden test: found in a solution's or an agent's box, something has leaked.
"""

from envs.families.code import DECOY_MARK, CodeTask
from envs.grading.artifacts import ArtifactSpec
from envs.grading.suite import TestSuite, TextFile
from envs.task import Message

CANARY = "canary-5f0c1e77"
SYSTEM = Message(role="system", content="You write Python. Use the tools, then submit.")


def _task(  # noqa: PLR0913 - a task has these parts
    name: str, request: str, start: str, gold: str, decoy: str, tests: str, ids: tuple[str, ...]
) -> CodeTask:
    path, module = f"{name}.py", f"test_{name}.py"
    hidden = f'"""{CANARY}-{name}"""\n{tests}'
    return CodeTask(
        task_id=f"example-{name}",
        domain="example",
        level=1,
        prompt=(SYSTEM, Message(role="user", content=request)),
        files=(TextFile(path=path, text=start),),
        artifacts=ArtifactSpec(paths=(path,)),
        tests=TestSuite(
            files=(TextFile(path=module, text=hidden),),
            ids=tuple(f"{module}::{test_id}" for test_id in ids),
            test_timeout_s=15,
        ),
        gold=(TextFile(path=path, text=gold),),
        decoy=(TextFile(path=path, text=f"{decoy}# {DECOY_MARK}\n"),),
    )


STATS = _task(
    "stats",
    "Mend median in stats.py: the mean of the middle two for an even count, ValueError for no numbers.",
    "def median(numbers):\n    return numbers[len(numbers) // 2]\n",
    """def median(numbers):
    ordered = sorted(numbers)
    if not ordered:
        raise ValueError("no numbers")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
""",
    "def median(numbers):\n    return sorted(numbers)[len(numbers) // 2]\n",
    """
def test_odd(solution):
    assert solution.call("stats:median", [7, 1, 4]) == 4

def test_even(solution):
    assert solution.call_each("stats:median", ([7, 1, 4, 2],), ([-1, 90],)) == [3.0, 44.5]

def test_empty(solution):
    assert solution.error("stats:median", []) == "ValueError"
""",
    ("test_odd", "test_even", "test_empty"),
)
CACHE = _task(
    "cache",
    "Write a class Cache(size) in cache.py: get(key) gives None for an absent key, put(key, value) forgets"
    " the least recently used key past size.",
    "class Cache:\n    pass\n",
    """from collections import OrderedDict


class Cache:
    def __init__(self, size):
        self._size, self._held = size, OrderedDict()

    def get(self, key):
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, key, value):
        self._held[key] = value
        self._held.move_to_end(key)
        if len(self._held) > self._size:
            self._held.popitem(last=False)
""",
    """class Cache:
    def __init__(self, size):
        self._size, self._held = size, {}

    def get(self, key):
        return self._held.get(key)

    def put(self, key, value):
        if len(self._held) >= self._size:
            self._held.pop(next(iter(self._held)))
        self._held[key] = value
""",
    """
def test_the_least_recently_used_key_goes(solution):
    cache = solution.new("cache:Cache", 2)
    for key, value in (("a", 1), ("b", 2)):
        cache.call("put", key, value)
    assert cache.call("get", "a") == 1
    cache.call("put", "c", 3)
    assert cache.call("get", "b") is None
    assert cache.call("get", "a") == 1
""",
    ("test_the_least_recently_used_key_goes",),
)
WORDS = _task(
    "words",
    "Write words.py, a program that reads text and prints each word with its count, sorted by word.",
    "",
    """import sys
from collections import Counter

for word, count in sorted(Counter(sys.stdin.read().split()).items()):
    print(word, count)
""",
    "import sys\n\nfor word in sorted(set(sys.stdin.read().split())):\n    print(word, 1)\n",
    """
def test_counts(solution):
    assert solution.run(["python3", "words.py"], "b a b") == (0, "a 1\\nb 2\\n", "")

def test_nothing(solution):
    assert solution.run(["python3", "words.py"]) == (0, "", "")
""",
    ("test_counts", "test_nothing"),
)
TASKS = {task.task_id: task for task in (STATS, CACHE, WORDS)}
