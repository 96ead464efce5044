"""Finds out what a tier really holds, by attacking a box of it.

Every guarantee has an attack, and counts as held only where the attack ran and failed. An attack that could
not be carried out is a guarantee that is absent.
"""

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from envs.sandbox.contract import Capabilities, Limits, Sandbox, SandboxError
from envs.sandbox.kernel_attacks import (
    PROBE_LIMITS,
    Finding,
    calls_what_is_filtered,
    makes_device_nodes,
    makes_user_namespaces,
    python,
    takes_the_box_along,
    writes_to_bound_files,
)

CANARY_VARIABLE = "WORLDSMITH_PROBE_CANARY"

Attack = Callable[[Sandbox], Finding]


def probe(
    make_box: Callable[[Limits], Sandbox], *, tier: str, engine: str, only: Collection[str] | None = None
) -> Capabilities:
    """Attack one fresh box after the other until each guarantee has been tried.

    Args:
        make_box: Gives an unstarted box of the tier with these limits.
        engine: What stands behind the tier, for the record.
        only: Guarantees to try; the others count as absent. Default: all that the tier could give.
    """
    held: dict[str, bool] = {}
    evidence: dict[str, str] = {}
    box: Sandbox | None = None
    try:
        for name, attack in ATTACKS.items():
            if tier not in GIVEN_BY.get(name, (tier,)) or (only is not None and name not in only):
                continue
            try:
                if box is None:
                    box = make_box(PROBE_LIMITS)
                    box.start()
                held[name], evidence[name] = attack(box)
                if box.exec(["echo", "alive"]).stdout != b"alive\n":
                    raise SandboxError("the box did not answer afterwards")
            except (SandboxError, OSError, ValueError) as error:
                held[name], evidence[name] = False, f"not shown: {error}"
                if box is not None:
                    box.close()
                    box = None
    finally:
        if box is not None:
            box.close()
    return Capabilities(tier=tier, engine=engine, held=held, evidence=evidence)


def connects_out(box: Sandbox) -> Finding:
    """To a listener on this machine, by each of its addresses, and by any interface but the loopback."""
    with closing(socket.create_server(("0.0.0.0", 0))) as server:
        port = server.getsockname()[1]
        targets = [f"{host}:{port}" for host in ("127.0.0.1", _own_address(), "172.17.0.1")]
        _, text = python(box, _CONNECT, *targets)
    return text == "all refused", text[:120]


def is_root(box: Sandbox) -> Finding:
    _, text = python(box, "import os; print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())")
    parts = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return len(parts) >= 3 and all(part.isdigit() and int(part) != 0 for part in parts), f"ids {text}"


def has_capabilities(box: Sandbox) -> Finding:
    status = _status(box)
    sets = [status.get(name, "?") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    return all(text.strip("0") == "" for text in sets), " ".join(sets)


def can_gain_privileges(box: Sandbox) -> Finding:
    value = _status(box).get("NoNewPrivs", "?")
    return value == "1", f"NoNewPrivs {value}"


def reads_host_files(box: Sandbox) -> Finding:
    """Canaries where a host keeps its secrets: the temporary folder, the home, the working folder."""
    with _canaries() as paths:
        found = []
        for path in paths:
            if box.exec(["cat", str(path)]).exit_code == 0:
                found.append(str(path))
    return bool(paths) and not found, f"{len(paths)} canaries, read: {', '.join(found) or 'none'}"


def sees_host_processes(box: Sandbox) -> Finding:
    """Nothing of this process under its own number, and few processes at all."""
    _, text = python(box, _LOOK, str(os.getpid()))
    number, _, sees_us = text.partition(" ")
    # A box with few processes may by chance have one with our number, but not with a number above its count.
    small = number.isdigit() and int(number) < 10
    return small and (sees_us == "False" or os.getpid() < 100), f"{number} processes visible"


def sees_host_environment(box: Sandbox) -> Finding:
    os.environ[CANARY_VARIABLE] = secrets.token_hex(8)
    try:
        _, text = python(box, "import os; print(sorted(os.environ))")
    finally:
        del os.environ[CANARY_VARIABLE]
    return text.startswith("[") and CANARY_VARIABLE not in text and "'USER'" not in text, text[:120]


def writes_outside(box: Sandbox) -> Finding:
    _, text = python(box, _WRITE)
    return text == "nothing", f"written: {text[:120]}"


def passes_memory_limit(box: Sandbox) -> Finding:
    """Several processes, each below the limit, that exceed it together."""
    _, text = python(box, _MEMORY, str(PROBE_LIMITS.memory_mb // 3), timeout_s=20)
    return text.isdigit() and int(text) < 6, f"{text[-60:]} of 6 processes of a third of the limit lived"


def passes_process_limit(box: Sandbox) -> Finding:
    _, text = python(box, _FORK, str(PROBE_LIMITS.pids + 32))
    return text.isdigit() and int(text) <= PROBE_LIMITS.pids, f"{text[-60:]} processes started"


def passes_disk_limit(box: Sandbox) -> Finding:
    _, text = python(box, _FILL, str(PROBE_LIMITS.tmp_mb))
    return text == "ENOSPC", text[-80:]


def floods_output(box: Sandbox) -> Finding:
    result = box.exec(["head", "-c", "10000000", "/dev/zero"], timeout_s=20)
    kept, cut = len(result.stdout), result.stdout_cut_bytes
    return kept <= PROBE_LIMITS.output_cap_bytes and kept + cut == 10_000_000, f"kept {kept}, cut {cut}"


def survives_timeout(box: Sandbox) -> Finding:
    """A child that ignores SIGTERM, in a session of its own."""
    started = time.monotonic()
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    result = box.exec(["sh", "-c", f'setsid sh -c "{stubborn}" & {stubborn}'], timeout_s=0.3)
    took_s = time.monotonic() - started
    return result.timed_out and took_s < 5 and _sleepers(box) == 0, f"ended after {took_s:.1f} s"


def leaves_processes(box: Sandbox) -> Finding:
    box.exec(["sh", "-c", "for i in 1 2 3; do setsid sleep 1234 & done; sleep 0.1"])
    left = _sleepers(box)
    return left == 0, f"{left} of 3 daemons left"


def kills_its_keeper(box: Sandbox) -> Finding:
    """The box still answers, with its files, after a command has killed all that it may."""
    if box.tier == "process":
        return False, "not tried: it would hit other processes of this machine"
    box.write_file("before", b"kept")
    box.exec(["sh", "-c", "kill -9 -1; kill -9 1"], timeout_s=5)
    return box.read_file("before") == b"kept", "the box lived through kill -9 -1"


def garbles_bytes(box: Sandbox) -> Finding:
    data = bytes(range(256)) * 3 + b"\xff\xfe\0\r\n\x1b[31m"
    box.write_file("bytes", data)
    echoed = box.exec(["cat", "bytes", "-"], stdin=data).stdout
    return box.read_file("bytes") == data and echoed == data * 2, "file, stdin and stdout"


ATTACKS: dict[str, Attack] = {
    "no_network": connects_out,
    "not_root": is_root,
    "no_capabilities": has_capabilities,
    "no_new_privileges": can_gain_privileges,
    "no_user_namespaces": makes_user_namespaces,
    "seccomp": calls_what_is_filtered,
    "landlock": makes_device_nodes,
    "host_files_hidden": reads_host_files,
    "host_processes_hidden": sees_host_processes,
    "host_environment_hidden": sees_host_environment,
    "system_read_only": writes_outside,
    "read_only_binds": writes_to_bound_files,
    "memory_limit": passes_memory_limit,
    "oom_spares_box": takes_the_box_along,
    "process_limit": passes_process_limit,
    "disk_limit": passes_disk_limit,
    "output_cap": floods_output,
    "timeout_kills": survives_timeout,
    "no_orphans": leaves_processes,
    "survives_kill_all": kills_its_keeper,
    "bytes_exact": garbles_bytes,
}

GIVEN_BY = {"landlock": ("namespaces",)}
"""Guarantees that only some tiers set out to give; in others they are not tried, hence absent."""

_CONNECT = """
import socket, sys
reached = []
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=0.5).close()
        reached.append(host)
    except OSError:
        pass
# Not socket.if_nameindex, which talks to the kernel by a socket that a filter may refuse.
names = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
reached += [name for name in names if name != "lo"]
print("reached " + " ".join(reached) if reached else "all refused")
"""

_LOOK = """
import os, sys
pids = [name for name in os.listdir("/proc") if name.isdigit()]
print(len(pids), sys.argv[1] in pids)
"""

_SLEEPERS = """
import os
count = 0
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        try:
            line = open(f"/proc/{name}/cmdline", "rb").read()
        except OSError:
            continue
        count += line == b"sleep\\x001234\\x00" or b"trap '' TERM" in line
print(count)
"""

_WRITE = """
import os
written = []
for folder in "/ /usr /usr/bin /etc /var /var/tmp /home /root /dev /proc/sys/kernel".split():
    path = folder.rstrip("/") + "/worldsmith-probe"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(path)
        written.append(folder)
    except OSError:
        pass
print(" ".join(written) or "nothing")
"""

_MEMORY = """
import os, sys, time
size = int(sys.argv[1]) << 20
pids = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        try:
            block = bytearray(size)
            for i in range(0, size, 4096):
                block[i] = 1
            time.sleep(0.7)
        except MemoryError:
            os._exit(1)
        os._exit(0)
    pids.append(pid)
print(sum(os.waitpid(pid, 0)[1] == 0 for pid in pids))
"""

_FORK = """
import os, sys, time
started = 0
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        started += 1
    except OSError:
        break
print(started)
"""

_FILL = """
import errno, os, sys
try:
    with open("probe-fill", "wb") as file:
        for _ in range(int(sys.argv[1]) + 1):
            file.write(bytes(1 << 20))
    print("wrote more than the limit")
except OSError as error:
    print(errno.errorcode[error.errno])
finally:
    os.unlink("probe-fill")
"""


def _status(box: Sandbox) -> dict[str, str]:
    text = box.exec(["cat", "/proc/self/status"]).stdout.decode("ascii", "replace")
    return {line.split(":")[0]: line.split(":", 1)[1].strip() for line in text.splitlines() if ":" in line}


def _sleepers(box: Sandbox) -> int:
    """Processes of the box that a command other than this one has left."""
    _, text = python(box, _SLEEPERS)
    return int(text) if text.isdigit() else -1


def _own_address() -> str:
    """The address by which this machine reaches others; nothing is sent to find it."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe_socket:
        try:
            probe_socket.connect(("192.0.2.1", 9))
            return probe_socket.getsockname()[0]
        except OSError:
            return "127.0.0.1"


@contextmanager
def _canaries() -> Iterator[list[Path]]:
    """World-readable files that hold a secret, in folders that boxes must not see."""
    paths = []
    try:
        for folder in {Path(tempfile.gettempdir()), Path.home(), Path.cwd(), Path("/var/tmp")}:
            path = folder / f"worldsmith-canary-{secrets.token_hex(6)}"
            try:
                path.write_text("canary")
                path.chmod(0o644)
            except OSError:
                continue
            paths.append(path)
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
