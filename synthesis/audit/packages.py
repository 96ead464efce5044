"""The packages that foreign tools need in a box, from this program's own environment, compiled files and all.

A box has a Python of its own. Where that is of another version than ours, pydantic's compiled part does not
load there, and the tasks are reported as not run.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

BOXED = ("__init__", "run", "forks", "damage", "stand_ins", "agent_world", "tau2_world")
PACKAGES = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "yaml")
MODULES = ("typing_extensions",)


@lru_cache(maxsize=1)
def boxed_files() -> dict[str, bytes]:
    """Our own part of what runs in the box, under the names that it is imported by."""
    here = Path(__file__).parent
    files = {
        f"synthesis/audit/boxed/{name}.py": (here / "boxed" / f"{name}.py").read_bytes() for name in BOXED
    }
    return files | {"synthesis/__init__.py": b"", "synthesis/audit/__init__.py": b""}


@lru_cache
def boxed_source(name: str) -> str:
    """A module of `boxed` that needs no other, as text to run."""
    return (Path(__file__).parent / "boxed" / f"{name}.py").read_text()


@lru_cache(maxsize=1)
def pydantic_files() -> dict[str, bytes]:
    """pydantic and what it imports. Raises ValueError where they are not installed as files."""
    found: dict[str, bytes] = {}
    for name in (*PACKAGES, *MODULES):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"the package {name} is not installed as files; install worldsmith anew")
        origin = Path(spec.origin)
        paths = [origin] if name in MODULES else sorted(origin.parent.rglob("*"))
        for path in paths:
            if path.is_file() and path.suffix in (".py", ".so"):
                found[
                    path.relative_to(origin.parent if name in MODULES else origin.parents[1]).as_posix()
                ] = path.read_bytes()
    return found
