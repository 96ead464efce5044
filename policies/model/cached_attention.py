"""Absorbed attention of new tokens over the cached places that they select, in float32 whatever the cache is
kept in.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from policies.model.cache import KeyCache
from policies.model.config import ModelConfig
from policies.model.hashing import bucket_codes, bucket_votes
from policies.model.indexer import sum_heads
from policies.model.selectors import NEVER, Selection, select_topk_indices


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokens:
    """N tokens to read, several a session at once if need be, each session's in order."""

    ids: Tensor
    slots: Tensor
    positions: Tensor
    num_cached: int
    """Cached places to look at: at least the largest position + 1."""
    fewest: int
    """The smallest position + 1."""
    routes: Tensor | None = None
    """[N, L, K] experts to use in the L mixture layers; negative: the router chooses."""
    selected: Tensor | None = None
    """[N, L, K] places to attend to in all L layers, -1 for none; a token with only -1 chooses itself."""
    slot: int | None = None
    """When given, all of them are this one's, in order of position: a long prompt. Its cached rows are then
    read where they lie, for many tokens at once."""
    rows: Tensor | None = None
    """[slots, num_cached] int64: the cache row of each place, where a cache has blocks that lie anywhere;
    None: slot after slot, place after place."""

    def cache_rows(self, max_length: int) -> Tensor:
        """[N] the cache rows that these tokens are written to."""
        if self.rows is None:
            return self.slots * max_length + self.positions
        return self.rows[self.slots, self.positions]


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """What N tokens look for: [N, H, C + R] absorbed, [N, Hi, I] of the indexer, its head weights [N, Hi]."""

    main: Tensor
    index: Tensor
    weights: Tensor

    def part(self, rows: slice) -> "Queries":
        return Queries(main=self.main[rows], index=self.index[rows], weights=self.weights[rows])


class SeenPlaces:
    """The cached places that the new tokens may look at, layer after layer."""

    layer: int
    latents: Tensor
    forced: Tensor | None

    def __init__(self, config: ModelConfig, how: Selection, cache: KeyCache, tokens: NewTokens) -> None:
        self.config, self.how, self.cache, self.tokens = config, how, cache, tokens
        self.rows_N = tokens.cache_rows(cache.max_length)
        """[N], where the cache has their own rows."""
        self.all_places = torch.arange(tokens.num_cached)
        # Every slot in order, one token each: the cache itself is the batch, without a copy.
        self.aligned = (
            tokens.rows is None
            and len(tokens.slots) == cache.num_slots
            and bool((tokens.slots == torch.arange(cache.num_slots)).all())
        )
        self.selecting = self.how.selector is not None and tokens.num_cached > self.how.top_k

    def look_at(self, layer: int) -> None:
        self.layer, self.latents = layer, self.cache.latents[layer]
        self.forced = None if self.tokens.selected is None else self.tokens.selected[:, layer]

    @functools.cached_property
    def later(self) -> Tensor:
        """[N, S] bool: places after the token; the same in every layer."""
        return self.all_places > self.tokens.positions[:, None]

    @property
    def floats_per_token(self) -> int:
        config, places = self.config, self.tokens.num_cached
        row = config.kv_lora_rank + config.qk_rope_head_dim
        if self.tokens.slot is not None:
            heads = config.index_n_heads + 2
            if not self.selecting or config.token_selector == "oracle":
                heads += config.num_attention_heads
            return max(places * heads, config.index_topk * row)
        if not self.selecting:
            return places * row
        if config.token_selector == "oracle":
            return places * (row + config.num_attention_heads)
        return max(places * (config.index_head_dim + config.index_n_heads), config.index_topk * row)

    def mix(self, queries: Queries, portion: int, record: list[Tensor] | None) -> Tensor:
        """Attention over the latents that each token selects, `portion` tokens at a time: [N, H, C]."""
        count = len(queries.main)
        if count <= portion:
            parts = [slice(None)]
        else:
            parts = [slice(start, start + portion) for start in range(0, count, portion)]
        mixed, places = [], []
        for part in parts:
            view = _View(self, part, queries.part(part))
            mixed.append(self._mix(view, places if record is not None else None))
        if record is not None:
            record.append(_joined(places))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _mix(self, view: "_View", record: list[Tensor] | None) -> Tensor:
        chosen = self._choose(view) if self.selecting and view.num_places > self.how.top_k else None
        if self.forced is not None:
            chosen = self._force(view, chosen, self.forced[view.part])
        if chosen is None:
            rows_NKX = self.places(self.latents, view).float()
            filler = view.later() if self.tokens.fewest < self.tokens.num_cached else None
        else:
            places_NK, filler = chosen
            flat = self._rows_of(places_NK, view.part).flatten()
            rows = self.latents.reshape(-1, self.latents.shape[-1]).index_select(0, flat)
            rows_NKX = rows.float().view(*places_NK.shape, -1)
        if record is not None:
            places_NK = view.key_pos.expand(len(view.queries.main), -1) if chosen is None else chosen[0]
            known = places_NK if filler is None else places_NK.masked_fill(filler, -1)
            record.append(known.to(torch.int32))
        logits = _products(view.queries.main, rows_NKX.transpose(1, 2))
        if filler is not None:
            logits.masked_fill_(filler[:, None], NEVER)
        return _products(logits.softmax(-1), rows_NKX[..., : self.config.kv_lora_rank])

    def _choose(self, view: "_View") -> tuple[Tensor, Tensor | None]:
        """The places [n, K] that the selector chooses, and which of them only fill the row."""
        assert self.how.selector is not None
        scores = self.how.selector(view, self.how)
        view.hide_later(scores)
        places_NK = select_topk_indices(scores, self.how.top_k)
        # Only a token with few earlier ones, or few candidates, keeps fewer than k.
        short = view.fewest < self.how.top_k or self.config.token_selector == "lsh"
        return places_NK, scores.gather(1, places_NK) == NEVER if short else None

    def _force(
        self, view: "_View", own: tuple[Tensor, Tensor | None] | None, forced_NK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The places to use: the forced ones, or its own for a token that has none."""
        if own is None:
            own = view.key_pos.expand(len(forced_NK), -1), view.later()
        own_NK = own[0] if own[1] is None else own[0].masked_fill(own[1], -1)
        width = max(own_NK.shape[1], forced_NK.shape[1])
        own_NK, forced_NK = (
            functional.pad(places, (0, width - places.shape[1]), value=-1)
            for places in (own_NK, forced_NK.to(own_NK.dtype))
        )
        places_NK = torch.where((forced_NK < 0).all(-1, keepdim=True), own_NK, forced_NK)
        return places_NK.clamp(min=0), places_NK < 0

    def _rows_of(self, places_NK: Tensor, part: slice) -> Tensor:
        """The cache rows of some tokens' places."""
        slots, rows = self.tokens.slots[part], self.tokens.rows
        if rows is None:
            return places_NK + slots[:, None] * self.latents.shape[1]
        return rows[slots].gather(1, places_NK)

    def places(self, stored: Tensor, view: "_View") -> Tensor:
        """[n, S, X] of the tokens' own slots; [1, S, X] where they all have one."""
        if self.tokens.rows is not None:
            return stored[self.tokens.rows[self.tokens.slots[view.part], : view.num_places]]
        window = stored[:, : view.num_places]
        if self.tokens.slot is not None:
            return window[self.tokens.slot, None]
        if self.aligned and view.part == slice(None):
            return window
        return window.index_select(0, self.tokens.slots[view.part])


def _joined(places: list[Tensor]) -> Tensor:
    """Records of portions one below the other, each as wide as the widest."""
    width = max(part.shape[1] for part in places)
    return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=-1) for part in places])


def _products(left: Tensor, right: Tensor) -> Tensor:
    """[n, H, X] times [n, X, Y], or times one [1, X, Y] for all; in the precision of `right`."""
    if left.dtype != right.dtype:
        return _products(left.to(right.dtype), right).to(left.dtype)
    if len(right) == len(left):
        return torch.bmm(left, right)
    return (left.flatten(0, 1) @ right[0]).view(*left.shape[:2], -1)


class _View:
    """Some of the new tokens as a selector sees them: one query each, so that scores are [n, S]."""

    def __init__(self, seen: SeenPlaces, part: slice, queries: Queries) -> None:
        self.seen, self.part, self.queries = seen, part, queries
        self.query_pos = seen.tokens.positions[part, None]
        self.num_places, self.fewest = seen.tokens.num_cached, seen.tokens.fewest
        if seen.tokens.slot is not None:
            self.num_places, self.fewest = int(self.query_pos[-1]) + 1, int(self.query_pos[0]) + 1
        self.key_pos = seen.all_places[: self.num_places]

    def later(self) -> Tensor:
        """[n, S] bool: places after the token."""
        if self.part == slice(None) and self.num_places == self.seen.tokens.num_cached:
            return self.seen.later
        return self.key_pos > self.query_pos

    def hide_later(self, scores_NS: Tensor) -> None:
        if self.fewest == self.num_places:
            return
        if self.part == slice(None):
            hidden = self.later()[:, self.fewest :]
        else:
            hidden = self.key_pos[self.fewest :] > self.query_pos
        scores_NS[:, self.fewest :].masked_fill_(hidden, NEVER)

    def index_scores(self, among: Tensor | None = None) -> Tensor:
        """Products are computed for the pairs in `among` only; the others score -inf."""
        index_keys = self.seen.places(self.seen.cache.index_keys[self.seen.layer], self).float()
        weights = self.queries.weights[..., None]
        if among is None:
            products = _products(self.queries.index, index_keys.transpose(1, 2)).relu_()
            return sum_heads(products, weights)
        among = among & ~self.later()
        most = int(among.sum(-1).max())
        pairs = torch.where(among, 0.0, NEVER)
        places_NC = select_topk_indices(pairs, most)
        index_keys = index_keys.expand(len(pairs), -1, -1)
        keys_NCI = index_keys.gather(1, places_NC[..., None].expand(-1, -1, index_keys.shape[-1]))
        products = torch.bmm(self.queries.index, keys_NCI.transpose(1, 2)).relu_()
        scores = sum_heads(products, weights) + pairs.gather(1, places_NC)
        return torch.full_like(pairs, NEVER).scatter_(1, places_NC, scores)

    def attention_mass(self) -> Tensor:
        latents = self.seen.places(self.seen.latents, self).float()
        logits = _products(self.queries.main, latents.transpose(1, 2))
        return logits.masked_fill_(self.later()[:, None], NEVER).softmax(-1).sum(1)

    def hash_votes(self) -> Tensor:
        hashed = self.seen.cache.hashed
        assert hashed is not None
        query_codes = bucket_codes(self.queries.index, hashed.planes, hashed.num_bits)
        key_codes = self.seen.places(hashed.codes[self.seen.layer], self).long()
        key_codes = key_codes.expand(len(self.queries.main), -1, -1)
        weights = self.queries.weights[..., None]
        return bucket_votes(query_codes[:, :, None], weights, key_codes, hashed.num_bits).squeeze(1)
