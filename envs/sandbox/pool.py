"""Warm boxes: started ahead of time, given out in milliseconds, cleaned, proved clean, and given out again.

A box that comes back is reset in place (`Sandbox.reset`); where that cannot be proved it is closed, and
another is started in its place. A box that is given out is a `PooledBox`: `close` gives it back, after which
the one who had it can do nothing more in it.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from envs.sandbox.contract import (
    DEFAULT_TIMEOUT_S,
    ExecResult,
    Sandbox,
    SandboxError,
    SandboxLostError,
    SandboxStartError,
    SandboxUnavailableError,
    Snapshot,
)
from envs.sandbox.leases import DEFAULT_LEASE_S, reap_files
from envs.sandbox.start_gate import StartGate, starts_at_once

START_TRIES = 2
PING_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    warm: int = starts_at_once()
    """Boxes kept ready beyond those in use."""
    max_boxes: int = 64
    """Boxes at once, in use and ready together; past it `acquire` waits for one to come back."""
    max_uses: int = 100
    """Episodes that one box may serve; 1 gives every episode a new one."""
    max_age_s: float = DEFAULT_LEASE_S / 2
    """A box older than this is not given out again, so that no episode meets the end of its lease."""

    def __post_init__(self) -> None:
        if not 0 <= self.warm <= self.max_boxes:
            raise ValueError(f"pool.warm must lie in [0, pool.max_boxes = {self.max_boxes}], got {self.warm}")
        if self.max_boxes < 1 or self.max_uses < 1:
            raise ValueError("pool.max_boxes and pool.max_uses must be at least 1")
        if not 0 < self.max_age_s < DEFAULT_LEASE_S:
            raise ValueError(f"pool.max_age_s must lie in (0, {DEFAULT_LEASE_S}), got {self.max_age_s}")


@dataclass(slots=True)
class PoolCounts:
    """What became of the boxes of one pool so far."""

    started: int = 0
    failed_starts: int = 0
    given: int = 0
    resets: int = 0
    discarded: int = 0
    """Lost, or not clean after a reset."""
    last_fault: str = ""


@dataclass(eq=False, slots=True)
class _Box:
    sandbox: Sandbox
    born: float
    can_reset: bool
    uses: int = 0


class BoxPool:
    """Boxes of one tier, limits and image, for any number of threads of one process."""

    def __init__(
        self, make: Callable[[], Sandbox], config: PoolConfig | None = None, gate: StartGate | None = None
    ) -> None:
        """
        Args:
            make: Gives an unstarted box, as `ChosenTier.make` does.
            gate: Shared by the pools of a process that use one engine; default: its own.
        """
        self._make = make
        self._config = config or PoolConfig()
        self._gate = gate or StartGate()
        self._changed = threading.Condition()
        self._ready: list[_Box] = []
        self._num_used = 0
        self._num_starting = 0
        self._is_closed = False
        self._chores = ThreadPoolExecutor(self._gate.ceiling, thread_name_prefix="boxes")
        self.counts = PoolCounts()

    def warm_up(self, timeout_s: float = 120.0) -> None:
        """Start the warm boxes and wait for them; SandboxUnavailableError where they do not come.

        First ends boxes of this user's that have no engine and whose run is dead.
        """
        reap_files()
        self._refill()
        with self._changed:
            if not self._changed.wait_for(self._is_settled, timeout_s) or not self._has_warm():
                raise SandboxUnavailableError(
                    f"{len(self._ready)} of {self._config.warm} warm boxes started;"
                    f" the last fault: {self.counts.last_fault or f'none within {timeout_s:.0f} s'}"
                )

    def acquire(self, *, timeout_s: float = 120.0) -> "PooledBox":
        """A clean, started box that has just answered.

        Raises:
            SandboxUnavailableError: all boxes stayed in use until the timeout, starts are paused after too
                many failures, or the pool is closed.
            SandboxStartError: boxes of this tier do not come up.
        """
        deadline = time.monotonic() + timeout_s
        while (box := self._take(deadline)) is not None:
            if self._answers(box):
                break
            self._forget(box)
        try:
            box = box or self._start(deadline - time.monotonic(), START_TRIES)
        except BaseException:
            with self._changed:
                self._num_used -= 1
                self._changed.notify_all()
            raise
        box.uses += 1
        self._count("given")
        self._refill()
        return PooledBox(self, box)

    def close(self) -> None:
        """End the ready boxes; those in use end as they come back. Any number of times."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._close_ready()
        self._chores.shutdown(wait=True)
        self._close_ready()  # of starts that ended meanwhile

    def give_back(self, box: _Box) -> None:
        """Called once by the `PooledBox`: reset and keep, or close and replace."""
        is_clean = False
        worn = box.uses >= self._config.max_uses or self._age_s(box) > self._config.max_age_s
        if box.can_reset and not worn and not self._is_closed:
            try:
                box.sandbox.reset()
                is_clean = True
            except (SandboxError, OSError) as error:
                self._count("discarded", str(error))
        with self._changed:
            self._num_used -= 1
            is_clean = is_clean and not self._is_closed
            if is_clean:
                self._ready.append(box)
            self._changed.notify_all()
        if is_clean:
            self._count("resets")
        if not is_clean:
            self._close_later(box)
            self._refill()

    def _take(self, deadline: float) -> _Box | None:
        """A ready box, or None where the caller is to start one; either way the caller counts as a user."""
        with self._changed:
            while True:
                if self._is_closed:
                    raise SandboxUnavailableError("this pool of boxes is closed")
                while self._ready:
                    # The last one in: its pages are warm, and the first ones grow old together and go.
                    box = self._ready.pop()
                    if self._age_s(box) <= self._config.max_age_s:
                        self._num_used += 1
                        return box
                    self._close_later(box)
                if self._num_used + self._num_starting < self._config.max_boxes:
                    self._num_used += 1
                    return None
                if not self._changed.wait(deadline - time.monotonic()):
                    raise SandboxUnavailableError(
                        f"all {self._config.max_boxes} boxes stayed in use; raise pool.max_boxes or play"
                        " fewer episodes at once"
                    )

    def _start(self, timeout_s: float, tries: int) -> _Box:
        while True:
            sandbox = self._make()
            try:
                with self._gate.slot(timeout_s=max(timeout_s, 0.0)):
                    sandbox.start()
                    can_reset = self._config.max_uses > 1 and sandbox.mark_pristine()
            except BaseException as error:
                sandbox.close()
                self._count("failed_starts", str(error))
                tries -= 1
                if not isinstance(error, SandboxStartError | SandboxLostError) or not tries:
                    raise
            else:
                self._count("started")
                return _Box(sandbox, time.monotonic(), can_reset)

    def _refill(self) -> None:
        with self._changed:
            room = self._config.max_boxes - self._num_used - self._num_starting - len(self._ready)
            wanted = min(room, self._config.warm - len(self._ready) - self._num_starting)
            if self._is_closed or self._gate.is_open:
                return
            for _ in range(wanted):
                self._num_starting += 1
                self._chores.submit(self._start_one_more)

    def _start_one_more(self) -> None:
        box = None
        # Told by `counts` and by the next `acquire`, which starts one itself.
        with suppress(SandboxError):
            box = None if self._is_closed else self._start(30.0, 1)
        with self._changed:
            self._num_starting -= 1
            if box is not None:
                self._ready.append(box)
            self._changed.notify_all()

    def _answers(self, box: _Box) -> bool:
        try:
            return box.sandbox.exec(["true"], timeout_s=PING_TIMEOUT_S).exit_code == 0
        except SandboxError as error:
            self._count("discarded", str(error))
            return False

    def _forget(self, box: _Box) -> None:
        with self._changed:
            self._num_used -= 1
        self._close_later(box)

    def _close_later(self, box: _Box) -> None:
        try:
            self._chores.submit(box.sandbox.close)
        except RuntimeError:  # the pool is closed
            box.sandbox.close()

    def _close_ready(self) -> None:
        with self._changed:
            ready, self._ready = self._ready, []
        for box in ready:
            self._close_later(box)

    def _count(self, name: str, fault: str | None = None) -> None:
        with self._changed:
            setattr(self.counts, name, getattr(self.counts, name) + 1)
            self.counts.last_fault = self.counts.last_fault if fault is None else fault

    def _age_s(self, box: _Box) -> float:
        return time.monotonic() - box.born

    def _is_settled(self) -> bool:
        return self._num_starting == 0 or self._has_warm()

    def _has_warm(self) -> bool:
        return len(self._ready) >= self._config.warm


class PooledBox:
    """A `Sandbox` on loan: started already, and given back by `close`, after which it is nobody's to use."""

    def __init__(self, pool: BoxPool, box: _Box) -> None:
        self._pool = pool
        self._box: _Box | None = box
        self.tier = box.sandbox.tier
        self.work_dir = box.sandbox.work_dir

    def start(self) -> None:
        self._held()

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
        return self._held().exec(
            argv, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s, output_cap_bytes=output_cap_bytes
        )

    def read_file(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        return self._held().read_file(path, max_bytes=max_bytes)

    def write_file(self, path: str, data: bytes) -> None:
        self._held().write_file(path, data)

    def mark_pristine(self) -> bool:
        self._held()
        return self._box is not None and self._box.can_reset

    def snapshot(self, *, max_bytes: int = 64 << 20) -> Snapshot:
        return self._held().snapshot(max_bytes=max_bytes)

    def reset(self, to: Snapshot | None = None) -> None:
        self._held().reset(to)

    def close(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            self._pool.give_back(box)

    def _held(self) -> Sandbox:
        if self._box is None:
            raise SandboxLostError("this box was given back to its pool")
        return self._box.sandbox
