"""What the program in the box imports, as one archive: our packages and the libraries' files that they load.

A child process of ours imports the program, makes and tries one candidate and says which files that took;
pyarrow, which pandas loads where it finds it, stays out. Compiled modules go along, as compiling them anew
would take a box longer than a candidate does. The box's Python must be of our minor version.
"""

import io
import subprocess
import sys
import tarfile
from functools import lru_cache
from pathlib import Path

from envs.child_processes import CHECKOUT

LEFT_OUT = ("pyarrow",)
LOADED = """
import os, sys
import synthesis.boxed.program
from envs.task import stable_seed
from synthesis.general import DOMAINS, make_candidate
from synthesis.gates.suite import run_gates
domain = next(iter(DOMAINS.values()))
made = (make_candidate(domain, domain.levels[0], stable_seed("load", n)) for n in range(100))
run_gates(next(one for one in made if one is not None))
found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
found |= {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
found |= {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
print("\\n".join(sorted(path for path in found if path and os.path.isfile(path))))
"""


@lru_cache(maxsize=1)
def archive() -> bytes:
    """A gzipped tar, rooted at the folder to put on `sys.path`. Takes some seconds, once a process.

    Raises ValueError where the child fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": CHECKOUT, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    if done.returncode != 0:
        raise ValueError(f"synthesis cannot be packed for a box: {done.stderr.strip()[-300:]}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in map(Path, done.stdout.splitlines()):
            name = _name_in_box(path)
            if name is not None:
                tar.add(path, arcname=name, recursive=False)
    return buffer.getvalue()


def _name_in_box(path: Path) -> str | None:
    """Below the folder that `sys.path` will name; None for the standard library and what stays out."""
    if path.is_relative_to(CHECKOUT) and ".venv" not in path.parts:
        return path.relative_to(CHECKOUT).as_posix()
    parts = path.parts
    if "site-packages" not in parts:
        return None
    below = parts[parts.index("site-packages") + 1 :]
    return None if below[0].startswith(LEFT_OUT) else "/".join(below)
