"""A plain function over many items by Ray actors, each with its next item before it has finished one.

Not by Ray Data: its executor (2.60) waits up to 0.1 s for all running tasks together, so that a worker that
has finished stands idle, and its actors for statistics and scaling take a twelfth of two cores.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from envs.child_processes import share_packages

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items that an actor has in hand: one in work, one to go on with."""
MAX_RESTARTS = 3


def map_on_ray(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """The results in the order of their completion. Starts Ray unless it runs already, and then stops it.

    An actor whose process dies is started again, up to three times, and does its items again. Who started Ray
    before has made our packages importable in its workers. Raises what `function` raises.
    """
    started = not ray.is_initialized()
    if started:
        share_packages()  # by inheritance: a runtime environment would make Ray start its workers anew
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    remote: Any = ray.remote
    worker = remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)(_Worker)
    actors = [worker.remote(function) for _ in range(min(workers, len(items)))]
    try:
        yield from _map(actors, items)
    finally:
        if started:
            ray.shutdown()  # takes the actors along, and says nothing of items in work
        else:
            for actor in actors:
                ray.kill(actor)


def _map(actors: Sequence[Any], items: Sequence[Any]) -> Iterator[Any]:
    waiting = iter(items)
    running: dict[ray.ObjectRef, Any] = {}
    for actor, item in zip(cycle(actors), islice(waiting, AHEAD * len(actors)), strict=False):
        running[actor.apply.remote(item)] = actor
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(done)
        for item in islice(waiting, 1):
            running[actor.apply.remote(item)] = actor
        try:
            result = ray.get(done)
        except RayTaskError as error:
            raise error.cause from None
        yield result


class _Worker:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def apply(self, item: Any) -> Any:
        return self._function(item)
