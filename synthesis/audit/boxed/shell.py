"""In a box: a shell script as its top-level statements, and the files that a play has left.

bash itself says where a statement ends, so nothing here knows its grammar. Argument `split`: the script on
stdin, a JSON list of texts that joined give it again on stdout. Argument `tree`: a JSON list of folders on
stdin, the digest of each file below them by path on stdout.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys

MAX_LINES = 2_000
MAX_FILES = 20_000


def split(text: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for line in text.splitlines(keepends=True)[:MAX_LINES]:
        pending += line
        if is_whole(pending):
            statements.append(pending)
            pending = ""
    return [*statements, pending] if pending else statements


def is_whole(text: str) -> bool:
    last = text.rstrip("\n")
    if (len(last) - len(last.rstrip("\\"))) % 2:
        return False  # the line goes on
    done = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    return done.returncode == 0 and not done.stderr  # an open here-document is only a warning


def tree(folders: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for top in folders:
        for folder, inner, names in os.walk(top, followlinks=False):
            inner.sort()
            for name in sorted(names):
                path = f"{folder}/{name}"
                if len(found) < MAX_FILES:
                    found[path] = digest(path)
    return found


def digest(path: str) -> str:
    kind = os.lstat(path)
    if stat.S_ISLNK(kind.st_mode):
        return "link " + os.readlink(path)  # noqa: PTH115
    if not stat.S_ISREG(kind.st_mode):
        return "special"
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a box's Python is not ours)
            return f"{kind.st_mode:o} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        return f"unreadable {error.errno}"


if __name__ == "__main__":
    given = sys.stdin.buffer.read()
    result = split(given.decode()) if sys.argv[1] == "split" else tree(json.loads(given))
    sys.stdout.write(json.dumps(result))
