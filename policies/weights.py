"""Weights on their way from the learner to the replicas: numbered, with a checksum a tensor, buffers
included.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.model.decoder import WorldsmithForCausalLM


class WeightsMismatchError(RuntimeError):
    """The tensors that arrived are not the ones that were published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """version counts the learner's steps; tensors by state-dict name, the router's correction biases among
    them.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
    checksums: Mapping[str, str]


def checksum(array: np.ndarray) -> str:
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def publish(model: WorldsmithForCausalLM, *, version: int) -> PublishedWeights:
    """A copy of the model's whole state."""
    tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    return PublishedWeights(
        version=version, tensors=tensors, checksums={name: checksum(array) for name, array in tensors.items()}
    )


def verified_state(published: PublishedWeights) -> dict[str, Tensor]:
    """The tensors, after each proved to be what was published. Raises WeightsMismatchError naming the first
    that is not.
    """
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
    return {name: torch.from_numpy(np.array(array)) for name, array in published.tensors.items()}
