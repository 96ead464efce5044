"""In-process continuous batching over the trainer's own module.

Sessions join and leave at every step. A step reads all new tokens of all running sessions in one flat
forward (one each while decoding, all of an environment's answer at once) and samples one for each. What a
trainer needs of a rollout is recorded on the way: log-probabilities as sampled, experts, kept sets, versions.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from policies.model.cache import LatentCache, allocate_cache
from policies.model.decode import FusedDecoder, NewTokens, gathered_prefill_from
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.packing import pack
from policies.model.sampling import Sampling, draw, process_logits
from policies.replay import LIVE, join_selected, missing_route, record_selected, route_dtype
from policies.token_limits import checked_answer, checked_prompt

__all__ = ["Engine", "Sampling", "SessionRecord", "Turn"]

PREFILL_TOKENS = 16_384
"""Prompts are read in batches of at most so many padded tokens."""
READ_ALONE_FROM = 256
"""A session with so many unread tokens is read by itself: its cached rows then serve all of them in place."""
_ROUND = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a session said until it stopped."""

    session: int
    token_ids: list[int]
    logps: list[float]
    """Of the processed distribution (after temperature, top-k, top-p), nats."""
    stop_reason: str
    """stop_token | length (the turn's budget is spent) | context (the cache row is full)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """A whole session, T tokens: the prompt and everything after it."""

    token_ids: list[int]
    sampled_mask: list[bool]
    logps: list[float]
    """0.0 where the token was not sampled."""
    routes: np.ndarray
    """[T, L, K] uint8 (uint16 beyond 255 experts): the experts of each token in the L mixture layers; the
    type's largest value where the token was never read, as the last sampled one."""
    kept_sets: list[list[int]]
    """Per token the ids that survived top-p and top-k; empty where nothing was cut or nothing sampled."""
    weights_versions: list[int]
    """Per token, the version that sampled it or, for other tokens, read it; -1 where it was never read."""
    selected: np.ndarray | None = None
    """[T, L, K] uint16 (uint32 for long caches): the positions that each token attended to in each layer; the
    type's largest value beyond them, and where the token was never read. None: the engine records none."""


@dataclass(eq=False, kw_only=True, slots=True)
class _Session:
    number: int
    seed: int
    sampling: Sampling
    tokens: list[int]
    slot: int | None = None
    num_read: int = 0
    """Tokens in the cache."""
    num_recorded: int = 0
    """Tokens with routes and places: read at least once."""
    paused: bool = False
    turn_start: int = 0
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)
    routes: list[np.ndarray] = field(default_factory=list)
    selected: list[np.ndarray] = field(default_factory=list)

    def add(self, token_ids: Sequence[int]) -> None:
        self.tokens.extend(token_ids)
        self.sampled.extend([False] * len(token_ids))
        self.logps.extend([0.0] * len(token_ids))
        self.versions.extend([-1] * len(token_ids))

    def mark_read(self, stop: int, routes: np.ndarray, selected: np.ndarray | None, version: int) -> None:
        """The tokens from `num_read` to `stop` were read, with these routes and places, one row a token.

        What is read again keeps its first record: by that its next token was sampled.
        """
        known = max(0, self.num_recorded - self.num_read)
        self.routes.append(routes[known:])
        if selected is not None:
            self.selected.append(selected[known:])
        for place in range(self.num_read + known, stop):
            if not self.sampled[place]:
                self.versions[place] = version
        self.num_read = stop
        self.num_recorded = max(self.num_recorded, stop)


class Engine:
    """Generates for many sessions at once with one model; not thread-safe.

    dtype: bfloat16 rounds weights and cache; `model` stays as published. None: what the model has.
    """

    def __init__(  # noqa: PLR0913 (what a replica decides of an engine)
        self,
        model: WorldsmithForCausalLM,
        *,
        num_slots: int,
        max_length: int,
        stop_token_ids: Collection[int],
        record_selected: bool = False,
        recompute: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_slots < 1 or max_length < 2 or dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(
                "engine needs num_slots >= 1, max_length >= 2 and dtype float32 or bfloat16,"
                f" got {num_slots}, {max_length} and {dtype}"
            )
        self.model = model
        self.num_slots = num_slots
        self.max_length = max_length
        self.stop_token_ids = frozenset(stop_token_ids)
        self.version = 0
        self._record_selected = record_selected
        # Longer prompts, with rounded weights all, are read over cached latents: core attention touches the
        # selected ones only.
        in_place = gathered_prefill_from(model.config) or max_length
        self.gathered_from = in_place if dtype in (None, model.lm_head.weight.dtype) else 0
        self._recompute = recompute
        self._fused = FusedDecoder(model, dtype)
        self.dtype = self._fused.dtype
        self._cache: LatentCache = allocate_cache(model.config, num_slots, max_length, self._fused.dtype)
        self._sessions: dict[int, _Session] = {}
        self._waiting: deque[_Session] = deque()
        self._free = list(range(num_slots - 1, -1, -1))
        self._opened = 0

    @property
    def cache_bytes(self) -> int:
        """What the cache takes; it does not grow."""
        return self._cache.num_bytes

    @property
    def num_running(self) -> int:
        """Sessions that hold a slot and would sample in the next step."""
        return sum(s.slot is not None and not s.paused for s in self._sessions.values())

    @property
    def num_waiting(self) -> int:
        """Sessions that wait for a slot."""
        return len(self._waiting)

    def open(self, prompt_ids: Sequence[int], *, seed: int, sampling: Sampling) -> int:
        """Begin a session; it starts in the next step, or when a slot is free.

        Sessions with the same prompt that start in the same step read it once.
        """
        vocab = self.model.config.vocab_size
        prompt = checked_prompt(prompt_ids, vocab_size=vocab, max_length=self.max_length)
        session = _Session(number=self._opened, seed=seed, sampling=sampling, tokens=[])
        session.add(prompt)
        session.turn_start = len(prompt)
        self._opened += 1
        self._sessions[session.number] = session
        self._waiting.append(session)
        return session.number

    def room(self, session: int) -> int:
        """How many tokens `extend` may still give this session."""
        return self.max_length - 1 - len(self._get(session).tokens)

    def extend(self, session: int, token_ids: Sequence[int]) -> None:
        """Give a paused session the environment's tokens; it reads them and goes on in the next step."""
        state = self._get(session)
        if not state.paused:
            raise ValueError(f"session {session} is still generating; extend it after its Turn")
        vocab, room = self.model.config.vocab_size, self.room(session)
        tokens = checked_answer(
            token_ids, session=session, vocab_size=vocab, room=room, max_length=self.max_length
        )
        state.add(tokens)
        state.turn_start = len(state.tokens)
        state.paused = False

    def step(self) -> list[Turn]:
        """One forward over all running sessions; the turns that ended in it."""
        with torch.inference_mode():
            started, logits = self._start_waiting()
            going = [
                s for s in self._sessions.values() if s.slot is not None and not s.paused and s not in started
            ]
            going.sort(key=lambda s: s.slot or 0)
            long = [s for s in going if len(s.tokens) - s.num_read >= READ_ALONE_FROM]
            going = [s for s in going if s not in long]
            logits += [self._read(some) for some in (*([session] for session in long), going) if some]
            sessions = [*started, *long, *going]
            if sessions:
                self._sample(sessions, torch.cat(logits))
        return [turn for s in sessions if (turn := self._ended(s)) is not None]

    def close(self, session: int) -> SessionRecord:
        """End a session at any time; frees its slot and returns its record."""
        state = self._get(session)
        del self._sessions[session]
        if state.slot is None:
            self._waiting.remove(state)
        else:
            self._free.append(state.slot)
        if not self._sessions:
            self._free.sort(reverse=True)  # as in a new engine: rounding may depend on a row's place
        config = self.model.config
        layers = (config.mlp_layer_types or []).count("sparse")
        dtype = route_dtype(config.n_routed_experts)
        routes = np.full((len(state.tokens), layers, config.num_experts_per_tok), missing_route(dtype), dtype)
        if state.routes:
            routes[: state.num_recorded] = np.concatenate(state.routes)
        return SessionRecord(
            token_ids=state.tokens,
            sampled_mask=state.sampled,
            logps=state.logps,
            routes=routes,
            kept_sets=[state.kept.get(place, []) for place in range(len(state.tokens))],
            weights_versions=state.versions,
            selected=join_selected(state.selected, len(state.tokens)) if self._record_selected else None,
        )

    def load_weights(self, state_dict: Mapping[str, Tensor], *, version: int) -> None:
        """Take new weights, correction biases included; running sessions go on with them.

        They keep what the old weights cached or, with `recompute`, read all of it again with the new ones.
        """
        self.model.load_state_dict(state_dict, strict=True)
        self._fused = FusedDecoder(self.model, self.dtype)
        self.version = version
        for session in self._sessions.values() if self._recompute else ():
            session.num_read = 0

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities, nats, of at most `max_length` tokens but the first; sessions are not touched."""
        ids = torch.tensor(list(token_ids)[: self.max_length])
        cache = allocate_cache(self.model.config, 1, len(ids), self._fused.dtype)
        places = torch.arange(len(ids))
        tokens = NewTokens(
            ids=ids, slots=torch.zeros_like(ids), positions=places, num_cached=len(ids), fewest=1
        )
        with torch.inference_mode():
            logits, _ = self._fused.forward(tokens, cache, places[:-1])
        return logits.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1).tolist()

    def _get(self, session: int) -> _Session:
        if session not in self._sessions:
            raise ValueError(f"session {session} is not open")
        return self._sessions[session]

    def _start_waiting(self) -> tuple[list[_Session], list[Tensor]]:
        """Slots for waiting sessions; prompts read once each. Long prompts are left to `_read`."""
        groups: dict[tuple[int, ...], list[_Session]] = {}
        while self._waiting and self._free:
            session = self._waiting.popleft()
            session.slot = self._free.pop()
            if len(session.tokens) <= self.gathered_from:
                groups.setdefault(tuple(session.tokens), []).append(session)
        started: list[_Session] = []
        logits: list[Tensor] = []
        for prompts in _batches(sorted(groups, key=len)):
            members = [groups[prompt] for prompt in prompts]
            logits.append(self._prefill(prompts, members))
            started += [session for group in members for session in group]
        return started, logits

    def _prefill(self, prompts: list[tuple[int, ...]], members: list[list[_Session]]) -> Tensor:
        """Read distinct prompts as the trainer would, copy their cache rows to every member's slot."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        batch = pack(len(prompts), longest, torch.arange(longest) < lengths[:, None], ids.device)
        captured: list[tuple[Tensor, Tensor]] = []
        places: list[Tensor] | None = [] if self._record_selected else None
        hidden_ND, used, _ = self.model.model(ids, batch, capture=captured, record=places)
        routes = self._routes(used)
        selected = self._selected(places)
        rows: list[Tensor] = []
        cells: list[Tensor] = []
        last: list[int] = []
        start = 0
        for prompt, group in zip(prompts, members, strict=True):
            stop = start + len(prompt)
            for session in group:
                assert session.slot is not None
                rows.append(torch.arange(start, stop))
                cells.append(torch.arange(len(prompt)) + session.slot * self.max_length)
                last.append(stop - 1)
                places_read = selected[start:stop] if selected is not None else None
                session.mark_read(len(prompt), routes[start:stop], places_read, self.version)
            start = stop
        all_rows, all_cells = torch.cat(rows), torch.cat(cells)
        rope_dim = self.model.config.qk_rope_head_dim
        for layer, (latents, index_keys) in enumerate(captured):
            kept = (latents[all_rows], index_keys[all_rows])
            self._cache.write_captured(layer, all_cells, kept, rope_dim)
        return functional.linear(hidden_ND[last].float(), self.model.lm_head.weight.float())

    def _routes(self, used: list[Tensor]) -> np.ndarray:
        dtype = route_dtype(self.model.config.n_routed_experts)
        return torch.stack(used, 1).numpy().astype(dtype) if used else np.zeros((1, 0, 1), dtype)

    def _selected(self, places: list[Tensor] | None) -> np.ndarray | None:
        """The layers' places, [N, K] each with -1 for none, as one record [N, L, K]."""
        if places is None:
            return None
        width = max(layer.shape[1] for layer in places)
        padded = [functional.pad(layer, (0, width - layer.shape[1]), value=LIVE) for layer in places]
        return record_selected(torch.stack(padded, 1))

    def _read(self, sessions: list[_Session]) -> Tensor:
        """All unread tokens of these sessions in one flat forward: logits after the last of each."""
        ids = [token for s in sessions for token in s.tokens[s.num_read :]]
        slots = [s.slot for s in sessions for _ in s.tokens[s.num_read :]]
        positions = [place for s in sessions for place in range(s.num_read, len(s.tokens))]
        longest = min(-(-(max(positions) + 1) // _ROUND) * _ROUND, self.max_length)
        tokens = NewTokens(
            ids=torch.tensor(ids),
            slots=torch.tensor(slots),
            positions=torch.tensor(positions),
            num_cached=longest,
            fewest=min(positions) + 1,
            slot=slots[0] if len(sessions) == 1 and len(ids) > 1 else None,
        )
        counts = [len(s.tokens) - s.num_read for s in sessions]
        ends = np.cumsum(counts)
        places: list[Tensor] | None = [] if self._record_selected else None
        logits, routes_NLK = self._fused.forward(tokens, self._cache, torch.from_numpy(ends - 1), places)
        selected = self._selected(places)
        routes = routes_NLK.numpy().astype(route_dtype(self.model.config.n_routed_experts))
        for session, count, end in zip(sessions, counts, ends.tolist(), strict=True):
            rows = slice(end - count, end)
            places_read = selected[rows] if selected is not None else None
            session.mark_read(len(session.tokens), routes[rows], places_read, self.version)
        return logits

    def _sample(self, sessions: list[_Session], logits_NV: Tensor) -> None:
        samplings = [s.sampling for s in sessions]
        logps_NV = process_logits(logits_NV, samplings)
        tokens = draw(logps_NV, samplings, [s.seed for s in sessions], [len(s.tokens) for s in sessions])
        logps = logps_NV.gather(1, tokens[:, None]).squeeze(1).tolist()
        for row, (session, token, logp) in enumerate(zip(sessions, tokens.tolist(), logps, strict=True)):
            if session.sampling.restricts:
                kept = (logps_NV[row] > float("-inf")).nonzero().squeeze(1)
                session.kept[len(session.tokens)] = kept.tolist()
            session.tokens.append(token)
            session.sampled.append(True)
            session.logps.append(logp)
            session.versions.append(self.version)

    def _ended(self, session: _Session) -> Turn | None:
        if session.tokens[-1] in self.stop_token_ids:
            reason = "stop_token"
        elif len(session.tokens) - session.turn_start >= session.sampling.max_new_tokens:
            reason = "length"
        elif len(session.tokens) >= self.max_length:
            reason = "context"
        else:
            return None
        session.paused = True
        return Turn(
            session=session.number,
            token_ids=session.tokens[session.turn_start :],
            logps=session.logps[session.turn_start :],
            stop_reason=reason,
        )


def _batches(prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts, shortest first, in batches of at most PREFILL_TOKENS padded tokens."""
    batches: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if not batches or (len(batches[-1]) + 1) * len(prompt) > PREFILL_TOKENS:
            batches.append([])
        batches[-1].append(prompt)
    return batches
