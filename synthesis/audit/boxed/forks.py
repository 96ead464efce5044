"""A function's JSON result from a child process: what it did to this process' memory goes with it."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any], *, timeout_s: int) -> Any:
    """The result, or `{"fault": one line}` where it raised, died or took longer."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _run(function, write_end, timeout_s)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    try:
        return json.loads(data)
    except ValueError:
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        why = f"took longer than {timeout_s} s" if late else f"its process ended (status {status})"
        return {"fault": why}


def _run(function: Callable[[], Any], write_end: int, timeout_s: int) -> None:
    """In the child: never returns."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(timeout_s)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nowhere, descriptor)
        try:
            text = json.dumps(function())
        except BaseException as error:
            text = json.dumps({"fault": one_line(error)})
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(text.encode("ascii"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def one_line(error: BaseException) -> str:
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = ""
    return f"{type(error).__name__}: {said}"[:300]
