"""Why an episode ended, and what follows: is it retried, graded, counted against the policy?"""

from enum import StrEnum


class Cause(StrEnum):
    """The policy's own doing is graded and counted; a fault of the machinery is retried, then masked."""

    ANSWERED = "answered"
    """The policy gave a final answer."""
    TURNS = "turns"
    """The turns ran out."""
    TOKENS = "tokens"
    """The policy's token budget for a turn or for the context ran out."""
    FORMAT = "format"
    """Too many messages that cannot be parsed."""
    TAMPERING = "tampering"
    """The state is not what the journal's calls produce."""
    SANDBOX_LOST = "sandbox_lost"
    GRADER_FAILED = "grader_failed"
    REPLICA_FAILED = "replica_failed"
    CANCELLED = "cancelled"

    @property
    def is_infrastructure(self) -> bool:
        """True: says nothing about the policy; the episode is retried and, failing that, carries no "
        "reward."""
        return self in _INFRASTRUCTURE

    @property
    def is_graded(self) -> bool:
        """True: the verifier decides the reward. The other causes of the policy's own doing score 0."""
        return self in (Cause.ANSWERED, Cause.TAMPERING)


_INFRASTRUCTURE = frozenset({Cause.SANDBOX_LOST, Cause.GRADER_FAILED, Cause.REPLICA_FAILED, Cause.CANCELLED})
