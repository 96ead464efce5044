"""Small faults in a clause's SQL, as a hurried author makes them: a bound off by one, `and` for `or`, a test
forgotten, a text compared loosely.
"""

import re
from collections.abc import Iterator

MAX_MUTANTS = 8
_TOKEN = re.compile(
    r"(?P<text>'(?:[^']|'')*')|(?P<quoted>\"[^\"]*\")|(?P<compare><>|!=|>=|<=|[<>=])"
    r"|(?P<number>(?<![\w.])\d+(?:\.\d+)?(?![\w.]))|(?P<word>\b(?:AND|OR|NOT)\b)",
    re.IGNORECASE,
)
_SWAPS = {">=": ">", "<=": "<", ">": ">=", "<": "<=", "<>": "NOT LIKE", "!=": "NOT LIKE", "=": "LIKE"}


def sql_mutants(sql: str) -> Iterator[tuple[str, str]]:
    """(name, SQL) of at most `MAX_MUTANTS` mutants, spread over the whole clause."""
    found = [each for token in _TOKEN.finditer(sql) for each in _mutants_at(sql, token)]
    step = max(1, -(-len(found) // MAX_MUTANTS))
    yield from found[::step]


def _mutants_at(sql: str, token: re.Match[str]) -> Iterator[tuple[str, str]]:
    text = token[0]
    replacements: tuple[str, ...] = ()
    if token["compare"]:
        replacements = (_SWAPS[text],)
    elif token["number"] and text not in ("0", "1"):  # those are `SELECT 1` and its like
        number = float(text) if "." in text else int(text)
        replacements = (str(number + 1), str(number - 1))
    elif token["word"]:
        replacements = ({"and": "OR", "or": "AND", "not": ""}[text.lower()],)
    elif token["text"] and len(text) > 2 and not text.startswith("'$."):
        replacements = ("''",)
    for new in replacements:
        line = f"{text} as {new or 'nothing'} at {token.start()}"
        yield line, sql[: token.start()] + f" {new} " + sql[token.end() :]
