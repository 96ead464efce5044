"""gymnasium ids: `worldsmith/Task-v0` and `worldsmith/Code-v0` play one task file; string entry points, so
that workers need no import.
"""

from pathlib import Path

import gymnasium

from envs.episode import TaskEnv
from envs.families.code import code_task_from_json
from envs.families.code_episode import CodeEnv
from envs.sandbox.choose import choose_sandbox
from envs.task import task_from_json

TASK_ENV_ID = "worldsmith/Task-v0"
CODE_ENV_ID = "worldsmith/Code-v0"


def make_task_env(task_file: str, world_file: str, render_mode: str | None = None) -> TaskEnv:
    """Opens a task from its JSON file and its world's SQLite file. Raises ValueError when either cannot be
    read.
    """
    for path in (task_file, world_file):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; give a task's JSON and its world's SQLite file")
    task = task_from_json(Path(task_file).read_bytes(), where=task_file)
    return TaskEnv(task, Path(world_file).read_bytes(), render_mode=render_mode)


def make_code_env(task_file: str, tier: str = "auto", render_mode: str | None = None) -> CodeEnv:
    """Opens a code task from its JSON file, its boxes of `tier`. Raises ValueError when it cannot be read,
    SandboxUnavailableError where there is no such box.
    """
    if not Path(task_file).is_file():
        raise ValueError(f"{task_file}: no such file; give a code task's JSON")
    task = code_task_from_json(Path(task_file).read_bytes(), where=task_file)
    return CodeEnv(task, choose_sandbox(tier).make, render_mode=render_mode)


def register() -> None:
    """Adds our ids to gymnasium's registry; calling it again changes nothing."""
    if TASK_ENV_ID not in gymnasium.registry:
        gymnasium.register(id=TASK_ENV_ID, entry_point="envs.registration:make_task_env")
    if CODE_ENV_ID not in gymnasium.registry:
        gymnasium.register(id=CODE_ENV_ID, entry_point="envs.registration:make_code_env")
