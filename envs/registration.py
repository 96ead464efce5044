"""gymnasium ids: `worldsmith/Task-v0` plays one task file; string entry points, so that workers need no
import.
"""

from pathlib import Path

import gymnasium

from envs.episode import TaskEnv
from envs.task import task_from_json

TASK_ENV_ID = "worldsmith/Task-v0"


def make_task_env(task_file: str, world_file: str, render_mode: str | None = None) -> TaskEnv:
    """Opens a task from its JSON file and its world's SQLite file. Raises ValueError when either cannot be
    read.
    """
    for path in (task_file, world_file):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; give a task's JSON and its world's SQLite file")
    task = task_from_json(Path(task_file).read_bytes(), where=task_file)
    return TaskEnv(task, Path(world_file).read_bytes(), render_mode=render_mode)


def register() -> None:
    """Adds our ids to gymnasium's registry; calling it again changes nothing."""
    if TASK_ENV_ID not in gymnasium.registry:
        gymnasium.register(id=TASK_ENV_ID, entry_point="envs.registration:make_task_env")
