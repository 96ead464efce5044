"""What selectors are compared on: records far back, and the source of Python's standard library.

Retrieval: a text of filler with records anywhere in it, each of another item and of one of a few colours;
then every item is asked for its colour, in another order. A record is one token, so that one layer can
answer: a question looks for the record of its item. There are more records than sparse attention may choose
places: filler can be told from records at a glance, records from each other by their items alone.

Text: the top-level modules of the running Python's library, every eighth held out, in byte-pair tokens.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from rl.cold_start import Batch

NUM_COLOURS = 8
NUM_ITEMS = 128
NUM_FILLERS = 64
QUESTIONS = NUM_COLOURS
"""The first question; colours are the first tokens, records follow questions, filler comes last."""
RECORDS = QUESTIONS + NUM_ITEMS
FILLERS = RECORDS + NUM_ITEMS * NUM_COLOURS
TRAINED_SPACINGS = (4, 8, 16, 32)
"""Tokens of text for each record; a batch has one of them."""
SPACING = 32
"""In exams, unless that takes more items than there are."""
TEXT_PIECES = 1024
HELD_OUT = 8
"""Every so manieth file."""
EXAM_SEED = 20_251


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """One held-out row. Of N targets, the columns before them and how far each reaches back."""

    batch: Batch
    columns_N: Tensor
    reach_N: Tensor
    """Retrieval: tokens from the question back to its pair. Text: tokens before the target."""


def _batch(ids: np.ndarray, weight: np.ndarray) -> Batch:
    ids_BT = torch.from_numpy(ids.astype(np.int64))
    return Batch(
        input_ids_BT=ids_BT,
        attention_mask_BT=torch.ones_like(ids_BT),
        weight_BT=torch.from_numpy(weight.astype(np.float32)),
    )


class Retrieval:
    name = "retrieval"
    vocab_size = FILLERS + NUM_FILLERS

    def train_batch(
        self, rows: int, length: int, rng: np.random.Generator, *, ask_again: bool = False
    ) -> Batch:
        """Every token counts that answers a question, no other.

        ask_again: each item is asked for as often as half of the text has room for, and not once.
        """
        items = min(NUM_ITEMS, length // int(rng.choice(TRAINED_SPACINGS)))
        times = max(1, length // (4 * items)) if ask_again else 1
        ids = np.stack([_questions(length, items, rng, times)[0] for _ in range(rows)])
        return _batch(ids, _answers(rows, length, items * times))

    def exam(self, length: int, number: int) -> Exam:
        items = min(NUM_ITEMS, length // SPACING)
        ids, distances = _questions(length, items, np.random.default_rng([EXAM_SEED, length, number]))
        return Exam(
            batch=_batch(ids[None], _answers(1, length, items)),
            columns_N=torch.arange(length - 2 * items, length, 2),
            reach_N=torch.from_numpy(distances),
        )


def _answers(rows: int, length: int, questions: int) -> np.ndarray:
    """[rows, length]: 1 where an answer stands."""
    weight = np.zeros((rows, length))
    weight[:, length - 2 * questions + 1 :: 2] = 1.0
    return weight


def _questions(
    length: int, items: int, rng: np.random.Generator, times: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A text [length] that ends with the questions, so many rounds of them, and the distance of each to its
    record.
    """
    context = length - 2 * items * times
    chosen = rng.permutation(NUM_ITEMS)[:items]
    colours = rng.integers(NUM_COLOURS, size=items)
    ids = FILLERS + rng.integers(NUM_FILLERS, size=length)
    places = rng.choice(context, items, replace=False)
    ids[places] = RECORDS + chosen * NUM_COLOURS + colours
    order = np.concatenate([rng.permutation(items) for _ in range(times)])
    asked = np.arange(context, length, 2)
    ids[asked], ids[asked + 1] = QUESTIONS + chosen[order], colours[order]
    return ids, asked - places[order]


class Text:
    name = "text"
    vocab_size = TEXT_PIECES

    def __init__(self) -> None:
        files = library_files()
        kept = [text for place, (_, text) in enumerate(files) if place % HELD_OUT]
        self._tokenizer = _learn_pieces(kept)
        self._train = np.concatenate([self._encode(text) for text in kept])
        self._held_out = [self._encode(text) for _, text in files[::HELD_OUT]]

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text).ids, dtype=np.int32)

    def train_batch(
        self, rows: int, length: int, rng: np.random.Generator, *, ask_again: bool = False
    ) -> Batch:
        """Stretches of the training files, one after the other, from anywhere; every token counts."""
        if ask_again:
            raise ValueError("a text asks no questions")
        starts = rng.integers(len(self._train) - length, size=rows)
        ids = np.stack([self._train[start : start + length] for start in starts])
        return _batch(ids, np.ones(ids.shape))

    def exam(self, length: int, number: int) -> Exam:
        """A stretch of one held-out file: first the beginning of each that is long enough, then what follows.

        Raises IndexError when there are not so many.
        """
        longest = max(map(len, self._held_out))
        stretches = [
            ids[start : start + length]
            for start in range(0, longest - length + 1, length)
            for ids in self._held_out
            if start + length <= len(ids)
        ]
        columns = torch.arange(length - 1)
        return Exam(
            batch=_batch(stretches[number][None], np.ones((1, length))),
            columns_N=columns,
            reach_N=columns + 1,
        )


def library_files() -> list[tuple[str, str]]:
    """Name and text of each top-level module of this Python's library, but for what its build wrote."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_sysconfigdata"))
    return [(path.name, path.read_text(encoding="utf-8", errors="replace")) for path in paths]


def _learn_pieces(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_PIECES,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


Task = Retrieval | Text
