"""A Harbor task directory as data: task.toml, instruction.md, environment/, solution/, tests/.

What a box cannot carry out (several containers, several steps, an image that is not here) is a
`NotRunError`, with the reason that the report gives.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from synthesis.audit.dockerfile import Build, DockerfileError, parse_dockerfile
from synthesis.audit.files import Folder, ForeignFileError

FIXED_FOLDERS = ("/app", "/logs", "/tests", "/solution")
MAX_TIMEOUT_S = 120.0
_TEMPLATE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class NotRunError(Exception):
    """The task cannot be played here; its text goes into the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarborTask:
    """`verifier`: the build of the grading box where the task wants one of its own, else None."""

    name: str
    instruction: str
    image: str
    build: Build
    environment: Mapping[str, bytes]
    solution: Mapping[str, bytes]
    """Without a solve.sh the task has no reference solution."""
    tests: Mapping[str, bytes]
    agent_timeout_s: float
    verifier_timeout_s: float
    solution_env: Mapping[str, str] = field(default_factory=dict)
    verifier_env: Mapping[str, str] = field(default_factory=dict)
    verifier: Build | None = None
    artifacts: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """The writable folders of its boxes."""
        of_verifier = self.verifier.folders if self.verifier is not None else ()
        return tuple(dict.fromkeys((*FIXED_FOLDERS, *self.build.folders, *of_verifier)))

    @property
    def state_folders(self) -> tuple[str, ...]:
        """Those that hold what an agent makes."""
        return tuple(folder for folder in self.folders if folder not in ("/logs", "/tests", "/solution"))


def is_task(folder: Folder) -> bool:
    return folder.has("task.toml") and (folder.has("instruction.md") or folder.is_folder("steps"))


def read_task(name: str, folder: Folder) -> HarborTask:
    """Raises ForeignFileError and NotRunError."""
    config = folder.toml("task.toml")
    if folder.is_folder("steps"):
        raise NotRunError("several steps (steps/) are not played")
    environment = folder.below("environment").files() if folder.is_folder("environment") else {}
    if any(re.fullmatch(r"(docker-)?compose\.ya?ml", file) for file in environment):
        raise NotRunError("several containers (compose) are not played")
    solution = folder.below("solution").files() if folder.is_folder("solution") else {}
    tests = folder.below("tests").files() if folder.is_folder("tests") else {}
    if "test.sh" not in tests:
        raise NotRunError("no tests/test.sh")
    build, image = _build(_table(config, "environment"), environment)
    verifier = _table(config, "verifier")
    separate = verifier.get("environment_mode") == "separate"
    return HarborTask(
        name=name,
        instruction=folder.text("instruction.md"),
        image=image,
        build=build,
        environment=environment,
        solution=solution,
        tests=tests,
        agent_timeout_s=_timeout(_table(config, "agent")),
        verifier_timeout_s=_timeout(verifier),
        solution_env=_env(_table(config, "solution")),
        verifier_env=_env(verifier),
        verifier=_verifier_build(build, tests) if separate else None,
        artifacts=_artifacts(config) if separate else (),
    )


def _build(table: dict[str, Any], environment: Mapping[str, bytes]) -> tuple[Build, str]:
    declared = table.get("docker_image")
    if "Dockerfile" in environment:
        try:
            build = parse_dockerfile(environment["Dockerfile"].decode("utf-8", "replace"), environment)
        except DockerfileError as error:
            raise NotRunError(str(error)) from None
        return build, build.image
    if isinstance(declared, str):
        raise NotRunError(f"image {declared[:80]} without environment/Dockerfile, which a box is built from")
    raise NotRunError("no environment/Dockerfile")


def _verifier_build(build: Build, tests: Mapping[str, bytes]) -> Build:
    if "Dockerfile" not in tests:
        return build
    try:
        return parse_dockerfile(tests["Dockerfile"].decode("utf-8", "replace"), tests)
    except DockerfileError as error:
        raise NotRunError(f"tests/{error}") from None


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise ForeignFileError(f"task.toml: {name} is not a table")
    return found


def _timeout(table: dict[str, Any]) -> float:
    value = table.get("timeout_sec", MAX_TIMEOUT_S)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value > 0:
        raise ForeignFileError(f"task.toml: timeout_sec must be a positive number, got {value!r}"[:200])
    return min(float(value), MAX_TIMEOUT_S)


def _env(table: dict[str, Any]) -> dict[str, str]:
    """Variables with their templates' defaults: this machine's own environment never enters a box."""
    found = table.get("env", {})
    if not isinstance(found, dict):
        raise ForeignFileError("task.toml: env is not a table")
    return {str(k): _TEMPLATE.sub(lambda match: match[2] or "", str(v)) for k, v in found.items()}


def _artifacts(config: dict[str, Any]) -> tuple[str, ...]:
    found = config.get("artifacts", [])
    paths = [one.get("source") if isinstance(one, dict) else one for one in found]
    if not all(isinstance(path, str) and path.startswith("/") and ".." not in path for path in paths):
        raise NotRunError("artifacts that are no absolute paths")
    return tuple(str(path) for path in paths)
