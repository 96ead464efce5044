"""The Ray that a run works on: one of its own on this machine, or the one that runs already."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from envs.child_processes import share_packages


@contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """A local Ray with a slot for each worker; an already running one is used as it is, and left running.

    Without workers there is none.
    """
    if workers == 0 or ray.is_initialized():
        yield
        return
    share_packages()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except SystemExit:  # a SIGTERM that met Ray's handler
        ray.shutdown()
        _restore(on_sigterm)
        signal.raise_signal(signal.SIGTERM)
        raise
    _restore(on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def _restore(on_sigterm: Any) -> None:
    """Ray has put a handler of its own in the place of this one, which saves nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
