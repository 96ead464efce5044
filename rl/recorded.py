"""What a batch's rollouts recorded of their choices, as tensors that the learner's forward is held to.

Three choices move with the weights and with what is sampled, so that without them the learner would compute
another function than the one that played (DeepSeek-V3.2, arXiv 2512.02556, section 3.1): the experts of each
token (keep routing), the ids that top-p and top-k left (keep sampling mask) and, as a third of our own, the
positions that sparse attention chose (keep selection).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from policies.replay import pad_kept_sets, pad_routes, pad_selected
from rl.trajectory import Trajectory

PREFIX = "recorded_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Which recorded choices the learner is held to; what is not recorded is chosen live."""

    routing: bool = True
    selection: bool = True
    sampling_mask: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """B rows of S = P + C columns: prompts padded on the left to P, completions on the right to C.

    routes: [B, S, L, K] int64 and selected: [B, S, L', K'] int64, -1 where the model is to choose.
    kept: [B, S, N] int64, the ids that a token was drawn from, -1 beyond them and where nothing was cut.
    """

    routes: Tensor | None = None
    selected: Tensor | None = None
    kept: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Recorded":
        return Recorded(**{name: change(value) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def recorded(batch: Sequence[Trajectory], prompt_width: int, completion_width: int, keep: Keep) -> Recorded:
    """The batch's records in TRL's layout. An episode that was lost has none."""
    columns = prompt_width + completion_width
    offsets = [prompt_width - trajectory.num_prompt_tokens for trajectory in batch]
    routes = [t.routes if t.routes.shape[1] else None for t in batch]
    selected = [t.selected if t.selected is not None and t.selected.shape[1] else None for t in batch]
    kept_sets = [t.kept_sets for t in batch]
    parts: dict[str, Tensor] = {}
    if keep.routing and any(record is not None for record in routes):
        parts["routes"] = pad_routes(routes, num_columns=columns, offsets=offsets)
    if keep.selection and any(record is not None for record in selected):
        parts["selected"] = pad_selected(selected, num_columns=columns, offsets=offsets)
    if keep.sampling_mask and any(kept for record in kept_sets for kept in record):
        parts["kept"] = pad_kept_sets(kept_sets, num_columns=columns, offsets=offsets)
    return Recorded(**parts)


def attach(output: dict[str, Tensor], records: Recorded) -> None:
    """Puts the records into TRL's batch, which it then cuts into micro-batches with the rest."""
    output |= {PREFIX + name: value for name, value in records.tensors().items()}


def detach(inputs: dict[str, Tensor]) -> Recorded:
    """The records of a micro-batch."""
    names = [part.name for part in fields(Recorded)]
    return Recorded(**{name: inputs[PREFIX + name] for name in names if PREFIX + name in inputs})


def rows_of(records: Recorded, rows: Tensor) -> Recorded:
    return records.map(lambda values: values[rows])


def entropy(logps: Tensor) -> Tensor:
    """Of distributions [..., V] in nats; ids without probability count nothing."""
    return torch.special.entr(logps.exp()).sum(dim=-1)
