"""Worldsmith makes worlds for agents, plays policies in them and trains a policy on what happened.

Every command is a module with `main(argv) -> int`, imported only when it is called. Here is the one boundary
where an exception becomes a line on standard error and an exit code:

    0 done; 1 a check found faults; 2 bad usage or configuration, nothing started; 3 infrastructure;
    130 and 143 stopped by a signal, and the same command goes on where it stopped.

A traceback is shown for a fault of our own, or for anything with WORLDSMITH_DEBUG=1.
"""

import errno
import importlib
import importlib.metadata
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import NoReturn

from rl.stopping import Terminated
from worldsmith.arguments import did_you_mean

DONE, FAULTS, USAGE, INFRASTRUCTURE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
BROKEN_PIPE = 141

OUR_PACKAGES = ("envs", "synthesis", "policies", "rl", "worldsmith")


@dataclass(frozen=True, slots=True)
class Command:
    module: str
    summary: str
    resumable: bool = False
    """Run again after a stop, it goes on where it was."""


COMMANDS = {
    "demo": Command("worldsmith.demo", "the whole loop, end to end, in minutes", resumable=True),
    "doctor": Command("worldsmith.doctor", "what this machine can do, and what to install"),
    "synth": Command("worldsmith.synth_command", "write a corpus of certified tasks", resumable=True),
    "certify": Command("worldsmith.certify_command", "re-check the certificates of a corpus"),
    "audit": Command("worldsmith.audit_command", "the gates on anybody's tasks"),
    "mcp": Command("worldsmith.mcp_command", "serve a task's tools over MCP"),
    "eval": Command("worldsmith.eval_command", "play tasks with a policy and grade them", resumable=True),
    "train": Command("worldsmith.train_command", "cold start and reinforcement learning", resumable=True),
    "report": Command("worldsmith.report", "a page with a run's curves and tables"),
    "explain": Command("worldsmith.explain_command", "why learner and replica disagree, by cause"),
    "simulate": Command("worldsmith.simulate_command", "what other settings would gain, in virtual time"),
    "view": Command("worldsmith.view", "pages to read a run's trajectories"),
    "plan": Command("worldsmith.plan_command", "what a model costs before it is trained or served"),
    "sandbox": Command("worldsmith.sandbox_command", "run one command in a fresh box"),
    "images": Command("worldsmith.images_command", "make the base images of the boxes"),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text(), file=sys.stdout if argv else sys.stderr)
        return DONE if argv else USAGE
    if argv[0] == "--version":
        print(f"worldsmith {importlib.metadata.version('worldsmith')}")
        return DONE
    name, *rest = argv
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, list(COMMANDS))
        print(f"worldsmith: unknown command {name!r}{hint} (worldsmith --help lists all)", file=sys.stderr)
        return USAGE
    return run_command(name, command, rest)


def help_text() -> str:
    commands = "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())
    summary = (__doc__ or "").splitlines()[0]
    return (
        f"usage: worldsmith COMMAND [ARGUMENT ...]\n\n{summary}\n\ncommands:\n{commands}\n\n"
        "worldsmith COMMAND --help tells about one; --version tells the version. Exit codes:\n"
        "0 done, 1 a check found faults, 2 bad usage, 3 infrastructure, 130 or 143 stopped (run it again)."
    )


def run_command(name: str, command: Command, argv: list[str]) -> int:
    """Import the command's module and run it; the only place that turns an exception into an exit code."""
    try:
        with sigterm_as_exception():
            return int(importlib.import_module(command.module).main(argv))
    except SystemExit as error:  # argparse, after its own line
        return error.code if isinstance(error.code, int) else (DONE if error.code is None else USAGE)
    except (KeyboardInterrupt, Terminated) as error:
        again = "; run the same command again to go on" if command.resumable else ""
        print(f"\nworldsmith {name}: stopped{again}", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has gone, as in `worldsmith view RUN | head`. Python would complain at exit.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until the process ends
        return BROKEN_PIPE
    except Exception as error:
        return report_error(name, error)


def report_error(name: str, error: Exception) -> int:
    code = exit_code_of(error)
    if code is None or os.environ.get("WORLDSMITH_DEBUG") == "1":
        traceback.print_exception(error)
    if code is None:
        print(
            f"worldsmith {name}: a fault in Worldsmith itself, see above; please report it", file=sys.stderr
        )
        return INFRASTRUCTURE
    print(f"worldsmith {name}: {one_line(error)}", file=sys.stderr)
    return code


REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space, then run the same command again",
    errno.EACCES: "give a path that this user may read and write",
    errno.EPERM: "give a path that this user may read and write",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.EEXIST: "check the path",
    errno.ENAMETOOLONG: "give a shorter path",
}


def one_line(error: Exception) -> str:
    """What happened, where and, for the usual faults of a disk, what to do."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = REMEDIES.get(error.errno)
        return f"{where}{error.strerror}" + (f"; {remedy}" if remedy else "")
    return " ".join(str(error).split()) or type(error).__name__


def exit_code_of(error: Exception) -> int | None:
    """The exit code for an error that one line explains; None for a fault of our own.

    A ValueError is the user's where our own code raised it, and a fault of ours where a library did: our code
    checks what comes from outside before it hands it on.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return USAGE
    if is_infrastructure(error):
        return INFRASTRUCTURE
    if isinstance(error, ValueError) and raised_by_us(error.__traceback__):
        return USAGE
    return None


def is_infrastructure(error: Exception) -> bool:
    """A failure of the machine, a box or the cluster; known by name, so that none of them is imported."""
    if isinstance(error, OSError | MemoryError):
        return True
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    task_failed = "ray.exceptions.RayTaskError" in names  # our own code raised, in another process
    known = {
        "envs.sandbox.contract.SandboxError",
        "envs.verifier.GraderError",
        "ray.exceptions.RayError",
        "docker.errors.DockerException",
        "rl.learners.LearnerLostError",
    }
    return bool(names & known) and not task_failed


def raised_by_us(where: TracebackType | None) -> bool:
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    module = where.tb_frame.f_globals.get("__name__", "") if where is not None else ""
    return module.split(".")[0] in OUR_PACKAGES


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that boxes are closed; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
