"""Runs inside a box: takes commands over its stdin, runs them, answers over its stdout; one file alone.

It is sent into the box as text and must run on Debian 12's python3-minimal: it uses modules that are part of
the interpreter, and _ctypes, where the box has it, to hide its own memory and to leave its stdio. Each module
more is memory of every idle box: ast, contextlib, ctypes, os, signal and socket would be 2 MiB. A frame is
two big-endian uint32 (length of header, length of body), a JSON header of integers and two plain words
(`nonce`, `op`), and raw bytes. Texts travel in the body; the header holds their lengths. Every reply repeats
the request's nonce, which no command can know.

Three modes say how far its duty to leave no process behind reaches: `init` (it is PID 1 and sees every
orphan), `boxed` (another init is PID 1; processes of its own user are its own), `group` (no PID namespace:
its children). In the latter two it is a subreaper: every orphan of a command becomes its child.
"""

import _signal as signal  # pyright: ignore[reportMissingImports]  # typeshed knows only the public one
import _stat as stat
import errno
import posix
import select
import struct
import sys
import time

VERSION = 1
LENGTHS = struct.Struct(">II")
GRACE_S, GIVE_UP_S = 1.0, 3.0
ENDING_S = 0.0003
"""How long the end of a command that has closed its output is looked for without sleep."""
AF_UNIX, SOCK_STREAM = 1, 1
STAYS = b"-"
"""Said once on stdout by an executor that was told of a socket and cannot reach it."""
WALL = 0x40000000
"""__WALL of <linux/wait.h>: children of every kind, however they were cloned."""
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
# The kernel prefers a process with a higher score when the box is out of memory: commands, not the executor.
VICTIM_SCORE = b"600"
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
Reply = tuple[dict[str, int], bytes]
HELD_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
DEFAULT_SIGNALS = (*HELD_SIGNALS, signal.SIGPIPE, signal.SIGCHLD)
OUTPUT_FIELDS = ("exit_code", "stdout", "stderr", "stdout_cut", "stderr_cut")
RESULT_FIELDS: tuple[str, ...] = (*OUTPUT_FIELDS, "timed_out", "flooded", "oom", "leftover", "duration_us")


class Ignoring:
    """contextlib.suppress, whose module is too large for this file."""

    def __init__(self, *errors: type[Exception]) -> None:
        self.errors = errors

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self.errors)


def pack(fields: dict[str, int | str], body: bytes) -> bytes:
    """One frame, to or from a box; the JSON is written by hand, as python3-minimal has no json module."""
    items = [
        f'"{key}": {value}' if type(value) is int else f'"{key}": "{value}"' for key, value in fields.items()
    ]
    header = f"{{{', '.join(items)}}}".encode("ascii")
    return LENGTHS.pack(len(header), len(body)) + header + body


def parse(header: bytes) -> dict[str, int | str]:
    """A frame's header: flat, without a space or a comma in its words. ValueError for most others."""
    fields: dict[str, int | str] = {}
    for item in header.decode("ascii").strip("{}").split(", "):
        name, _, value = item.partition(": ")
        fields[name.strip('"')] = value.strip('"') if value.startswith('"') else int(value)
    return fields


class Capture:
    """One output stream: the first and the last half of `cap` bytes are kept, the rest is counted.

    `fd` does not wait; `has_ended`: it is at its end.
    """

    def __init__(self, fd: int, cap: int) -> None:
        self.fd = fd
        self.total = 0
        self.has_ended = False
        self._cap = cap
        self._head, self._tail = bytearray(), bytearray()

    def read_once(self) -> bool:
        """False at the end of the stream or when nothing more is there now."""
        try:
            data = posix.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.has_ended = not data
        room = self._cap // 2 - len(self._head)
        if room > 0:
            self._head += data[:room]
        self._tail += data[max(room, 0) :]
        if len(self._tail) > 2 * self._cap + (1 << 16):
            del self._tail[: self._cap // 2 - self._cap]
        return bool(data)

    def finish(self) -> tuple[bytes, int]:
        """Read what is left (a pipe holds at most 1 MiB), close; the kept bytes and the number dropped."""
        if not self.has_ended:
            all(self.read_once() for _ in range(64))  # as long as there is something
        posix.close(self.fd)
        kept = bytes(self._head + self._tail[self._cap // 2 - self._cap :])
        return kept, self.total - len(kept)


class Call:
    """One command while it runs."""

    def __init__(self, pid: int, stdin_fd: int, stdin: bytes, streams: tuple[Capture, Capture]) -> None:
        self.pid = pid
        self.status: int | None = None
        self.stdin_fd = stdin_fd
        self.stdin = memoryview(stdin)
        self.streams = streams
        self.poller = select.poll()
        for stream in streams:
            self.poller.register(stream.fd, select.POLLIN)
        if stdin:
            self.poller.register(stdin_fd, select.POLLOUT)
        else:
            self.close_stdin()

    def close_stdin(self) -> None:
        if self.stdin_fd >= 0:
            posix.close(self.stdin_fd)
            self.stdin_fd = -1

    def feed_stdin(self) -> None:
        try:
            written = posix.write(self.stdin_fd, self.stdin[: 1 << 16])
        except BlockingIOError:
            return
        except OSError:  # the command closed its end: what is left is lost, as in a shell's pipe
            written = len(self.stdin)
        self.stdin = self.stdin[written:]
        if not self.stdin:
            self.poller.unregister(self.stdin_fd)
            self.close_stdin()

    def handle(self, fd: int) -> bool:
        """Whether its output has ended with this."""
        if fd == self.stdin_fd:
            self.feed_stdin()
        for stream in self.streams:
            if fd == stream.fd and not stream.read_once():
                self.poller.unregister(fd)
                return all(stream.has_ended for stream in self.streams)
        return False


class Executor:
    """Serves requests from stdin until it closes; then ends whatever still runs and returns."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        # Opened before it hides: a hidden process may not open its own /proc files.
        self.oom_fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        self.hidden = _libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
        self.adopts = mode == "init" or _libc("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        for number in HELD_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.oom_counter = _open_first(OOM_COUNTERS) if mode == "boxed" else -1
        self.ooms = 0
        self.pipes: list[tuple[int, int]] = []
        self.wake_fd, wake_end = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        words = ("hello", "execute", "read", "write", "extend")
        self.operations = {word: getattr(self, word) for word in words}
        if mode == "boxed":
            self.end_others(strangers=True)  # of an executor before this one, which a command has killed

    def serve(self) -> None:
        while True:
            self.prepare()
            if (frame := read_frame()) is None:
                break
            request, body = parse(frame[0]), frame[1]
            try:
                fields, reply_body = self.operations[str(request["op"])](request, body)
            except OSError as error:
                fields, reply_body = {"errno": error.errno or errno.EIO}, b""
            write_all(1, pack({"nonce": request["nonce"], **fields}, reply_body))
        self.end_others()

    def prepare(self) -> None:
        """What the next command needs and can be had before it comes."""
        with Ignoring(OSError):
            self.ooms = self.oom_kills()
            self.open_pipes()

    def open_pipes(self) -> None:
        """A command's stdin, stdout and stderr, (read end, write end) each; our ends do not wait."""
        while len(self.pipes) < 3:
            ends = posix.pipe()
            posix.set_blocking(ends[0 if self.pipes else 1], False)
            self.pipes.append(ends)

    def hello(self, request: dict, body: bytes) -> Reply:
        return {
            "version": VERSION,
            "uid": posix.getuid(),
            "pid": posix.getpid(),
            "hidden": int(self.hidden),
        }, b""

    def extend(self, request: dict, body: bytes) -> Reply:
        """Learn the operations of another text of the host's, pristine.py, which not every box needs."""
        space: dict = {"__name__": "pristine"}
        try:
            exec(compile(body, "pristine.py", "exec"), space)
        except (ImportError, AttributeError):  # a Python without ctypes, or a libc without a function
            raise OSError(errno.ENOSYS, "") from None
        self.operations |= space["operations"](self)
        return {"count": len(self.operations)}, b""

    def execute(self, request: dict, body: bytes) -> Reply:
        argv, env, cwd, stdin = _texts(request, body)
        started = time.monotonic()
        try:
            posix.chdir(cwd)
        except OSError as error:
            return _refused(cwd, error, folder=True)
        try:
            call = self.spawn(argv, env, (stdin, request["cap"]))
        except OSError as error:
            return _refused(argv[0], error, folder=False)
        timed_out, flooded = self.wait(call, started + request["timeout_ms"] / 1000, request["flood"])
        call.close_stdin()
        leftover = self.end_others()
        (out, out_cut), (err, err_cut) = (stream.finish() for stream in call.streams)
        code = 128 + signal.SIGKILL if call.status is None else posix.waitstatus_to_exitcode(call.status)
        values = (128 - code if code < 0 else code, len(out), len(err), out_cut, err_cut, timed_out, flooded)
        killed = code != 0 and self.oom_kills() > self.ooms
        return _result(*values, killed, leftover, int((time.monotonic() - started) * 1e6)), out + err

    def spawn(self, argv: list[bytes], env: dict[bytes, bytes], io: tuple[bytes, int]) -> Call:
        """Start a command; posix_spawn, as a fork would copy this process's page tables each time."""
        stdin, cap = io
        program = _find(argv[0], env.get(b"PATH", b""))
        self.open_pipes()
        (in_r, in_w), (out_r, out_w), (err_r, err_w) = self.pipes
        self.pipes = []
        actions = [(posix.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((in_r, out_w, err_w))]
        try:
            self.set_oom_score(VICTIM_SCORE)  # inherited by the command
            options = {"setsid": True, "setsigmask": (), "setsigdef": DEFAULT_SIGNALS}
            pid = posix.posix_spawn(program, argv, env, file_actions=actions, **options)
        except OSError:
            for end in (in_w, out_r, err_r):
                posix.close(end)
            raise
        finally:
            self.set_oom_score(b"0")
            for end in (in_r, out_w, err_w):
                posix.close(end)
        return Call(pid, in_w, stdin, (Capture(out_r, cap), Capture(err_r, cap)))

    def set_oom_score(self, score: bytes) -> None:
        # A kernel that refuses this may end the whole box instead, which the host reports as lost.
        with Ignoring(OSError):
            posix.pwrite(self.oom_fd, score, 0)

    def oom_kills(self) -> int:
        """Kills for memory in this container so far; 0 where the host counts them."""
        if self.oom_counter < 0:
            return 0
        number = posix.pread(self.oom_counter, 4096, 0).partition(b"\noom_kill ")[2]
        return int(number.split()[0]) if number else 0

    def wait(self, call: Call, deadline: float, flood: int) -> tuple[bool, bool]:
        """Until the command's first process has ended: SIGTERM at the deadline, SIGKILL a grace later."""
        call.poller.register(self.wake_fd, select.POLLIN)
        call.poller.register(0, 0)  # reports only that the host has hung up
        timed_out = flooded = False
        give_up = deadline
        alarms = [(deadline, signal.SIGTERM), (deadline + GRACE_S, signal.SIGKILL)]
        while call.status is None:
            now = time.monotonic()
            if not flooded and sum(stream.total for stream in call.streams) > flood:
                flooded, alarms = True, [(now, signal.SIGKILL)]
            wait_s = (alarms[0][0] if alarms else give_up) - now
            if wait_s > 0:
                for fd, _ in call.poller.poll(wait_s * 1000 + 1):
                    if fd == 0:
                        self.end_others()
                        raise BrokenPipeError
                    if fd == self.wake_fd:
                        self.reap(call)
                    elif call.handle(fd):
                        self.look_for_end(call)
            elif alarms:
                timed_out = timed_out or not flooded
                self.end_call(call, alarms.pop(0)[1])
                give_up = now + GIVE_UP_S
            else:
                break
        return timed_out, flooded

    def look_for_end(self, call: Call) -> None:
        """Who closes its output mostly ends at once, sooner than this process could sleep and be woken."""
        give_up = time.monotonic() + ENDING_S
        while call.status is None and time.monotonic() < give_up:
            ended, status = posix.waitpid(call.pid, posix.WNOHANG | WALL)
            if ended:
                call.status = status
            else:
                posix.sched_yield()

    def end_call(self, call: Call, number: int) -> None:
        with Ignoring(ProcessLookupError):
            posix.killpg(call.pid, number)
        if number == signal.SIGKILL:
            self.kill_others()

    def reap(self, call: Call | None = None) -> bool:
        """Bury who has ended; True where no child is left, living or dead."""
        with Ignoring(BlockingIOError):
            posix.read(self.wake_fd, 4096)
        with Ignoring(ChildProcessError):
            while (ended := posix.waitpid(-1, posix.WNOHANG | WALL)) != (0, 0):
                if call is not None and ended[0] == call.pid:
                    call.status = ended[1]
            return False
        return True

    def others(self) -> list[int]:
        """What a command may have left: children, orphans among them, or else processes of the same user."""
        marker = (
            b"\nUid:\t%d\t" % posix.getuid() if self.mode == "boxed" else b"\nPPid:\t%d\n" % posix.getpid()
        )
        pids = [int(name) for name in posix.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if pid != posix.getpid() and marker in _content(f"/proc/{pid}/status")]

    def kill_others(self) -> None:
        # In one go, as a fork between a look and a kill would escape. A PID namespace bounds it; in `boxed`
        # mode this is not root, so that neither init nor the container's main process is hit.
        for pid in self.others() if self.mode == "group" else (-1,):
            with Ignoring(ProcessLookupError, PermissionError):
                posix.kill(pid, signal.SIGKILL)

    def end_others(self, *, strangers: bool = False) -> int:
        """Kill and reap until nobody is left; the number of processes that would not go.

        Who adopts the orphans below it and has no child has nobody below it: the kernel says so in one call.
        `strangers`, which were never below it, need a look into /proc.
        """
        if self.adopts and not strangers and self.reap():
            return 0
        give_up = time.monotonic() + GIVE_UP_S
        while True:
            self.kill_others()
            if self.reap() and self.adopts and not strangers:
                return 0
            left = len(self.others())
            if not left or time.monotonic() > give_up:
                return left
            time.sleep(0.0005)

    def read(self, request: dict, body: bytes) -> Reply:
        fd = posix.open(body, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            return {"size": _regular(fd)}, posix.pread(fd, request["length"], request["offset"])
        finally:
            posix.close(fd)

    def write(self, request: dict, body: bytes) -> Reply:
        path, data = body[: request["path"]], body[request["path"] :]
        flags = posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC
        if request["offset"] == 0:
            flags |= posix.O_CREAT | posix.O_TRUNC
            _make_folders(path)
        fd = posix.open(path, flags, 0o644)
        try:
            _regular(fd)
            posix.lseek(fd, request["offset"], 0)
            write_all(fd, data)
        finally:
            posix.close(fd)
        return {"written": len(data)}, b""


def _libc(function: str, *arguments: int | bytes) -> int:
    """What a function of the C library returns; -1 where this Python cannot call one."""
    with Ignoring(ImportError, OSError, AttributeError):
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), function)  # pyright: ignore[reportArgumentType]
        return _ctypes.call_cdeclfunction(address, arguments)
    return -1


def _make_folders(path: bytes) -> None:
    """Those of a file that are missing; what else stands in its way shows when it is opened."""
    for end in range(1, len(path)):
        if path[end : end + 1] == b"/":
            with Ignoring(FileExistsError):
                posix.mkdir(path[:end])


def _find(program: bytes, path: bytes) -> bytes:
    """A program as execvp finds it, in the command's own PATH."""
    if b"/" in program:
        return program
    for folder in path.split(b":"):
        candidate = folder + b"/" + program
        if folder and posix.access(candidate, posix.X_OK) and not stat.S_ISDIR(posix.stat(candidate).st_mode):
            return candidate
    raise OSError(errno.ENOENT, posix.strerror(errno.ENOENT), program)


def _texts(request: dict, body: bytes) -> tuple[list[bytes], dict[bytes, bytes], bytes, bytes]:
    """A command's argv, environment, folder and stdin, out of the body."""
    env_at = request["argv"]
    cwd_at = env_at + request["env"]
    stdin_at = cwd_at + request["cwd"]
    pairs = [item.split(b"=", 1) for item in body[env_at:cwd_at].split(b"\0") if item]
    return body[:env_at].split(b"\0"), dict(pairs), body[cwd_at:stdin_at], body[stdin_at:]


def _refused(program: bytes, error: OSError, *, folder: bool) -> Reply:
    """As a shell answers for a command that it cannot start."""
    message = b"cannot %s %s: " % (b"enter" if folder else b"run", program)
    message += (error.strerror or "unknown error").encode() + b"\n"
    exit_code = 127 if error.errno == errno.ENOENT and not folder else 126
    return _result(exit_code, 0, len(message)), message


def _result(*values: int) -> dict[str, int]:
    """A result's fields in their order; what is left out is 0."""
    return dict.fromkeys(RESULT_FIELDS, 0) | dict(zip(RESULT_FIELDS, map(int, values), strict=False))


def _open_first(paths: tuple[str, ...]) -> int:
    for path in paths:
        with Ignoring(OSError):
            return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    return -1


def _content(path: str) -> bytes:
    """The beginning of a file of /proc; nothing where its process has gone."""
    with Ignoring(OSError):
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return posix.read(fd, 4096)
        finally:
            posix.close(fd)
    return b""


def _regular(fd: int) -> int:
    """The size of a regular file; anything else raises."""
    status = posix.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "")
    return status.st_size


def read_frame() -> tuple[bytes, bytes] | None:
    """A request's header and body; None at the end. The host sends the next one after the reply."""
    data = bytearray()
    header_end = length = LENGTHS.size
    while len(data) < length:
        data += (chunk := posix.read(0, min(1 << 20, max(1 << 16, length - len(data)))))
        if not chunk:
            return None
        if length == LENGTHS.size <= len(data):
            header_length, body_length = LENGTHS.unpack_from(data)
            header_end += header_length
            length = header_end + body_length
    with memoryview(data) as view:
        return bytes(view[LENGTHS.size : header_end]), bytes(view[header_end:])


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]


def leave_stdio(path: str) -> None:
    """Talk over a socket of the host's instead, where it can be had; else one byte says that it cannot."""
    host = _libc("socket", AF_UNIX, SOCK_STREAM, 0)
    address = struct.pack("=H", AF_UNIX) + path.encode() + b"\0"
    if host >= 0 and _libc("connect", host, address, len(address)) == 0:
        posix.dup2(host, 0)
        posix.dup2(host, 1)
        posix.close(host)
        return
    write_all(1, STAYS)


def main() -> None:
    mode = sys.argv[1]
    if mode == "init" and posix.getpid() != 1:  # killing every other process would be an accident
        sys.exit("executor: mode init needs to be PID 1")
    if mode == "boxed" and (posix.getuid() == 0 or posix.getpid() == 1):
        sys.exit("executor: mode boxed needs a user of its own below another init")
    posix.umask(0o022)
    if len(sys.argv) > 3:
        leave_stdio(sys.argv[3])
    with Ignoring(BrokenPipeError):  # the host is gone, and with it everybody who could be told
        Executor(mode).serve()


if __name__ == "__main__":
    main()
