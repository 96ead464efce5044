"""Brings `synthesis` and `rl` together: what a corpus holds, in the form that a rollout and a cold start
take.
"""

from collections import Counter
from pathlib import Path

from envs.families.code import CodeTask, code_task_from_json
from envs.sandbox.requirements import IN_PROCESS, check_requirements, required_by
from rl.run import Data
from rl.trajectory import PlayableTask
from rl.transcript import Demonstration
from synthesis.corpus import MANIFEST, check_disjoint, read_corpus, read_toolsets
from synthesis.demonstrations import read_demonstrations


def playable_tasks(directory: Path, *, limit: int | None = None) -> list[PlayableTask]:
    """The corpus' tasks. Raises ValueError when there is none, a file is not what was written, or a task
    requires a box that holds something: these are played in this process.
    """
    tasks = [PlayableTask(task=row.task, image=row.image) for row in read_corpus(directory, limit=limit)]
    if not tasks:
        raise ValueError(f"{directory}: the corpus holds no tasks; make some with worldsmith synth --count")
    check_requirements(required_by((one.task.task_id, one.task.requires) for one in tasks), IN_PROCESS)
    return tasks


def holds_code_tasks(directory: Path) -> bool:
    """A folder of task files, and no corpus."""
    return not (directory / MANIFEST).exists() and any(directory.glob("*.json"))


def code_tasks(directory: Path, *, limit: int | None = None) -> list[CodeTask]:
    """The code tasks of a folder, a JSON file each, by name. Raises ValueError where one cannot be read or
    two have one id.
    """
    paths = sorted(directory.glob("*.json"))[:limit]
    tasks = [code_task_from_json(path.read_bytes(), where=str(path)) for path in paths]
    for path, (task_id, count) in zip(paths, Counter(task.task_id for task in tasks).items(), strict=False):
        if count > 1:
            raise ValueError(f"{path}: {count} tasks have the id {task_id!r}; give each its own")
    return tasks


def training_data(corpus: Path, heldout: Path, *, demonstrations_needed: bool = True) -> Data:
    """Tasks and demonstrations of `corpus`, held-out tasks of `heldout`, proved to share no task and no
    world. Raises ValueError where they do, and where demonstrations are needed and there are none.
    """
    check_disjoint(corpus, heldout)
    toolsets = read_toolsets(corpus)
    clean: list[Demonstration] = []
    mixed: list[Demonstration] = []
    shown: set[tuple[str, int]] = set()
    for row in read_demonstrations(corpus):
        demonstration = Demonstration(messages=row.messages, tools=toolsets[row.tools], reward=row.reward)
        (mixed if row.slip_rate > 0 else clean).append(demonstration)
        shown.add((row.domain, row.level))
    if demonstrations_needed and not (clean and mixed):
        raise ValueError(
            f"{corpus}: training needs clean and mixed demonstrations, found {len(clean)} and {len(mixed)};"
            " make them with worldsmith synth --demonstrations N --slip-rate 0,0.4"
        )
    tasks = playable_tasks(corpus)
    held = playable_tasks(heldout)
    cells = {(playable.task.domain, playable.task.level) for playable in held}
    return Data(tasks=tasks, heldout=held, clean=clean, mixed=mixed, unseen_levels=frozenset(cells - shown))
