"""Batches of a cold start: what a pass holds, and going on in the middle of one."""

import random
from itertools import islice

import pytest

from rl.cold_start import batches
from rl.transcript import Transcript


def transcripts(*lengths: int) -> list[Transcript]:
    return [Transcript(token_ids=(i,) * n, written=(True,) * n) for i, n in enumerate(lengths)]


def sizes(lengths: tuple[int, ...], tokens: int, count: int, skip: int = 0) -> list[list[int]]:
    """Which transcripts each of the first batches holds."""
    source = batches(
        transcripts(*lengths), tokens_per_batch=tokens, pad_id=99, rng=random.Random(0), skip=skip
    )
    return [sorted(batch.input_ids_BT[:, 0].tolist()) for batch in islice(source, count)]


@pytest.mark.timeout(20)
def test_lessons_that_fill_no_batch_are_one() -> None:
    assert sizes((3, 4, 5), 100, 3) == [[0, 1, 2]] * 3


def test_what_fills_no_batch_at_the_end_of_a_pass_is_left_out() -> None:
    for batch in sizes((4,) * 5, 8, 6):  # two batches of two a pass, one transcript left
        assert len(batch) == 2


def test_a_source_goes_on_where_another_stopped() -> None:
    whole = sizes((4, 5, 6, 3, 2, 4), 9, 8)
    assert sizes((4, 5, 6, 3, 2, 4), 9, 5, skip=3) == whole[3:]
    assert whole[0] != whole[3]


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no demonstrations to train on"):
        sizes((), 100, 1)
