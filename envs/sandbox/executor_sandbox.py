"""The one `Sandbox` of every tier: an executor in a box, and a carrier that starts and ends the box.

A tier is a `Carrier`: docker_engine.py, namespaces.py and trusted_process.py have one each.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from envs.sandbox.contract import (
    DEFAULT_TIMEOUT_S,
    ExecResult,
    Limits,
    SandboxError,
    SandboxLostError,
    SandboxProtocolError,
    SandboxStartError,
    SandboxUnavailableError,
    Snapshot,
)
from envs.sandbox.executor_client import ExecutorClient, Transport
from envs.sandbox.leases import FileLease

KILLED_EXECUTOR = b"the command killed or stopped the process that ran it; its output is lost\n"


class Carrier(Protocol):
    """What a tier adds: where an executor runs, and what stands between it and the machine."""

    @property
    def tier(self) -> str: ...

    @property
    def name(self) -> str:
        """Names this box in messages."""
        ...

    @property
    def work_dir(self) -> str: ...

    def start(self) -> Transport:
        """Start the box and connect to an executor that waits for its text. Cleans up where it raises."""
        ...

    def reconnect(self) -> Transport | None:
        """A new executor in the same box; None where the loss of an executor is the loss of the box.

        Where commands may kill the executor, as they have its user, its loss must be an observation: a policy
        that could end its episode as a fault of the machinery could wipe out its bad ones.
        """
        ...

    def oom_kills(self) -> int:
        """Kills for memory in this box so far, as the host can see them; 0 where it cannot."""
        ...

    def lease(self) -> FileLease | None:
        """The started box's lease as a file; None where an engine keeps it as labels."""
        ...

    def why_lost(self) -> str:
        """What the host knows of a box that stopped answering; may be empty. Never raises."""
        ...

    def stop(self) -> None:
        """End the box and free all that it held. Any number of times; never raises as the box is gone."""
        ...


class ExecutorSandbox:
    """A `Sandbox` over any carrier. A lost box is ended at once; every later call but `close` raises."""

    def __init__(self, carrier: Carrier, limits: Limits) -> None:
        self._carrier = carrier
        self._limits = limits
        self._client: ExecutorClient | None = None
        self._oom_kills = 0
        self._lease: FileLease | None = None
        self._is_used = False
        self._marked: ExecutorClient | None = None
        self.why_not_pristine = "it was never asked for"

    @property
    def tier(self) -> str:
        return self._carrier.tier

    @property
    def name(self) -> str:
        """Names this box in messages."""
        return self._carrier.name

    @property
    def work_dir(self) -> str:
        return self._carrier.work_dir

    def start(self) -> None:
        try:
            self._client = self._client_over(self._carrier.start())
            self._lease = self._carrier.lease()
            if self._lease is not None:
                self._lease.write()
            self._client.start()
        except SandboxUnavailableError:
            raise
        except SandboxError as error:
            why = self._carrier.why_lost()
            self.close()
            raise SandboxStartError(f"{error}{': ' if why else ''}{why}") from None
        except BaseException:
            self.close()
            raise

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
        client = self._running()
        self._is_used = True
        started = time.monotonic()
        try:
            result = client.exec(
                argv, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s, output_cap_bytes=output_cap_bytes
            )
        except SandboxLostError as error:
            if isinstance(error, SandboxProtocolError) or not self._reconnected():
                raise self._lost(error) from None
            duration_s = time.monotonic() - started
            return ExecResult(
                exit_code=137,
                stdout=b"",
                stderr=KILLED_EXECUTOR,
                timed_out=duration_s > timeout_s,
                duration_s=duration_s,
            )
        if result.exit_code != 0:
            kills = self._carrier.oom_kills()
            if kills > self._oom_kills:
                self._oom_kills = kills
                result = replace(result, oom_killed=True)
        return result

    def read_file(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        try:
            return self._running().read_file(path, max_bytes=max_bytes)
        except SandboxLostError as error:
            raise self._lost(error) from None

    def write_file(self, path: str, data: bytes) -> None:
        self._is_used = True
        try:
            self._running().write_file(path, data)
        except SandboxLostError as error:
            raise self._lost(error) from None

    def mark_pristine(self) -> bool:
        if self._is_used:
            raise ValueError(f"box {self.name}: mark_pristine must come before its first command or file")
        client = self._running()
        try:
            self.why_not_pristine = client.mark_pristine() or ""
        except SandboxLostError as error:
            raise self._lost(error) from None
        self._marked = None if self.why_not_pristine else client
        return self._marked is not None

    def snapshot(self, *, max_bytes: int = 64 << 20) -> Snapshot:
        try:
            return self._marked_client().snapshot(max_bytes)
        except SandboxLostError as error:
            raise self._lost(error) from None

    def reset(self, to: Snapshot | None = None) -> None:
        try:
            self._marked_client().reset(to)
        except SandboxLostError as error:
            raise self._lost(error) from None
        self._oom_kills = self._carrier.oom_kills()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._carrier.stop()
        if self._lease is not None:
            self._lease.remove()
            self._lease = None

    def _marked_client(self) -> ExecutorClient:
        client = self._running()
        if self._marked is None:
            raise ValueError(f"box {self.name}: it was not marked by mark_pristine: {self.why_not_pristine}")
        if self._marked is not client:
            raise SandboxLostError(f"box {self.name}: a command has killed what knew how it was at its start")
        return client

    def _reconnected(self) -> bool:
        try:
            transport = self._carrier.reconnect()
            if transport is None:
                return False
            if self._client is not None:
                self._client.close()
            self._client = self._client_over(transport)
            self._client.start()
        except SandboxError:
            return False
        return True

    def _client_over(self, transport: Transport) -> ExecutorClient:
        return ExecutorClient(transport, limits=self._limits, work_dir=self.work_dir, box=self._carrier.name)

    def _running(self) -> ExecutorClient:
        if self._client is None:
            raise SandboxLostError(f"box {self._carrier.name}: it is not started")
        return self._client

    def _lost(self, error: SandboxLostError) -> SandboxLostError:
        kind = SandboxProtocolError if isinstance(error, SandboxProtocolError) else SandboxLostError
        why = self._carrier.why_lost()
        self.close()
        return kind(f"{error}{': ' if why else ''}{why}")
