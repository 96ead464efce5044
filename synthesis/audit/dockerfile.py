"""The part of a Dockerfile that can be carried out in a box: no network, no root, its own files alone.

What is left out changes no file (EXPOSE, LABEL, CMD ...). What cannot be carried out is a `DockerfileError`,
and the task is reported as not run; it is never guessed at.
"""

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from envs.sandbox.contract import SYSTEM_FOLDERS

IGNORED = (
    "CMD",
    "ENTRYPOINT",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
)


class DockerfileError(ValueError):
    """An instruction that no box carries out; one line with its number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """`files`: what COPY lays down, by path below /. `argv`: what RUN runs, in `cwd` with `env`."""

    what: str
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """image: what FROM names. folders: the top-level folders that must be writable."""

    image: str
    workdir: str
    env: Mapping[str, str]
    steps: tuple[Step, ...]
    folders: tuple[str, ...]


def parse_dockerfile(text: str, context: Mapping[str, bytes]) -> Build:
    """context: the files beside the Dockerfile. Raises DockerfileError."""
    builder = _Builder(context)
    for number, line in _instructions(text):
        name, _, rest = line.partition(" ")
        try:
            builder.take(name.upper(), rest.strip())
        except (DockerfileError, ValueError) as error:
            raise DockerfileError(f"Dockerfile line {number}: {error}") from None
    return builder.build()


def top_folder(path: str) -> str:
    """`/app` of `/app/src`. Raises DockerfileError for a folder that a box keeps for itself."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts:
        raise DockerfileError(f"writes to {path[:60]!r}")
    if parts[0] in SYSTEM_FOLDERS:
        raise DockerfileError(f"writes to /{parts[0]}, which is read-only in a box")
    return f"/{parts[0]}"


class _Builder:
    def __init__(self, context: Mapping[str, bytes]) -> None:
        self._context = context
        self._image = ""
        self._workdir = "/"
        self._env: dict[str, str] = {}
        self._arguments: dict[str, str] = {}
        self._steps: list[Step] = []
        self._folders: dict[str, None] = {}

    def take(self, name: str, rest: str) -> None:
        if name == "FROM":
            self._take_from(rest)
        elif name == "WORKDIR":
            self._workdir = self._path(rest)
            if self._workdir != "/":
                self._folders[top_folder(self._workdir)] = None
                self._steps.append(Step(what=f"WORKDIR {rest}", argv=("mkdir", "-p", self._workdir)))
        elif name in ("ENV", "ARG"):
            self._take_variables(name, rest)
        elif name in ("COPY", "ADD"):
            self._take_copy(rest)
        elif name == "RUN":
            self._take_run(rest)
        elif name not in IGNORED:
            raise DockerfileError(f"{name[:20]} cannot be carried out in a box")

    def build(self) -> Build:
        if not self._image:
            raise DockerfileError("no FROM")
        return Build(
            image=self._image,
            workdir=self._workdir,
            env=dict(self._env),
            steps=tuple(self._steps),
            folders=tuple(self._folders),
        )

    def _take_from(self, rest: str) -> None:
        words = [word for word in rest.split() if not word.startswith("--")]
        if self._image:
            raise DockerfileError("several stages cannot be carried out in a box")
        if not words:
            raise DockerfileError("FROM names no image")
        self._image = self._filled(words[0])

    def _take_variables(self, name: str, rest: str) -> None:
        target = self._env if name == "ENV" else self._arguments
        words = shlex.split(rest)
        if name == "ENV" and words and "=" not in words[0]:
            target[words[0]] = self._filled(" ".join(words[1:]))
            return
        for word in words:
            key, _, value = word.partition("=")
            target[key] = self._filled(value)

    def _take_copy(self, rest: str) -> None:
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        if any(word.startswith("--from") for word in words) or "<<" in rest:
            raise DockerfileError("COPY from another stage or a here-document")
        *sources, target = [self._filled(word) for word in words if not word.startswith("--")]
        if not sources or any(source.startswith(("http:", "https:", "git@")) for source in sources):
            raise DockerfileError(f"{rest[:60]!r} needs a network or names no source")
        path = self._path(target)
        is_folder = target.endswith(("/", "/.")) or target == "." or len(sources) > 1
        files: dict[str, bytes] = {}
        for source in sources:
            found = dict(self._matching(source.removeprefix("./").strip("/")))
            if not found:
                raise DockerfileError(f"COPY {source[:60]!r}: no such file beside the Dockerfile")
            for name, (content, is_named) in found.items():
                below = is_folder or not is_named
                files[(f"{path}/{name}" if below else path).lstrip("/")] = content
        for name in files:
            self._folders[top_folder(f"/{name}")] = None
        self._steps.append(Step(what=f"COPY {rest[:60]}", files=files))

    def _matching(self, source: str) -> Iterator[tuple[str, tuple[bytes, bool]]]:
        """(path below the target, (content, it was named itself)) of what a source stands for."""
        for name, content in self._context.items():
            if source in ("", "."):
                yield name, (content, False)
            elif name == source or ("/" not in name and fnmatch.fnmatch(name, source)):
                yield name.rsplit("/", 1)[-1], (content, True)
            elif name.startswith(f"{source}/"):
                yield name[len(source) + 1 :], (content, False)

    def _take_run(self, rest: str) -> None:
        while rest.startswith("--"):
            rest = rest.partition(" ")[2].lstrip()
        if re.search(r"<<-?\s*['\"]?\w", rest):
            raise DockerfileError("RUN with a here-document")
        argv = tuple(json.loads(rest)) if rest.startswith("[") else ("sh", "-c", rest)
        env = self._arguments | self._env
        self._steps.append(Step(what=f"RUN {rest[:80]}", cwd=self._workdir, env=env, argv=argv))

    def _path(self, path: str) -> str:
        path = self._filled(path.strip().strip('"'))
        joined = path if path.startswith("/") else f"{self._workdir.rstrip('/')}/{path}"
        parts = [part for part in joined.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise DockerfileError(f"the path {path[:60]!r} goes up")
        return "/" + "/".join(parts)

    def _filled(self, text: str) -> str:
        known = self._arguments | self._env

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            return known.get(name, (match[2] or "").removeprefix(":-"))

        return re.sub(r"\$(?:\{(\w+)(:-[^}]*)?\}|(\w+))", value, text)


def _instructions(text: str) -> Iterator[tuple[int, str]]:
    """(line number, instruction with its continuation lines joined)."""
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        if not pending:
            start = number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
            continue
        yield start, (pending + line).strip()
        pending = ""
    if pending.strip():
        yield start, pending.strip()
