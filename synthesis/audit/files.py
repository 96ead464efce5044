"""Files that somebody else wrote: read without following a link, never past a size, never outside their root.

A fault of such a file is a `ForeignFileError`, one line with the path, and the fault of one task alone.
"""

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 8 << 20
MAX_FOLDER_BYTES = 48 << 20
MAX_FILES = 5_000


class ForeignFileError(ValueError):
    """A file that is missing, too large, no regular file, or not what its name promises."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of foreign files; every path below it is relative and stays below it."""

    root: Path

    def below(self, name: str) -> "Folder":
        """The folder `name` in this one, which need not exist. Raises ForeignFileError for a path outside."""
        _parts(self.root, name)
        return Folder(self.root / name)

    def has(self, name: str) -> bool:
        """A regular file of that name is there."""
        try:
            return stat.S_ISREG((self.root / name).lstat().st_mode)
        except (OSError, ValueError):
            return False

    def is_folder(self, name: str = "") -> bool:
        try:
            return stat.S_ISDIR((self.root / name).lstat().st_mode)
        except (OSError, ValueError):
            return False

    def read(self, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of a regular file. Raises ForeignFileError."""
        where = self.root / name
        try:
            handle = _open(self.root, _parts(self.root, name))
        except OSError as error:
            why = (
                "is a link, or lies behind one" if error.errno in (40, 20) else (error.strerror or str(error))
            )
            raise ForeignFileError(f"{where}: {why}") from None
        with os.fdopen(handle, "rb") as file:
            kind = os.fstat(handle)
            if not stat.S_ISREG(kind.st_mode):
                raise ForeignFileError(f"{where}: not a regular file")
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ForeignFileError(f"{where}: longer than {max_bytes:,} bytes")
        return content

    def text(self, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> str:
        try:
            return self.read(name, max_bytes=max_bytes).decode()
        except UnicodeDecodeError as error:
            raise ForeignFileError(f"{self.root / name}: not UTF-8 at byte {error.start}") from None

    def json(self, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
        try:
            return json.loads(self.text(name, max_bytes=max_bytes))
        except ForeignFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise ForeignFileError(f"{self.root / name}: not JSON: {_short(error)}") from None

    def toml(self, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text(name, max_bytes=max_bytes))
        except ForeignFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise ForeignFileError(f"{self.root / name}: not TOML: {_short(error)}") from None

    def children(self) -> list[str]:
        """The names of the folders in this one, sorted; links are none."""
        try:
            names = sorted(path.name for path in self.root.iterdir())[:MAX_FILES]
        except OSError:
            return []
        return [name for name in names if self.is_folder(name)]

    def files(self) -> dict[str, bytes]:
        """Every regular file below, by relative path. Raises ForeignFileError for a link or too much."""
        found: dict[str, bytes] = {}
        total = 0
        for path in self._walk():
            name = path.relative_to(self.root).as_posix()
            content = self.read(name, max_bytes=MAX_FOLDER_BYTES - total)
            total += len(content)
            found[name] = content
            if len(found) > MAX_FILES:
                raise ForeignFileError(f"{self.root}: more than {MAX_FILES:,} files")
        return found

    def _walk(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.root, followlinks=False):
            folders.sort()
            for name in (*folders, *sorted(names)):
                path = Path(folder, name)
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise ForeignFileError(f"{path}: a link; audit reads regular files alone")
                if stat.S_ISREG(kind):
                    yield path
                elif not stat.S_ISDIR(kind):
                    raise ForeignFileError(f"{path}: not a regular file")


def _parts(root: Path, name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ForeignFileError(f"{root}: the path {name[:80]!r} leads out of the folder")
    return parts


def _open(root: Path, parts: list[str]) -> int:
    """A descriptor reached from `root` without a link on the way; the root itself is the user's own word."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = os.open(part, flags, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
