"""Weights on their way from the learner to the replicas: numbered, and proved to be what is served.

One update carries the whole state, buffers such as the router's correction bias included. Three proofs, each
for what the one before cannot see: every tensor arrived as it was published; the replica's own tensors have
the same checksums; and the log-probabilities that it now computes of a fixed text, the canary, are the
learner's. A replica that fails one goes back to what it served before, and the error says which.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from policies.model.decoder import WorldsmithForCausalLM

CANARY_TOLERANCE = 1e-3
"""Nats a token, of a replica in float32."""
ROUNDED_CANARY_TOLERANCE = 0.2
"""Nats a token, of one whose matrices are rounded to bfloat16."""
CANARY_OUTLIERS = 0.1
"""The share of the canary's tokens that may differ by more: where two places of nearly equal score are at the
edge of a selection, rounding decides which is attended to.
"""
_CANARY_BEYOND = 32
"""The canary is so many tokens longer than what sparse attention selects."""
_CANARY_LONGEST = 256


class WeightsMismatchError(RuntimeError):
    """What a replica holds or computes is not what was published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A fixed text of T tokens and the learner's log-probabilities [T - 1] of all but the first, nats."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """version counts the learner's steps; tensors by state-dict name, the router's correction biases among
    them.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
    checksums: Mapping[str, str]
    canary: Canary


class Serving(Protocol):
    """An engine in this process."""

    model: WorldsmithForCausalLM
    version: int
    dtype: torch.dtype
    """What it computes in; `model` is as it was published."""

    def load_weights(self, state_dict: Mapping[str, Tensor], *, version: int) -> None: ...

    def score(self, token_ids: Sequence[int]) -> list[float]: ...


def checksum(array: np.ndarray) -> str:
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def publish(model: WorldsmithForCausalLM, *, version: int) -> PublishedWeights:
    """A copy of the model's whole state."""
    tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    return PublishedWeights(
        version=version,
        tensors=tensors,
        checksums={name: checksum(array) for name, array in tensors.items()},
        canary=sing_canary(model),
    )


def sing_canary(model: WorldsmithForCausalLM) -> Canary:
    """The same tokens for every model of the same sizes."""
    config = model.config
    length = max(2, min(config.index_topk + _CANARY_BEYOND, _CANARY_LONGEST, config.max_position_embeddings))
    rng = random.Random(length)
    token_ids = [rng.randrange(config.vocab_size) for _ in range(length)]
    training = model.training
    model.eval()  # a training forward counts the experts' loads
    try:
        with torch.no_grad():
            logits = model(torch.tensor([token_ids], device=model.device)).logits[0, :-1]
    finally:
        model.train(training)
    targets = torch.tensor(token_ids[1:], device=logits.device)
    logps = logits.float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    return Canary(token_ids=tuple(token_ids), logps=tuple(logps.tolist()))


def load_published(engine: Serving, published: PublishedWeights) -> None:
    """Gives an engine in this process the weights and proves that it serves them.

    Raises WeightsMismatchError; the engine then serves what it served before.
    """
    state = verified_state(published)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    version = engine.version
    engine.load_weights(state, version=published.version)
    try:
        held = engine.model.state_dict()
        check_served(published, {name: checksum(tensor.cpu().numpy()) for name, tensor in held.items()})
        tolerance = CANARY_TOLERANCE if engine.dtype == torch.float32 else ROUNDED_CANARY_TOLERANCE
        check_canary(published, engine.score(published.canary.token_ids), tolerance)
    except WeightsMismatchError:
        engine.load_weights(before, version=version)
        raise


def verified_state(published: PublishedWeights) -> dict[str, Tensor]:
    """The tensors, after each proved to be what was published. Raises WeightsMismatchError."""
    check_arrived(published)
    return {name: torch.from_numpy(np.array(array)) for name, array in published.tensors.items()}


def check_arrived(published: PublishedWeights) -> None:
    """Raises WeightsMismatchError naming the first tensor that is not what was published."""
    if set(published.tensors) != set(published.checksums):
        odd = sorted(set(published.tensors) ^ set(published.checksums))[0]
        raise WeightsMismatchError(
            f"weights version {published.version}: {odd} has a tensor or a checksum, not both"
        )
    for name, array in published.tensors.items():
        if checksum(array) != published.checksums[name]:
            raise WeightsMismatchError(
                f"weights version {published.version}: {name} is not what was published"
            )


def check_served(published: PublishedWeights, served: Mapping[str, str]) -> None:
    """served: checksums of what the replica holds. Raises WeightsMismatchError naming the tensors."""
    wrong = sorted(name for name, value in published.checksums.items() if served.get(name) != value)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsMismatchError(
            f"weights version {published.version}: the replica holds another {', '.join(wrong[:3])}{more}"
        )


def check_canary(
    published: PublishedWeights, logps: Sequence[float], tolerance: float = CANARY_TOLERANCE
) -> None:
    """logps: of the canary's tokens, or the first of them, as the replica computes them.

    Raises WeightsMismatchError.
    """
    differences = np.abs(np.subtract(logps, published.canary.logps[: len(logps)]))
    beyond = float(np.mean(~(differences <= tolerance)))
    if beyond > CANARY_OUTLIERS:
        raise WeightsMismatchError(
            f"weights version {published.version}: the replica holds the published tensors and computes other"
            f" log-probabilities: {beyond:.0%} of the canary's tokens differ by more than {tolerance}"
            f" nats, the median by {np.median(differences):.2g}"
        )
