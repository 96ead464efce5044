"""How the host waits for an executor: asleep, and for the first moments of a reply awake."""

import os
import select
import threading
import time

from envs.sandbox.contract import SandboxLostError

AWAKE_S = 0.002
"""How long a call waits for its reply without sleep, at most, and so the processor time that it may cost."""
_awake = threading.Lock()
"""Held by the one thread of this process that waits awake."""


def wait_for(poller: select.poll, deadline: float) -> list[tuple[int, int]]:
    """What happened on the descriptors of `poller`; SandboxLostError where nothing did until the deadline."""
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not (events := poller.poll(left_s * 1000 + 1)):
        raise SandboxLostError("the box stopped answering")
    return events


def wait_awake(poller: select.poll, deadline: float) -> list[tuple[int, int]]:
    """`wait_for` a reply: awake at first, for at most `AWAKE_S`, and asleep from then on.

    A core that has gone to sleep takes longer to wake than a short command takes, and those of the host's
    and of the box's side would sleep by turns. So a command costs up to 2 ms of a core that nobody else
    wants, as each look gives it to whoever does. A box without a command costs nothing. One thread of a
    process does so at a time: where more wait, the cores are awake.
    """
    if _awake.acquire(blocking=False):
        try:
            asleep_from = min(time.monotonic() + AWAKE_S, deadline)
            while time.monotonic() < asleep_from:
                if events := poller.poll(0):
                    return events
                os.sched_yield()
        finally:
            _awake.release()
    return wait_for(poller, deadline)
