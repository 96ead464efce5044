"""A small tokenizer learnt from a corpus: what always stands together is one token, what varies survives
copying.

Text is cut into atoms (a word, one digit, one sign). Long stretches that many conversations share are one
piece from the start; then neighbours are merged as byte-pair encoding does, but across word borders too (as
SuperBPE, arXiv 2503.13423), and only where each predicts the other; a unigram model over the pieces (arXiv
1804.10959) finds the likeliest cut of a text. So tags, tool schemas and set phrases become single tokens,
while
names, which follow anything, stay whole and apart, and digits stay single: a price, an id or a date is
copied piece by piece and looks the same wherever it stands. What is left is spelt in bytes, so any text goes
through unchanged.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policies import chat_format

SPECIAL = (chat_format.PAD, chat_format.BOS, chat_format.EOS, chat_format.USER)
_CONTROL = re.compile(
    "(" + "|".join(map(re.escape, (*SPECIAL, chat_format.ASSISTANT + chat_format.END_THINK))) + ")"
)
_STRETCH = re.compile(r"\d|\n|[^\d\n]+")
_ATOM = re.compile("|".join(map(re.escape, chat_format.TAGS)) + r"|\d|[A-Za-z_]+|\s|.")
_TURN_ENDS = re.compile(
    f"(?<={re.escape(chat_format.END_THINK)})|(?<={re.escape(chat_format.EOS)})|(?<={re.escape(chat_format.END_CALLS)})"
)
STRETCH_SHARE = 0.1
"""A stretch between digits and line ends is one piece when at least this share of the conversations holds
it.
"""
SURE_PREDICTION = 0.95
"""A pair is merged if one half is next to the other at least this often: a name, seen in many places, never
is.
"""
MUTUAL_PREDICTION = 0.6
"""A pair is merged too if, of all uses of either half, at least this share are in the pair."""


def learn_pieces(texts: Sequence[str], *, max_pieces: int, min_share: float = 0.02) -> dict[str, int]:
    """The pieces worth a token of their own and how often each is used, most used first.

    texts: whole conversations. min_share: a pair is merged if it occurs at least this often a text on
    average; an atom is kept at a tenth of that. No piece reaches from what an environment writes into what a
    policy writes.
    """
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(_TURN_ENDS.split(text))
    stretches: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for stretch in set(_stretches(chunk)):
            stretches[stretch] += count
    common = {
        s for s, n in stretches.items() if len(s) >= 40 and "｜" not in s and n >= STRETCH_SHARE * len(texts)
    }
    sequences = [(_cut(chunk, common), count) for chunk, count in chunks.items()]
    least = max(2, round(min_share * len(texts)))
    while pairs := _pairs_to_merge(sequences, least):
        sequences = [(_merge(sequence, pairs), count) for sequence, count in sequences]
    uses: Counter[str] = Counter()
    for sequence, count in sequences:
        for piece in sequence:
            uses[piece] += count
    kept = [
        (p, n) for p, n in uses.most_common() if n * 10 >= least and len(p.encode()) > 1 and p not in SPECIAL
    ]
    return dict(kept[:max_pieces])


def _stretches(chunk: str) -> list[str]:
    parts = _CONTROL.split(chunk)
    return [s for i, part in enumerate(parts) for s in ([part] if i % 2 else _STRETCH.findall(part))]


def _cut(chunk: str, common: set[str]) -> list[str]:
    """Control tokens, common stretches, and the atoms of the rest. A tag that spans lines is one atom."""
    atoms: list[str] = []
    plain = ""
    for stretch in [*_stretches(chunk), ""]:
        if stretch and stretch not in common and not _CONTROL.fullmatch(stretch):
            plain += stretch
            continue
        atoms += _ATOM.findall(plain)
        plain = ""
        atoms += [stretch] if stretch else []
    return atoms


def _pairs_to_merge(sequences: Sequence[tuple[list[str], int]], least: int) -> dict[str, str]:
    """The pairs to merge in one pass, left to right half; no piece takes part in two of them."""
    singles: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for sequence, count in sequences:
        for piece in sequence:
            singles[piece] += count
        for pair in pairwise(sequence):
            pairs[pair] += count
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for (left, right), count in pairs.most_common():
        if count < least:
            break
        if left in taken or right in taken or not _may_merge(left, right):
            continue
        low, high = sorted((singles[left], singles[right]))
        if count >= min(SURE_PREDICTION * low, MUTUAL_PREDICTION * high):
            chosen[left] = right
            taken |= {left, right}
    return chosen


def _may_merge(left: str, right: str) -> bool:
    """Digits stay single, control tokens apart, and what a policy writes begins and ends with a piece of
    its own.
    """
    if left[-1].isdigit() or right[0].isdigit() or left in SPECIAL or right in SPECIAL:
        return False
    return not left.endswith((chat_format.END_THINK, chat_format.END_CALLS))


def _merge(sequence: Sequence[str], pairs: Mapping[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(sequence):
        piece = sequence[index]
        if index + 1 < len(sequence) and pairs.get(piece) == sequence[index + 1]:
            merged.append(piece + sequence[index + 1])
            index += 2
        else:
            merged.append(piece)
            index += 1
    return merged


def build_tokenizer(pieces: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """Control tokens, 256 bytes and the pieces with their counts, as a unigram model over bytes."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    total = sum(pieces.values()) + 1
    worst = math.log(1 / total)
    scored: dict[str, float] = dict.fromkeys(SPECIAL, 2 * worst)
    scored |= dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()), 2 * worst)
    for piece, count in pieces.items():
        scored[to_bytes.pre_tokenize_str(piece)[0][0]] = math.log(count / total)
    tokenizer = Tokenizer(models.Unigram(list(scored.items()), unk_id=0))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=chat_format.PAD,
        bos_token=chat_format.BOS,
        eos_token=chat_format.EOS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a policy directory. Raises ValueError when there is none."""
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{directory}: no tokenizer.json there; a policy is a model and its tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(directory)


def load_codec(directory: Path) -> "TextCodec":
    """The codec of a policy directory, ours or another's. Raises ValueError as `load_tokenizer`."""
    tokenizer = load_tokenizer(directory)
    ours = tokenizer.backend_tokenizer.token_to_id(chat_format.USER) is not None
    return TextCodec(tokenizer) if ours else ForeignCodec(tokenizer)


class TextCodec:
    """Text to token ids and back for one tokenizer; `stop_ids` are the tokens whose text ends a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.pad_id: int = tokenizer.backend_tokenizer.token_to_id(chat_format.PAD) or 0
        self._cut_head = lru_cache(maxsize=256)(self._cut)
        self._texts = [self._text_of(index) for index in range(len(tokenizer))]
        ends = (chat_format.EOS, chat_format.END_CALLS)
        self.stop_ids = frozenset(index for index, text in enumerate(self._texts) if text.endswith(ends))

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    def _text_of(self, index: int) -> str:
        return self.tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. What stands before the first user message, the same in many prompts, is kept once
        cut.
        """
        head, user, rest = text.partition(chat_format.USER)
        if not user:
            return self._cut(text)
        return [*self._cut_head(head), *self._cut(user + rest)]

    def _cut(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False)


class ForeignCodec(TextCodec):
    """Our text in the tokens of a model that knows none of our control tokens: they are text to it, all but
    the end of a turn, which is its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer)
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ValueError("the tokenizer names no eos_token; a turn of this model would never end")
        self._end = end
        self.stop_ids = self.stop_ids | {end}

    def encode(self, text: str) -> list[int]:
        first, *rest = text.split(chat_format.EOS)
        ids = super().encode(first)
        for part in rest:
            ids += [self._end, *super().encode(part)]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """An end of turn as our text has it."""
        if not token_ids or token_ids[-1] != self._end:
            return super().decode(token_ids)
        return super().decode(token_ids[:-1]) + chat_format.EOS
