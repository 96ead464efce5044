"""The `process` tier: a bare process. It isolates nothing and is for our own trusted tests alone.

What runs here can read this machine's files, reach the network and see other processes. It keeps the
contract's timeouts, output caps and byte-exact files, an empty environment, a folder of its own and two
rlimits, so that a test of ours can play an episode where neither Docker nor namespaces exist.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from envs.sandbox.contract import Limits, SandboxStartError, SandboxUnavailableError
from envs.sandbox.executor_client import PipeTransport, bootstrap_argv
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.leases import FOLDER_PREFIX, FileLease, lease_for

NOBODY = 65534
RLIMITS = 'ulimit -c 0 && ulimit -n "$1" && shift && exec "$@"'
WARNING = (
    "WARNING: tier process isolates NOTHING. Commands run on this machine itself and can read its files and\n"
    "WARNING: reach its network. It is for our own trusted tests only, never for what a model wrote.\n"
)


def trusted_process_box(limits: Limits | None = None, *, allow_unsafe: bool = False) -> ExecutorSandbox:
    """A box that is not one; `start` says so on stderr, each time."""
    if not allow_unsafe:
        raise SandboxUnavailableError(
            "tier process isolates nothing and is not used unless asked for: pass --allow-unsafe"
            " (allow_unsafe=True), and only for code that you wrote yourself"
        )
    limits = limits or Limits()
    return ExecutorSandbox(ProcessCarrier(limits), limits)


class ProcessCarrier:
    """Starts an executor as a process of this machine; as root, as nobody."""

    tier = "process"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    @property
    def name(self) -> str:
        return f"process {self._process.pid}" if self._process else "process"

    @property
    def work_dir(self) -> str:
        return self._folder

    def start(self) -> PipeTransport:
        sys.stderr.write(WARNING)
        self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        python = sys.executable
        is_root = os.geteuid() == 0
        if is_root:
            # Root's own interpreter may lie where nobody else can read it.
            python = shutil.which("python3", path="/usr/local/bin:/usr/bin") or "python3"
            os.chown(self._folder, NOBODY, NOBODY)
        argv = ["/bin/sh", "-c", RLIMITS, "sh", str(self._limits.nofile), *bootstrap_argv(python, "group")]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                env={},
                start_new_session=True,
                user=NOBODY if is_root else None,
                group=NOBODY if is_root else None,
                extra_groups=[] if is_root else None,
            )
        except OSError as error:
            self.stop()
            raise SandboxStartError(f"tier process: cannot start {python}: {error}") from None
        self._process = process
        return PipeTransport.of(process)

    def reconnect(self) -> None:
        return None

    def lease(self) -> FileLease | None:
        if self._process is None:
            return None
        return lease_for(Path(self._folder).name, self._process.pid, folder=self._folder)

    def oom_kills(self) -> int:
        return 0

    def why_lost(self) -> str:
        return ""

    def stop(self) -> None:
        if self._process is not None:
            try:
                # Its stdin is closed: it ends what it left, then itself.
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""
