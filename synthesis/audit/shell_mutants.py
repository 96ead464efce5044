"""Damaged solution scripts: statements dropped, repeated, swapped, cut off, a number or a word changed."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

_NUMBER = re.compile(r"(?<![\w.$])\d{1,9}(?![\w.])")
_WORD = re.compile(r"(?<=['\"])[A-Za-z][A-Za-z0-9_ ]{2,}(?=['\"])")


def script_mutants(statements: Sequence[str], limit: int) -> list[tuple[str, str]]:
    """At most `limit` of (what was done, the script), evenly spread; each differs from the script."""
    whole = "".join(statements)
    made = {text: operator for operator, text in _made(list(statements)) if text != whole}
    found = [(operator, text) for text, operator in made.items()]
    if len(found) <= limit:
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def _made(statements: list[str]) -> Iterator[tuple[str, str]]:
    acting = [index for index, text in enumerate(statements) if _acts(text)]
    for index in acting:
        rest = [*statements[:index], *statements[index + 1 :]]
        shown = " ".join(statements[index].split())[:60]
        yield f"statement dropped: {shown}", "".join(rest)
        yield f"statement repeated: {shown}", "".join([*statements[: index + 1], *statements[index:]])
        yield f"stopped before: {shown}", "".join(statements[:index])
        for operator, text in _changed(statements[index]):
            yield f"{operator}: {shown}", "".join([*statements[:index], text, *statements[index + 1 :]])
    for first, second in pairwise(acting):
        swapped = list(statements)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        yield f"statements swapped: {' '.join(statements[first].split())[:60]}", "".join(swapped)


def _acts(statement: str) -> bool:
    lines = [line.strip() for line in statement.splitlines()]
    code = [line for line in lines if line and not line.startswith("#")]
    return bool(code) and not (len(code) == 1 and re.match(r"(set|echo|:|true|cd)\b(?!.*>)", code[0]))


def _changed(statement: str) -> Iterator[tuple[str, str]]:
    numbers = list(_NUMBER.finditer(statement))
    for match in numbers[-2:]:
        text = f"{statement[: match.start()]}{int(match[0]) + 1}{statement[match.end() :]}"
        yield "number off by one", text
    words = list(_WORD.finditer(statement))
    for match in words[-1:]:
        yield "word changed", f"{statement[: match.end()]}x{statement[match.end() :]}"
