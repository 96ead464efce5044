"""The host's side of the process that namespaces boxes are forked from: started once, asked for each box.

A box that starts its own Python twice, for the launcher and for the executor, spends most of its start on
that. So this process keeps one small Python with both loaded and nothing else: no environment, no
descriptor of ours, no text but the launcher's, so that a box that it becomes has none of our secrets in
its memory. It runs namespaces_launcher.py, ends when this process does, and boxes outlive it. Where it was
killed the next start gets a new one.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from envs.sandbox import executor, landlock, namespaces_launcher
from envs.sandbox.contract import SandboxStartError
from envs.sandbox.executor_client import BOOTSTRAP

ANSWER_TIMEOUT_S = 20.0
MESSAGE_BYTES = 1 << 15


class LaunchedBox:
    """A box's launcher: a process that is no child of ours, held by a descriptor, not by its number.

    `stdin_fd` and `stdout_fd` are our ends of the box's; whoever takes them closes them.
    """

    def __init__(self, pid: int, pidfd: int | None, stdin_fd: int, stdout_fd: int) -> None:
        self.pid = pid
        self.stdin_fd = stdin_fd
        self.stdout_fd = stdout_fd
        self._pidfd = pidfd

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within so long."""
        if self._pidfd is None:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def kill(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class ForkServer:
    """One process that forks boxes. Not for two threads at once."""

    def __init__(self, python: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_TIMEOUT_S)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with theirs:
                self._start(python, theirs)
        except OSError as error:
            raise OSError(error.errno, self.close() or str(error)) from None

    def _start(self, python: str, theirs: socket.socket) -> None:
        text = Path(namespaces_launcher.__file__).read_bytes()
        self._process = subprocess.Popen(
            [python, "-ISB", "-c", BOOTSTRAP, "serve", str(len(text))],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={},
            cwd="/",
            start_new_session=True,
        )
        for begin in range(0, len(text), MESSAGE_BYTES):
            self._control.sendall(text[begin : begin + MESSAGE_BYTES])
        for module in (executor, landlock):
            source = Path(module.__file__ or "").read_text()
            self._control.sendall(json.dumps([module.__name__.rpartition(".")[2], source]).encode())

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def launch(self, specification: Mapping[str, object], stderr_fd: int) -> LaunchedBox:
        """Start a box. OSError where the server does not answer; what it may have started then ends."""
        box_reads, stdin_fd = os.pipe()
        stdout_fd, box_writes = os.pipe()
        try:
            pid, pidfd = self._ask(specification, [box_reads, box_writes, stderr_fd])
        except BaseException:
            os.close(stdin_fd)
            os.close(stdout_fd)
            raise
        finally:
            os.close(box_reads)
            os.close(box_writes)
        return LaunchedBox(pid, pidfd, stdin_fd, stdout_fd)

    def _ask(self, specification: Mapping[str, object], fds: list[int]) -> tuple[int, int | None]:
        socket.send_fds(self._control, [json.dumps(specification).encode()], fds)
        answer, received, _, _ = socket.recv_fds(self._control, 64, 1, socket.MSG_CMSG_CLOEXEC)
        if not answer:
            raise BrokenPipeError("it has ended")
        return int(answer), received[0] if received else None

    def close(self) -> str:
        """End it, which ends no box; the last line of what it complained of."""
        self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=2)  # it ends with its control socket
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read(4000).decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        return lines[-1] if lines else ""

    def forget(self) -> None:
        """In a forked child of ours: the server is our parent's alone."""
        self._control.close()
        self._errors.close()
        if self._process is not None:
            self._process.returncode = 0


_lock = threading.Lock()
_server: ForkServer | None = None
_is_registered = False


def launch(python: str, specification: Mapping[str, object], stderr_fd: int) -> LaunchedBox:
    """Start a box by this process's fork server, which is started where there is none or it was killed.

    Raises SandboxStartError where none can be had.
    """
    global _server
    said = ""
    with _lock:
        for _ in range(2):
            try:
                _server = _server or _start(python)
                return _server.launch(specification, stderr_fd)
            except OSError as error:
                said = (_server.close() if _server else "") or error.strerror or str(error)
                _server = None
            except BaseException:  # Ctrl-C before its answer, which would then answer the next request
                _end()
                raise
    raise SandboxStartError(
        f"tier namespaces: the process that forks boxes failed ({said}); it runs {python}, which needs its"
        " standard library with ctypes: apt-get install libpython3-stdlib"
    )


def _start(python: str) -> ForkServer:
    global _is_registered
    if not _is_registered:
        atexit.register(_end)
        os.register_at_fork(after_in_child=_forget)
        _is_registered = True
    return ForkServer(python)


def _end() -> None:
    global _server
    if _server is not None:
        _server.close()
        _server = None


def _forget() -> None:
    global _server, _lock
    _lock = threading.Lock()  # another thread of the parent's may hold the old one
    if _server is not None:
        _server.forget()
        _server = None
