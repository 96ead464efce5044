"""Benchmarks that go on where they stopped: their folder belongs to one choice of settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.files import write_whole
from rl.run_files import differences, with_defaults


def check_settings(path: Path, told: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Writes the settings to `path`, or compares with those that are there; what these do not name is at its
    default. Raises SystemExit where they are others.
    """
    if path.exists() and differences(with_defaults(json.loads(path.read_text()), defaults or {}), told):
        raise SystemExit(f"{path}: it has figures of other settings; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(told, indent=1).encode())
