"""What our model chose while vLLM served it: experts and selected places, by request.

vLLM's own capture of routes needs kernels that a CPU has not. A step's choices are kept twice: for the
request, until it is asked for, and at the cache rows of its tokens, from which a later request that shares
the prefix takes them as it takes the cached latents.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.model.cached_attention import NewTokens
from policies.replay import missing_route, route_dtype

SELECTED = np.dtype(np.uint16)


@dataclass(slots=True)
class _Request:
    """Choices by position; a preempted request is read again, and its positions written again."""

    routes: dict[int, np.ndarray] = field(default_factory=dict)
    selected: dict[int, np.ndarray] = field(default_factory=dict)


class Recorder:
    """runner: vLLM's model runner, whose batch names the requests of a step in order."""

    def __init__(self, runner: Any, *, num_rows: int, num_experts: int, record_selected: bool) -> None:
        self.record_selected = record_selected
        self._runner = runner
        self._num_rows = num_rows
        self._route_dtype = route_dtype(num_experts)
        self._requests: dict[str, _Request] = {}
        self._routes_at: np.ndarray | None = None
        self._selected_at: np.ndarray | None = None

    def record(
        self, tokens: NewTokens, counts: list[int], routes_NLK: Tensor, places: list[Tensor] | None
    ) -> None:
        """counts: new tokens of each request of the step, in the batch's order."""
        assert tokens.rows is not None
        rows_N = tokens.cache_rows(0).numpy()
        positions_N = tokens.positions.numpy()
        routes = routes_NLK.numpy().astype(self._route_dtype)
        self._routes_at = _store(self._routes_at, rows_N, routes, self._num_rows)
        selected = None
        if places is not None:
            selected = _as_selected(places)
            self._selected_at = _store(self._selected_at, rows_N, selected, self._num_rows)
        names = self._runner.input_batch.req_ids
        stop = 0
        for number, count in enumerate(counts):
            start, stop = stop, stop + count
            request = self._requests.get(names[number])
            if request is None:
                request = self._requests[names[number]] = self._begin(
                    int(positions_N[start]), tokens.rows[number].numpy()
                )
            for place in range(start, stop):
                request.routes[int(positions_N[place])] = routes[place]
                if selected is not None:
                    request.selected[int(positions_N[place])] = selected[place]

    def _begin(self, num_cached: int, rows: np.ndarray) -> _Request:
        """A request of which vLLM had the first places cached already."""
        request = _Request()
        for place in range(num_cached):
            assert self._routes_at is not None
            request.routes[place] = self._routes_at[rows[place]]
            if self._selected_at is not None:
                request.selected[place] = self._selected_at[rows[place]]
        return request

    def take(self, name: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Routes [T, L, K] and selected places [T, L', K'] of a request's T read tokens; None: none was."""
        request = self._requests.pop(name, None)
        if request is None or not request.routes:
            return None
        routes = np.stack([request.routes[place] for place in range(len(request.routes))])
        if not self.record_selected:
            return routes, None
        width = max(len(row[0]) for row in request.selected.values())
        order = [request.selected[place] for place in range(len(request.selected))]
        return routes, np.stack([_widened(row, width) for row in order])


def _as_selected(places: list[Tensor]) -> np.ndarray:
    """The layers' places, [N, K] each with -1 for none, as [N, L, K]."""
    width = max(layer.shape[1] for layer in places)
    padded = [torch.nn.functional.pad(layer, (0, width - layer.shape[1]), value=-1) for layer in places]
    values = torch.stack(padded, 1).numpy().astype(np.int64)
    values[values < 0] = missing_route(SELECTED)
    return values.astype(SELECTED)


def _store(kept: np.ndarray | None, rows_N: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    """`values` at `rows_N` of a table as wide as the widest seen."""
    width = values.shape[-1]
    if kept is None:
        kept = np.full((num_rows, *values.shape[1:]), missing_route(values.dtype), values.dtype)
    elif kept.shape[-1] < width:
        kept = _widened(kept, width)
    kept[rows_N, ..., :width] = values
    kept[rows_N, ..., width:] = missing_route(values.dtype)
    return kept


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    spare = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, spare, constant_values=missing_route(values.dtype))
