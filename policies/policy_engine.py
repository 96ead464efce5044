"""What plays episodes sees of a policy, whoever serves it."""

from collections.abc import Sequence
from typing import Protocol

from policies.engine import SessionRecord, Turn
from policies.model.sampling import Sampling


class PolicyEngine(Protocol):
    """Sessions of token ids; not thread-safe. `policies.engine.Engine`, in this process, says what each call
    does; `policies.replicas.ReplicaPool` is the other one.
    """

    def open(self, prompt_ids: Sequence[int], *, seed: int, sampling: Sampling) -> int: ...

    def room(self, session: int) -> int: ...

    def extend(self, session: int, token_ids: Sequence[int]) -> None: ...

    def step(self) -> list[Turn]: ...

    def close(self, session: int) -> SessionRecord: ...
