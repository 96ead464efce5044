"""What decoding keeps of the tokens it has read: latents and index keys, one preallocated row per slot.

Both are O(length): the latent serves every head, and the selector bounds what is read, not what is stored.
A latent is normalised and bears rounding to 16 bits; the rotary key beside it is not and may be large: it is
then kept as a sum of two parts, each rounded.
Rotary pairs are stored side by side (x0, x1), in the indexer's keys too: one complex product turns them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from policies.model.config import ModelConfig
from policies.model.hashing import bucket_codes, planes


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedKeys:
    """The buckets of the cached index keys, kept so that a key is hashed once."""

    codes: Tensor
    """[layers, slots, max_length, tables] int32."""
    planes: Tensor
    """[I, tables * bits], rows in the order of the cached keys' columns."""
    num_bits: int


class KeyCache(Protocol):
    """What decoding needs of a cache, wherever its rows lie."""

    @property
    def latents(self) -> Tensor | Sequence[Tensor]:
        """A layer's rows: the last dimension is C + R, or C + 2R where the key is in two parts."""
        ...

    @property
    def index_keys(self) -> Tensor | Sequence[Tensor]:
        """A layer's rows: the last dimension is I."""
        ...

    @property
    def hashed(self) -> HashedKeys | None: ...

    @property
    def num_slots(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def write(self, layer: int, places_N: Tensor, latents: Tensor, index_keys: Tensor) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCache:
    latents: Tensor
    """[layers, slots, max_length, C + R] of the model's precision: normalised latent, then the rotated shared
    key. In 16 bits C + 2R: what rounding took from the key follows it.
    """
    index_keys: Tensor
    """[layers, slots, max_length, I] float32."""
    hashed: HashedKeys | None = None
    """With the selector `lsh`."""

    @property
    def num_slots(self) -> int:
        return self.latents.shape[1]

    @property
    def max_length(self) -> int:
        return self.latents.shape[2]

    @property
    def num_bytes(self) -> int:
        """What the cache takes, whatever is in it."""
        parts = [self.latents, self.index_keys]
        if self.hashed is not None:
            parts.append(self.hashed.codes)
        return sum(part.nbytes for part in parts)

    def write(self, layer: int, places_N: Tensor, latents: Tensor, index_keys: Tensor) -> None:
        """Store rows [N, C + R] and [N, I] at places (slot * max_length + position)."""
        rounded = latents.to(self.latents.dtype)
        num_rest = self.latents.shape[-1] - latents.shape[-1]
        if num_rest:
            rest = (latents - rounded)[:, -num_rest:].to(rounded.dtype)
            rounded = torch.cat((rounded, rest), -1)
        self.latents[layer].view(-1, self.latents.shape[-1]).index_copy_(0, places_N, rounded)
        self.index_keys[layer].view(-1, self.index_keys.shape[-1]).index_copy_(0, places_N, index_keys)
        if self.hashed is not None:
            codes = self.hashed.codes[layer]
            new = bucket_codes(index_keys, self.hashed.planes, self.hashed.num_bits).to(codes.dtype)
            codes.view(-1, codes.shape[-1]).index_copy_(0, places_N, new)

    def write_captured(
        self, layer: int, places_N: Tensor, captured: tuple[Tensor, Tensor], rope_dim: int
    ) -> None:
        """Store rows as the trainer-mode forward lays them out: index pairs' first members first."""
        latents, index_keys = captured
        index_rope = index_keys[:, :rope_dim][:, pair_order(rope_dim)]
        self.write(layer, places_N, latents, torch.cat((index_rope, index_keys[:, rope_dim:]), -1))


def pair_order(rope_dim: int) -> list[int]:
    """Columns of a halves layout in the order of neighbours: 0, R/2, 1, R/2 + 1, ..."""
    half = rope_dim // 2
    return [column for pair in range(half) for column in (pair, half + pair)]


def allocate_cache(
    config: ModelConfig, num_slots: int, max_length: int, dtype: torch.dtype = torch.float32
) -> LatentCache:
    """dtype: of the latents."""
    shape = (config.num_hidden_layers, num_slots, max_length)
    key_parts = 2 if dtype.itemsize < 4 else 1
    hashed = None
    if config.token_selector == "lsh":
        cuts = planes(config.selector_seed, config.index_head_dim, config.lsh_tables, config.lsh_bits)
        order = [
            *pair_order(config.qk_rope_head_dim),
            *range(config.qk_rope_head_dim, config.index_head_dim),
        ]
        hashed = HashedKeys(
            codes=torch.zeros(*shape, config.lsh_tables, dtype=torch.int32),
            planes=cuts[order],
            num_bits=config.lsh_bits,
        )
    return LatentCache(
        hashed=hashed,
        latents=torch.zeros(*shape, config.kv_lora_rank + key_parts * config.qk_rope_head_dim, dtype=dtype),
        index_keys=torch.zeros(*shape, config.index_head_dim),
    )
