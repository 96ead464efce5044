"""What a session may be given: token ids that the model has, as many as its context has room for.

Both engines check with it, so that bad input is the same line whoever serves the policy, and is refused
before a batch or a replica that others share has seen it.
"""

from collections.abc import Sequence


def checked_prompt(token_ids: Sequence[int], *, vocab_size: int | None, max_length: int) -> list[int]:
    """A session's first tokens; one place of `max_length` is left to sample. vocab_size: None if it is not
    known.

    Raises ValueError.
    """
    tokens = _checked(token_ids, vocab_size)
    if not 0 < len(tokens) < max_length:
        raise ValueError(f"a prompt must have 1 to {max_length - 1} tokens, got {len(tokens)}")
    return tokens


def checked_answer(
    token_ids: Sequence[int], *, session: int, vocab_size: int | None, room: int, max_length: int
) -> list[int]:
    """The environment's tokens for a session that has `room` for so many. Raises ValueError."""
    tokens = _checked(token_ids, vocab_size)
    if len(tokens) > room:
        raise ValueError(
            f"session {session}: {len(tokens)} more tokens do not fit, room for {room} of max_length"
            f" {max_length}"
        )
    return tokens


def _checked(token_ids: Sequence[int], vocab_size: int | None) -> list[int]:
    tokens = [int(token) for token in token_ids]
    for token in tokens:
        if token < 0 or (vocab_size is not None and token >= vocab_size):
            known = f" of {vocab_size}" if vocab_size is not None else ""
            raise ValueError(f"token id {token} is outside the vocabulary{known}")
    return tokens
