"""The host's side of the executor: sends it into a box, asks, and believes nothing that comes back.

A reply is checked for length before it is read, for form and range after; anything that our executor never
says is a SandboxProtocolError, and the box is closed. No class names, no pickles, no paths come from a box.
"""

import errno
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from envs.sandbox import executor, pristine
from envs.sandbox.contract import (
    BASE_ENVIRONMENT,
    DEFAULT_TIMEOUT_S,
    ExecResult,
    FileTooLargeError,
    Limits,
    SandboxLostError,
    SandboxProtocolError,
    Snapshot,
)
from envs.sandbox.waiting import wait_awake, wait_for

START_TIMEOUT_S = 20.0
SLACK_S = 10.0
"""How much longer than a command's timeout the host waits: for grace, kills and a busy machine."""
RESET_TIMEOUT_S = 20.0
"""For emptying what a box may hold at most; a box that needs longer is given up."""
MAX_HEADER_BYTES = 4096
MAX_STDIN_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20

BOOTSTRAP = """\
import posix,sys
def read(f,n):
 b=b''
 while len(b)<n:
  c=posix.read(f,min(n-len(b),65536))
  if not c:break
  b+=c
 return b
n=int(sys.argv[2])
t=read(0,n)
if len(t)<n:sys.exit(1)
import marshal
r,w=posix.pipe()
if posix.fork()==0:
 c=marshal.dumps(compile(t,'executor.py','exec',optimize=2))
 while c:c=c[posix.write(w,c):]
 posix._exit(0)
posix.close(w)
t=read(r,1<<30)
posix.close(r)
posix.waitpid(-1,0)
exec(marshal.loads(t),{'__name__':'__main__'})
"""
"""Reads the executor's text from stdin and becomes it, so that no image has to carry one. Another process
compiles: what the compiler needs, 1.4 MiB, would stay with the executor."""


def executor_source() -> bytes:
    return Path(executor.__file__).read_bytes()


def pristine_source() -> bytes:
    return Path(pristine.__file__).read_bytes()


def bootstrap_argv(python: str, mode: str, *socket_path: str) -> list[str]:
    """What a box runs as its executor; `mode` as in executor.py; a socket that it may talk over, if any."""
    return [python, "-ISB", "-c", BOOTSTRAP, mode, str(len(executor_source())), *socket_path]


class Transport(Protocol):
    """A pair of byte streams to an executor; SandboxLostError at their end or at the deadline."""

    def send_executor(self, text: bytes, deadline: float) -> None:
        """The first thing that is sent: its text, where it is not there already."""
        ...

    def send(self, data: bytes, deadline: float) -> None: ...

    def receive(self, max_bytes: int, deadline: float) -> bytes: ...

    def close(self) -> None: ...


class PipeTransport:
    """Two file descriptors, as a subprocess has them; owns and closes them.

    `is_loaded`: the executor at their other end has its text already.
    """

    def __init__(self, write_fd: int, read_fd: int, *, is_loaded: bool = False) -> None:
        self._is_loaded = is_loaded
        self._write_fd = write_fd
        self._read_fd = read_fd
        self._open = True
        os.set_blocking(write_fd, False)
        os.set_blocking(read_fd, False)
        self._writable = select.poll()
        self._writable.register(write_fd, select.POLLOUT)
        self._readable = select.poll()
        self._readable.register(read_fd, select.POLLIN)

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> "PipeTransport":
        """Takes over both pipes of a process."""
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin, process.stdout as stdout:
            return cls(os.dup(stdin.fileno()), os.dup(stdout.fileno()))

    def send_executor(self, text: bytes, deadline: float) -> None:
        if not self._is_loaded:
            self.send(text, deadline)

    def send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._write_fd, view) :]
            except BlockingIOError:
                wait_for(self._writable, deadline)
            except OSError as error:
                raise SandboxLostError(f"the box no longer takes commands ({error.strerror})") from None

    def receive(self, max_bytes: int, deadline: float) -> bytes:
        while True:
            wait_awake(self._readable, deadline)
            try:
                data = os.read(self._read_fd, max_bytes)
            except BlockingIOError:
                continue
            if not data:
                raise SandboxLostError("the box's executor ended")
            return data

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._write_fd)
            os.close(self._read_fd)


class ExecutorClient:
    """Commands and files of one box, over one transport. Once lost, every call raises SandboxLostError."""

    def __init__(self, transport: Transport, *, limits: Limits, work_dir: str, box: str) -> None:
        self._transport = transport
        self._limits = limits
        self._work_dir = work_dir
        self._box = box
        self._lost: str | None = None
        self._environment = {**BASE_ENVIRONMENT, "HOME": work_dir}
        self._default_texts = _environment_text(self._environment), _text("cwd", [self._path("")])

    def start(self) -> Mapping[str, int]:
        """Send the executor's text and greet it; what it says about itself."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self._transport.send_executor(executor_source(), deadline)
        fields, _ = self._call({"op": "hello"}, b"", deadline, 0, _HELLO_FIELDS)
        if fields["version"] != executor.VERSION:
            raise self._violation(f"it speaks version {fields['version']}, not {executor.VERSION}")
        return fields

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        output_cap_bytes: int | None = None,
    ) -> ExecResult:
        """As `Sandbox.exec` promises."""
        cap = self._limits.output_cap_bytes if output_cap_bytes is None else output_cap_bytes
        _check_call(argv, stdin, timeout_s, cap)
        command = _text("argv", argv)
        environment, folder = self._default_texts
        if env:
            environment = _environment_text({**self._environment, **env})
        if cwd:
            folder = _text("cwd", [self._path(cwd)])
        request: dict[str, int | str] = {
            "op": "execute",
            "timeout_ms": int(timeout_s * 1000),
            "cap": cap,
            "flood": self._limits.flood_bytes,
            "argv": len(command),
            "env": len(environment),
            "cwd": len(folder),
        }
        texts = command + environment + folder + stdin
        deadline = time.monotonic() + timeout_s + SLACK_S
        fields, body = self._call(request, texts, deadline, 2 * cap, _EXEC_FIELDS)
        if fields["stdout"] + fields["stderr"] != len(body) or max(fields["stdout"], fields["stderr"]) > cap:
            raise self._violation("the lengths of its output do not add up")
        if fields["exit_code"] > 255:
            raise self._violation(f"exit code {fields['exit_code']}")
        if fields["leftover"]:
            raise self._lose(f"{fields['leftover']} processes survived SIGKILL")
        return ExecResult(
            exit_code=fields["exit_code"],
            stdout=body[: fields["stdout"]],
            stderr=body[fields["stdout"] :],
            stdout_cut_bytes=fields["stdout_cut"],
            stderr_cut_bytes=fields["stderr_cut"],
            timed_out=bool(fields["timed_out"]),
            flooded=bool(fields["flooded"]),
            oom_killed=bool(fields["oom"]),
            duration_s=fields["duration_us"] / 1e6,
        )

    def read_file(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        """As `Sandbox.read_file` promises."""
        body = _text("path", [self._path(path)])
        data = bytearray()
        while True:
            length = min(CHUNK_BYTES, max_bytes + 1 - len(data))
            request: dict[str, int | str] = {"op": "read", "offset": len(data), "length": length}
            deadline = time.monotonic() + SLACK_S
            fields, chunk = self._call(request, body, deadline, length, ("size",))
            self._raise_errno(fields, path)
            data += chunk
            if len(data) > max_bytes:
                raise FileTooLargeError(f"{path} in the box is longer than {max_bytes} bytes")
            if len(chunk) < length:
                return bytes(data)

    def write_file(self, path: str, data: bytes) -> None:
        """As `Sandbox.write_file` promises."""
        target = _text("path", [self._path(path)])
        for offset in range(0, max(len(data), 1), CHUNK_BYTES):
            request: dict[str, int | str] = {"op": "write", "path": len(target), "offset": offset}
            chunk = data[offset : offset + CHUNK_BYTES]
            fields, _ = self._call(request, target + chunk, time.monotonic() + SLACK_S, 0, ("written",))
            self._raise_errno(fields, path)

    def mark_pristine(self) -> str | None:
        """As `Sandbox.mark_pristine` promises; why not, where this box could not be proved clean."""
        text = pristine_source()
        for request, body, names in (("extend", text, ("count",)), ("mark", b"", ("places",))):
            fields, _ = self._call({"op": request}, body, time.monotonic() + SLACK_S, 0, names)
            if "errno" in fields:
                return _WHY_NOT_PRISTINE.get(fields["errno"], f"error {fields['errno']} in the box")
        return None

    def reset(self, to: Snapshot | None) -> None:
        """As `Sandbox.reset` promises."""
        names = ("planted", "differing")
        fields, said = self._call({"op": "reset"}, b"", time.monotonic() + RESET_TIMEOUT_S, 400, names)
        if "errno" in fields:
            raise self._lose(f"it could not be emptied: {os.strerror(min(fields['errno'], 4095))}")
        if fields["differing"] or not fields["planted"]:
            raise self._lose(
                f"it is not clean after a reset: {said.decode('utf-8', 'replace') or 'no canary'}"
            )
        if to is not None:
            deadline = time.monotonic() + RESET_TIMEOUT_S
            fields, _ = self._call({"op": "unpack"}, to.data, deadline, 0, ("count",))
            self._raise_errno(fields, "snapshot")

    def snapshot(self, max_bytes: int) -> Snapshot:
        """As `Sandbox.snapshot` promises."""
        deadline = time.monotonic() + RESET_TIMEOUT_S
        fields, _ = self._call({"op": "pack", "limit": max_bytes}, b"", deadline, 0, ("size",))
        if fields.get("errno") == errno.EFBIG:
            raise FileTooLargeError(f"the files of box {self._box} are longer than {max_bytes} bytes")
        self._raise_errno(fields, "snapshot")
        data = bytearray()
        while len(data) < fields["size"] <= max_bytes:
            request: dict[str, int | str] = {"op": "chunk", "offset": len(data), "length": CHUNK_BYTES}
            _, chunk = self._call(request, b"", time.monotonic() + SLACK_S, CHUNK_BYTES, ("size",))
            if not chunk:
                break
            data += chunk
        if len(data) != fields["size"]:
            raise self._violation("a snapshot of another length than it said")
        return Snapshot(data=bytes(data))

    def close(self) -> None:
        self._lost = self._lost or "it was closed"
        self._transport.close()

    def _path(self, path: str) -> str:
        return str(Path(self._work_dir) / path)

    def _call(
        self,
        request: dict[str, int | str],
        body: bytes,
        deadline: float,
        max_body: int,
        names: tuple[str, ...],
    ) -> tuple[dict[str, int], bytes]:
        """One request and its checked reply: integers under exactly `names` (or `errno`), and a body."""
        if self._lost is not None:
            raise SandboxLostError(f"box {self._box}: {self._lost}")
        nonce = os.urandom(8).hex()
        try:
            self._transport.send(executor.pack({"nonce": nonce, **request}, body), deadline)
            header, reply_body = self._receive(max_body, deadline)
        except SandboxProtocolError:
            raise
        except SandboxLostError as error:
            raise self._lose(str(error)) from None
        except BaseException:
            # Ctrl-C between a request and its reply: the next reply would answer the wrong request.
            self._lose("a call was interrupted")
            raise
        return self._checked(header, nonce, names), reply_body

    def _receive(self, max_body: int, deadline: float) -> tuple[bytes, bytes]:
        """A reply's header and body, and not a byte more."""
        data = bytearray()
        begin = end = length = executor.LENGTHS.size
        while len(data) < length:
            data += self._transport.receive(min(1 << 20, max(1 << 16, length - len(data))), deadline)
            if length == begin <= len(data):
                header_length, body_length = executor.LENGTHS.unpack_from(data)
                if header_length > MAX_HEADER_BYTES or body_length > max_body:
                    raise self._violation(f"a frame of {header_length} + {body_length} bytes")
                end = begin + header_length
                length = end + body_length
        if len(data) > length:
            raise self._violation("more than one reply to a request")
        with memoryview(data) as view:
            return bytes(view[begin:end]), bytes(view[end:])

    def _checked(self, header: bytes, nonce: str, names: tuple[str, ...]) -> dict[str, int]:
        try:
            reply = executor.parse(header)
        except ValueError:
            raise self._violation("a header that is none of its own") from None
        if reply.pop("nonce", None) != nonce:
            raise self._violation("a reply to another request")
        if tuple(reply) not in (names, ("errno",)):
            raise self._violation(f"unexpected fields {sorted(map(str, reply))[:20]}")
        fields: dict[str, int] = {}
        for name, value in reply.items():
            if type(value) is not int or not 0 <= value < 1 << 62:
                raise self._violation(f"{name} is not a count")
            fields[name] = value
        if "errno" in fields and names in (_EXEC_FIELDS, _HELLO_FIELDS):
            raise self._violation(f"operating system error {fields['errno']}")
        return fields

    def _raise_errno(self, fields: Mapping[str, int], path: str) -> None:
        if "errno" in fields:
            number = min(fields["errno"], 4095)
            raise OSError(number, os.strerror(number), path)

    def _lose(self, why: str) -> SandboxLostError:
        self._lost = why
        self._transport.close()
        return SandboxLostError(f"box {self._box}: {why}")

    def _violation(self, what: str) -> SandboxProtocolError:
        self._lose(f"its executor broke the protocol: {what}")
        return SandboxProtocolError(f"box {self._box}: its executor broke the protocol: {what}")


_WHY_NOT_PRISTINE = {
    errno.ENOSYS: "its image's Python has no ctypes",
    errno.EPERM: "its commands could change what a reset cannot see",
    errno.ENOTEMPTY: "its image has files where its user can write",
}
_HELLO_FIELDS = ("version", "uid", "pid", "hidden")
_EXEC_FIELDS = executor.RESULT_FIELDS


def _check_call(argv: Sequence[str], stdin: bytes, timeout_s: float, cap: int) -> None:
    if isinstance(argv, str) or not argv:
        raise ValueError(f"argv must be a list of a program and its arguments, got {argv!r}")
    if len(stdin) > MAX_STDIN_BYTES:
        raise ValueError(f"stdin must be at most {MAX_STDIN_BYTES} bytes, got {len(stdin)}")
    if not 0 < timeout_s <= 86_400:
        raise ValueError(f"timeout_s must lie in (0, 86400], got {timeout_s}")
    if not 0 < cap <= 32 << 20:
        raise ValueError(f"output_cap_bytes must lie in (0, 32 MiB], got {cap}")


def _environment_text(variables: Mapping[str, str]) -> bytes:
    return _text("env", [f"{name}={value}" for name, value in variables.items()])


def _text(what: str, items: Sequence[str]) -> bytes:
    """Texts as the executor takes them, NUL between them; bytes that are not UTF-8 survive as surrogates."""
    for item in items:
        if "\0" in item:
            raise ValueError(f"{what} must not contain a NUL character: {item[:80]!r}")
    return "\0".join(items).encode("utf-8", "surrogateescape")
