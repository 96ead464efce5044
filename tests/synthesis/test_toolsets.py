"""The smallest addition to a list of tools that gives a goal its effects."""

import pytest

from envs.tools import Tool, Write
from synthesis.toolsets import smallest_extension


def reading(name: str, *tables: str) -> Tool:
    query = f"SELECT 1 FROM {tables[0]}"
    return Tool(name=name, description="Reads.", query=query, row_format="{x}", reads=tables)


def writing(name: str, table: str, *columns: str) -> Tool:
    sets = ", ".join(f"{column} = 1" for column in columns)
    write = Write(table=table, operation="update", columns=columns)
    statement = f"UPDATE {table} SET {sets}"
    return Tool(
        name=name, description="Writes.", statements=(statement,), done="ok", reads=(table,), writes=(write,)
    )


A, B, AB, C = reading("a", "ta"), reading("b", "tb"), reading("ab", "ta", "tb"), reading("c", "tc")
W = writing("w", "tc", "x", "y")
ALL = (A, B, AB, C, W)


def names(tools: tuple[Tool, ...]) -> list[str]:
    return [tool.name for tool in tools]


def test_one_tool_that_reads_both_is_less_than_two() -> None:
    assert names(smallest_extension((C,), ALL, reads={"ta", "tb"})) == ["ab", "c"]


def test_what_is_there_already_counts() -> None:
    assert names(smallest_extension((A,), ALL, reads={"ta", "tb"})) == ["a", "b"]  # before ab, equally small
    assert names(smallest_extension((A,), ALL)) == ["a"]


def test_a_write_is_an_effect_of_its_own() -> None:
    """A tool that writes a table does not show it."""
    assert names(smallest_extension((), ALL, writes={("tc", "y")})) == ["w"]
    assert names(smallest_extension((W,), ALL, reads={"tc"})) == ["c", "w"]


def test_an_effect_that_no_tool_has_is_named() -> None:
    with pytest.raises(ValueError, match=r"needs: tz, tc\.z"):
        smallest_extension((), ALL, reads={"ta", "tz"}, writes={("tc", "z")})
