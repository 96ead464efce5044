"""How this process and the executor in a container talk: over the engine's stream, or past it.

The engine carries each byte of an exec's stdio through two more processes, which costs more than most
commands. So an executor brings its text over stdio, and then connects to a UNIX socket of ours that its
container sees through a read-only mount. One connection is taken, before the first command is run; then the
socket and its folder are gone. The engine's stream stays open beside it: its end is the box's, whatever the
socket says. Where the socket cannot be reached, as with a remote engine or another kernel, stdio serves on.
"""

import contextlib
import select
import shutil
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Protocol

from docker.types import Mount

from envs.sandbox import executor, leases
from envs.sandbox.contract import SandboxLostError, SandboxProtocolError
from envs.sandbox.waiting import wait_awake, wait_for

MUX_HEADER = struct.Struct(">BxxxI")
STDOUT = 1
MAX_COMPLAINT = 500
PREFIX = "door-"
OLDEST_DOOR_S = 600
MAX_UNREAD_BYTES = 1 << 20
DOOR_IN_BOX = "/run/worldsmith"
"""A folder of the container; empty from before its first command on."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class ExecStream:
    """The stdio of one exec over the engine's socket, on which stdout and stderr come in labelled pieces."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(False)
        self._raw = bytearray()
        self._piece = (STDOUT, 0)
        self._unread = bytearray()
        self.complaint = ""
        """The beginning of what the executor wrote to stderr, which it does only when it cannot start."""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send_executor(self, text: bytes, deadline: float) -> None:
        self.send(text, deadline)

    def send(self, data: bytes, deadline: float) -> None:
        send_all(self._connection, data, deadline)

    def receive(self, max_bytes: int, deadline: float) -> bytes:
        poller = _poller(self._connection)
        while not self._unread:
            wait_for(poller, deadline)
            self.read_ready()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        return data

    def read_ready(self) -> int:
        """Take in what is there now; how much of stdout is unread. SandboxLostError at the end."""
        self._raw += receive_some(self._connection, 1 << 16)
        kind, left = self._piece
        while self._raw and (left or len(self._raw) >= MUX_HEADER.size):
            if not left:
                kind, left = MUX_HEADER.unpack_from(self._raw)
                del self._raw[: MUX_HEADER.size]
            part = self._raw[:left]
            del self._raw[:left]
            left -= len(part)
            if kind == STDOUT:
                self._unread += part
            else:
                self.complaint = (self.complaint + part.decode("utf-8", "replace"))[:MAX_COMPLAINT]
        self._piece = (kind, left)
        return len(self._unread)

    def close(self) -> None:
        self._connection.close()


class Door:
    """A socket that one executor may connect to. Its folder is this user's alone, and of one container.

    OSError where this machine has no place for one.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=leases.own_folder()))
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            inner = self._folder / "box"
            inner.mkdir()
            inner.chmod(0o755)
            self._listener.bind(str(inner / "host"))
            (inner / "host").chmod(0o666)  # the engine may map the container's users to any
            self._listener.listen(1)
            self._listener.setblocking(False)
        except OSError:
            self.close()
            raise
        self.mount = Mount(DOOR_IN_BOX, str(inner), type="bind", read_only=True)
        self.path_in_box = f"{DOOR_IN_BOX}/host"

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class DirectStream:
    """An executor that is told of a door: over its socket where it comes through, else over stdio."""

    def __init__(self, stream: ExecStream, door: Door) -> None:
        self._stream = stream
        self._door = door
        self._socket: socket.socket | None = None
        self._poller = select.poll()

    @property
    def complaint(self) -> str:
        return self._stream.complaint

    @property
    def is_direct(self) -> bool:
        return self._socket is not None

    def send_executor(self, text: bytes, deadline: float) -> None:
        self._stream.send(text, deadline)
        poller = _poller(self._stream, self._door)
        try:
            while self._socket is None:
                ready = {fd for fd, _ in wait_for(poller, deadline)}
                if self._door.fileno() in ready:
                    self._socket = self._door.accept()
                elif self._stream.read_ready():
                    if self._stream.receive(len(executor.STAYS), deadline) != executor.STAYS:
                        raise SandboxProtocolError("it said something before it was asked")
                    return
        finally:
            self._door.close()
        self._poller = _poller(self._stream, self._socket)

    def send(self, data: bytes, deadline: float) -> None:
        if self._socket is None:
            self._stream.send(data, deadline)
        else:
            send_all(self._socket, data, deadline)

    def receive(self, max_bytes: int, deadline: float) -> bytes:
        if self._socket is None:
            return self._stream.receive(max_bytes, deadline)
        while True:
            ready = {fd for fd, _ in wait_awake(self._poller, deadline)}
            # First: a box whose engine is gone is lost, even where it answers.
            if self._stream.fileno() in ready and self._stream.read_ready() > MAX_UNREAD_BYTES:
                raise SandboxProtocolError("it writes where nobody asked")
            if self._socket.fileno() in ready:
                return receive_some(self._socket, max_bytes)

    def close(self) -> None:
        self._door.close()
        if self._socket is not None:
            self._socket.close()
        self._stream.close()


def send_all(connection: socket.socket, data: bytes, deadline: float) -> None:
    poller: select.poll | None = None
    view = memoryview(data)
    while view:
        try:
            view = view[connection.send(view) :]
        except BlockingIOError:
            poller = poller or _poller(connection, event=select.POLLOUT)
            wait_for(poller, deadline)
        except OSError as error:
            raise SandboxLostError(f"the box no longer takes commands ({error.strerror})") from None


def receive_some(connection: socket.socket, max_bytes: int) -> bytes:
    """What is there, without waiting; nothing where nothing is. SandboxLostError at the end."""
    try:
        data = connection.recv(max_bytes)
    except BlockingIOError:
        return b""
    except OSError as error:
        raise SandboxLostError(f"the engine closed the connection ({error.strerror})") from None
    if not data:
        raise SandboxLostError("the box's executor ended")
    return data


def reap_doors() -> None:
    """Remove what a process left that was killed while it started a box; doors are open for seconds."""
    with contextlib.suppress(OSError):
        for folder in leases.own_folder().glob(f"{PREFIX}*"):
            if folder.stat().st_mtime < time.time() - OLDEST_DOOR_S:
                shutil.rmtree(folder, ignore_errors=True)


def _poller(*sources: HasFileno, event: int = select.POLLIN) -> select.poll:
    poller = select.poll()
    for source in sources:
        poller.register(source.fileno(), event)
    return poller
