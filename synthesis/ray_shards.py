"""A plain function over many items by Ray Data: a streaming pipeline of one Ray task an item."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data

from envs.child_processes import share_packages

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_ray(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """The results in the order of their completion. Starts Ray unless it runs already, and then stops it.

    Who started Ray before has made our packages importable in its workers.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        share_packages()  # by inheritance: a runtime environment would make Ray start its workers anew
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # Items and results travel as bytes: Arrow would give every row the union of all rows' fields.
        rows = [{"item": pickle.dumps(item)} for item in items]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Apply(function),
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield pickle.loads(row["result"])
    finally:
        if started:
            ray.shutdown()


class _Apply:
    """The function of a row's item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self._function(pickle.loads(row["item"])))}
