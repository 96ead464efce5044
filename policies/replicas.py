"""Sessions over replicas that may die: `policies.policy_engine.PolicyEngine` with vLLM engines in Ray actors.

The pool keeps every session's tokens itself. When a replica dies, its requests go on elsewhere from the same
prefix; another is started in its place and serves only once it has proved that it holds the current weights.
"""

import json
import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from policies.engine import SessionRecord, Turn
from policies.model.config import read_config
from policies.model.sampling import Sampling
from policies.sessions import Session
from policies.token_limits import checked_answer, checked_prompt
from policies.vllm_replica import BLOCK_SIZE, Request, Sampled, VllmConfig, VllmReplica
from policies.weights import PublishedWeights, WeightsMismatchError

OUR_MODEL_TYPE = "deepseek_v32"
OTHERS_CACHE_BYTES = 1 << 30
COLLECT_S = 5.0
"""A replica without news answers after so long."""
MAX_FAILED_STARTS = 2
"""So many in a row, and no replica will start here."""
_log = logging.getLogger(__name__)


class ReplicasFailedError(RuntimeError):
    """No replica can be had: infrastructure, not a user's mistake."""


@dataclass(eq=False, slots=True)
class _Replica:
    actor: Any
    starting: Any
    """What is awaited before it serves: its start, then the weights. None: it serves."""
    sessions: dict[str, Session] = field(default_factory=dict)
    """What it was asked for, by the request's name."""
    collecting: Any = None


class ReplicaPool:
    """`PolicyEngine` over `num_replicas` vLLM engines, each in a Ray actor."""

    def __init__(
        self, config: VllmConfig, *, num_replicas: int, stop_token_ids: Collection[int], gpus: float = 0
    ) -> None:
        self.max_length = config.max_length
        self.version = 0
        self._config = config
        self._gpus = gpus
        self._stops = frozenset(stop_token_ids)
        self._weights: ray.ObjectRef | None = None
        self._sessions: dict[int, Session] = {}
        self._waiting: deque[Session] = deque()
        self._opened = 0
        self._failed_starts = 0
        self._replicas = [self._start() for _ in range(num_replicas)]

    # --- sessions ---

    def open(self, prompt_ids: Sequence[int], *, seed: int, sampling: Sampling) -> int:
        """Begin a session; it starts when a replica has a slot for it."""
        vocab = self._config.vocab_size
        prompt = checked_prompt(prompt_ids, vocab_size=vocab, max_length=self.max_length)
        session = Session(number=self._opened, seed=seed, sampling=sampling, max_length=self.max_length)
        session.begin(prompt, version=self.version)
        self._opened += 1
        self._sessions[session.number] = session
        self._waiting.append(session)
        return session.number

    def room(self, session: int) -> int:
        """How many tokens `extend` may still give this session."""
        return self.max_length - 1 - len(self._get(session).tokens)

    def extend(self, session: int, token_ids: Sequence[int]) -> None:
        """Give a paused session the environment's tokens; it goes on in the next step."""
        state = self._get(session)
        if not state.paused:
            raise ValueError(f"session {session} is still generating; extend it after its Turn")
        vocab, room = self._config.vocab_size, self.room(session)
        tokens = checked_answer(
            token_ids, session=session, vocab_size=vocab, room=room, max_length=self.max_length
        )
        state.begin(tokens, version=self.version)
        self._waiting.append(state)

    def step(self) -> list[Turn]:
        """Waits until a turn ends or a second passes; the turns that ended."""
        self._dispatch()
        awaited = {replica.starting: replica for replica in self._replicas if replica.starting is not None}
        awaited |= {r.collecting: r for r in self._replicas if r.starting is None and r.sessions}
        if not awaited:
            return []
        done, _ = ray.wait(list(awaited), num_returns=1, timeout=1.0)
        turns: list[Turn] = []
        for ref in done:
            replica = awaited[ref]
            turns += self._started(replica) if replica.starting is not None else self._collected(replica)
        return turns

    def close(self, session: int) -> SessionRecord:
        """End a session at any time; its record."""
        state = self._get(session)
        del self._sessions[session]
        if state in self._waiting:
            self._waiting.remove(state)
        for replica in self._replicas:
            if replica.sessions.pop(state.name, None) is not None:
                replica.actor.abort.remote([state.name])
        return state.record()

    def _get(self, session: int) -> Session:
        try:
            return self._sessions[session]
        except KeyError:
            raise ValueError(f"session {session} is not open") from None

    # --- replicas ---

    def load(self, published: PublishedWeights) -> None:
        """Every replica takes the weights and proves that it serves them.

        Raises WeightsMismatchError saying which tensor; all replicas then serve what they served before.
        """
        before, ref = self._weights, ray.put(published)
        self._wait_for_starts()
        loads = [(replica, replica.actor.load.remote(ref)) for replica in self._replicas]
        mismatch: WeightsMismatchError | None = None
        self._weights = ref
        for replica, loading in loads:
            try:
                ray.get(loading)
            except RayTaskError as error:
                if not isinstance(error.cause, WeightsMismatchError):
                    raise
                mismatch = error.cause
            except RayActorError:
                self._replace(replica)
        if mismatch is not None:
            self._weights = before
            self._go_back()
            raise mismatch
        self.version = published.version
        self._wait_for_starts()

    def versions(self) -> list[int]:
        """The weights version that each replica serves, asked of each."""
        self._wait_for_starts()
        return ray.get([replica.actor.version.remote() for replica in self._replicas])

    def processes(self) -> list[int]:
        """The process of each replica's actor."""
        self._wait_for_starts()
        return ray.get([replica.actor.process.remote() for replica in self._replicas])

    def shutdown(self) -> None:
        closing = [replica.actor.close.remote() for replica in self._replicas]
        ray.wait(closing, num_returns=len(closing), timeout=10)
        for replica in self._replicas:
            ray.kill(replica.actor)

    def _start(self) -> _Replica:
        actor: Any = ray.remote(num_cpus=0 if self._gpus else 1, num_gpus=self._gpus)(VllmReplica)
        actor = actor.remote(self._config)
        return _Replica(actor=actor, starting=actor.start.remote(self._weights_list()))

    def _weights_list(self) -> list[ray.ObjectRef]:
        return [] if self._weights is None else [self._weights]

    def _dispatch(self) -> None:
        """Gives waiting sessions to the replicas with the most free slots."""
        serving = [replica for replica in self._replicas if replica.starting is None]
        shares: dict[int, list[Request]] = {}
        stops = sorted(self._stops)
        while self._waiting and serving:
            place = min(range(len(serving)), key=lambda index: len(serving[index].sessions))
            if len(serving[place].sessions) >= self._config.slots:
                break
            session = self._waiting.popleft()
            request = session.request(stops)
            serving[place].sessions[request.name] = session
            shares.setdefault(place, []).append(request)
        for place, requests in shares.items():
            replica = serving[place]
            replica.actor.submit.remote(requests)
            if replica.collecting is None:
                replica.collecting = replica.actor.collect.remote(COLLECT_S)

    def _started(self, replica: _Replica) -> list[Turn]:
        try:
            ray.get(replica.starting)
        except RayActorError:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise ReplicasFailedError(
                    f"a vLLM replica died while it started, {self._failed_starts} times in a row"
                ) from None
            return self._replace(replica)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ValueError | WeightsMismatchError):
                raise cause from None
            raise ReplicasFailedError(f"a vLLM replica did not start: {_last_line(error)}") from None
        self._failed_starts = 0
        replica.starting = None
        return []

    def _collected(self, replica: _Replica) -> list[Turn]:
        try:
            news: list[Sampled] = ray.get(replica.collecting)
        except (RayActorError, RayTaskError) as error:
            _log.warning("a vLLM replica died: %s", _last_line(error))
            return self._replace(replica)
        turns: list[Turn] = []
        for sampled in news:
            session = replica.sessions.get(sampled.name)
            if session is None:
                continue  # it was closed meanwhile
            if sampled.ended:
                del replica.sessions[sampled.name]
            turn = session.add(sampled, self._stops)
            if turn is not None:
                turns.append(turn)
        replica.collecting = replica.actor.collect.remote(COLLECT_S) if replica.sessions else None
        return turns

    def _replace(self, replica: _Replica) -> list[Turn]:
        """Starts another in a dead one's place; its sessions wait, with what they have, for whichever serves.

        The turns of those given up.
        """
        ray.kill(replica.actor)
        turns: list[Turn] = []
        for session in replica.sessions.values():
            turn = session.lost()
            if turn is None:
                self._waiting.append(session)
            else:
                turns.append(turn)
        self._replicas[self._replicas.index(replica)] = self._start()
        return turns

    def _wait_for_starts(self) -> None:
        while starting := [replica for replica in self._replicas if replica.starting is not None]:
            done, _ = ray.wait([r.starting for r in starting], num_returns=1, timeout=1.0)
            for replica in starting:
                if replica.starting in done:
                    self._started(replica)

    def _go_back(self) -> None:
        """After a mismatch: those that took the new weights take the old ones again."""
        for replica in list(self._replicas):
            if replica.starting is not None or self._weights is None:
                self._replace(replica)  # it starts with the old weights
                continue
            try:
                ray.get(replica.actor.load.remote(self._weights))
            except (RayActorError, RayTaskError):
                self._replace(replica)


def vllm_config(
    policy: str, *, slots: int, max_length: int, threads: int = 1, record_selected: bool = False
) -> VllmConfig:
    """How a policy directory is served: by our plugin if it is one of ours, else by vLLM's own class.

    Raises ValueError, one line, for a directory that is no model, or one that vLLM cannot serve.
    """
    path = Path(policy) / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model_type = fields["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a model's config.json; give a model directory") from None
    ours = model_type == OUR_MODEL_TYPE
    return VllmConfig(
        policy=policy,
        ours=ours,
        slots=slots,
        max_length=max_length,
        vocab_size=_vocab_size(fields),
        threads=threads,
        kv_bytes=_cache_bytes(Path(policy), slots, max_length) if ours else OTHERS_CACHE_BYTES,
        record_selected=record_selected,
    )


def _vocab_size(fields: dict[str, Any]) -> int | None:
    """A model of several kinds of input has its language model's under `text_config`; None: not told."""
    inner = fields.get("text_config")
    found = fields.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return found if isinstance(found, int) else None


def _cache_bytes(directory: Path, slots: int, max_length: int) -> int:
    """Room for every slot's longest session and a few prefixes more."""
    config = read_config(directory)
    if config.token_selector == "lsh":
        raise ValueError(
            f"{directory}: token_selector 'lsh' keeps hashes that vLLM's cache has no place for;"
            " serve it with rollout.engine: in_process"
        )
    row = config.kv_lora_rank + config.qk_rope_head_dim + config.index_head_dim
    return 4 * row * config.num_hidden_layers * (slots + 4) * (max_length + BLOCK_SIZE)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]
