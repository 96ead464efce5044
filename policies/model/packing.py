"""Right-sized batches: the decoder works on real tokens only, and attention alone sees rows.

N real tokens of B rows, packed row after row, shorter rows first; T is the longest row. Any attention mask is
allowed (TRL pads prompts on the left and completions on the right): a row's real tokens close ranks and count
from position 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """Where the tokens of a batch are. `pad_index` and `pack_index` are None when nothing is padded."""

    num_rows: int
    length: int
    positions: Tensor
    pad_index: Tensor | None = None
    """[B * T] int64, the packed token at each place; padding repeats the row's last token."""
    pack_index: Tensor | None = None
    """[N] int64, the place in [B * T] of each packed token."""
    source_index: Tensor | None = None
    """[N] int64, the place in the caller's [B * S] of each packed token."""
    lengths: list[int] | None = None
    """Real tokens of each row."""

    def to_rows(self, packed: Tensor) -> Tensor:
        """[N, ...] to [B, T, ...]."""
        if self.pad_index is not None:
            packed = _Gather.apply(packed, self.pad_index, self.pack_index)
        return packed.view(self.num_rows, self.length, *packed.shape[1:])

    def to_packed(self, rows: Tensor) -> Tensor:
        """[B, T, ...] to [N, ...]."""
        flat = rows.reshape(self.num_rows * self.length, *rows.shape[2:])
        return flat if self.pack_index is None else pick_rows(flat, self.pack_index)

    def row_weights(self) -> Tensor:
        """[B, T] float32: 1 / N for each real token, 0 for padding."""
        places = torch.full((self.num_rows * self.length,), 0.0, device=self.positions.device)
        weight = 1.0 / max(len(self.positions), 1)
        if self.pack_index is None:
            places += weight
        else:
            places[self.pack_index] = weight
        return places.view(self.num_rows, self.length)

    def to_source(self, packed: Tensor, num_columns: int, fill: float = 0) -> Tensor:
        """[N, ...] to the caller's [B, S, ...], with `fill` where the mask was 0."""
        shape = (self.num_rows, num_columns, *packed.shape[1:])
        if self.source_index is None:
            return packed.view(shape)
        out = packed.new_full((self.num_rows * num_columns, *packed.shape[1:]), fill)
        return out.index_copy(0, self.source_index, packed).view(shape)

    def from_source(self, values: Tensor) -> Tensor:
        """The caller's [B, S, ...] to [N, ...]."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self.source_index is None else flat.index_select(0, self.source_index)


def pack(num_rows: int, num_columns: int, attention_mask: Tensor | None, device: torch.device) -> PackedBatch:
    """The layout of a batch [B, S]; a mask of ones costs nothing."""
    if attention_mask is None or bool(attention_mask.all()):
        positions = torch.arange(num_columns, device=device).repeat(num_rows)
        return PackedBatch(num_rows=num_rows, length=num_columns, positions=positions)
    if attention_mask.shape != (num_rows, num_columns):
        raise ValueError(
            f"attention_mask must have shape {(num_rows, num_columns)}, got {tuple(attention_mask.shape)}"
        )
    # Shorter rows first: neighbours are alike, and attention passes over the ends that they all lack.
    lengths, order = attention_mask.bool().sum(1).sort(stable=True)
    real_BS = attention_mask.bool()[order]
    length = int(lengths[-1])
    if length == 0:
        raise ValueError("attention_mask is 0 everywhere; expected at least one real token")
    row, column = real_BS.nonzero(as_tuple=True)
    source = order[row] * num_columns + column
    positions = (real_BS.cumsum(1) - 1)[row, column]
    starts_B = lengths.cumsum(0) - lengths
    steps_T = torch.arange(length, device=device)
    last_B = (lengths - 1).clamp(min=0)
    pad_index = (starts_B[:, None] + torch.minimum(steps_T, last_B[:, None])).clamp(max=len(source) - 1)
    return PackedBatch(
        num_rows=num_rows,
        length=length,
        positions=positions,
        pad_index=pad_index.flatten(),
        pack_index=(steps_T < lengths[:, None]).flatten().nonzero().squeeze(1),
        source_index=source,
        lengths=lengths.tolist(),
    )


def pick_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows by index, of which none is named twice."""
    return _Pick.apply(rows, index)


class _Gather(torch.autograd.Function):
    """Rows by index. Padding receives no gradient (no real token reads it), so the backward gathers too."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, pad_index: Tensor, pack_index: Tensor) -> Tensor:
        ctx.save_for_backward(pack_index)
        return packed.index_select(0, pad_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (pack_index,) = ctx.saved_tensors
        return grads[0].index_select(0, pack_index), None, None


class _Pick(torch.autograd.Function):
    """Rows by index, no row twice: the backward copies where autograd's would add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        spread = grads[0].new_zeros(ctx.num_rows, *grads[0].shape[1:])
        return spread.index_copy_(0, index, grads[0]), None
