"""The tool server: what it refuses, that a refusal changes nothing, and that its journal is a chain."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Task
from envs.tool_server import GENESIS, ToolServer, chain_hash, observe_effects, replay
from envs.tools import Param, Tool, Write, json_schema
from envs.world import image_hash, open_image

MakeTask = Callable[..., Task]


def test_a_query_gives_its_rows_as_text(task: Task, image: bytes) -> None:
    observation = ToolServer(image, task.tools).call(Call(tool="look", arguments={"item": "apple"}))
    assert (observation.text, observation.error, observation.rows) == ("3", False, ({"amount": 3},))


@pytest.mark.parametrize(
    ("tool", "arguments", "text"),
    [
        ("fly", {}, "error: no tool 'fly'"),
        ("look", {}, "error: look needs item"),
        ("look", {"item": 3}, "error: item must be of type string"),
        ("look", {"item": "apple", "why": "x"}, "error: look has no parameter why; it takes item"),
        ("sell", {"item": "apple", "count": "1"}, "error: count must be of type integer"),
        ("sell", {"item": "apple", "count": True}, "error: count must be of type integer"),
        ("sell", {"item": "apple", "count": 2**63}, "error: count is out of range"),
        ("sell", {"item": "apple", "count": 4}, "error: too few apple"),
        ("sell", {"item": None, "count": 1}, "error: item must be of type string"),
    ],
)
def test_a_call_that_cannot_run_says_why_and_changes_nothing(
    task: Task, image: bytes, tool: str, arguments: dict[str, object], text: str
) -> None:
    server = ToolServer(image, task.tools)
    observation = server.call(Call(tool=tool, arguments=arguments))
    assert (observation.text, observation.error) == (text, True)
    assert server.state_hash() == image_hash(image)
    assert server.journal[-1].error


def test_statements_run_all_or_none(image: bytes) -> None:
    tool = Tool(
        name="both",
        description="The second one fails.",
        statements=("UPDATE stock SET amount = 0", "INSERT INTO stock VALUES ('apple', 1, 1)"),
    )
    server = ToolServer(image, [tool])
    assert server.call(Call(tool="both", arguments={})).error
    assert server.state_hash() == image_hash(image)


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH '/tmp/x' AS x",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_database_list",
        "VACUUM INTO '/tmp/x'",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT random()",
        "SELECT hex(randomblob(4))",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE TRIGGER t AFTER UPDATE ON stock BEGIN SELECT 1; END",
        "DROP TABLE stock",
        "UPDATE sqlite_master SET sql = ''",
        "INSERT INTO sqlite_schema VALUES (1, 1, 1, 1, 1)",
        "DETACH main",
        "REINDEX",
        "ANALYZE",
    ],
)
def test_sql_that_reaches_beyond_the_worlds_rows_is_refused(image: bytes, sql: str) -> None:
    server = ToolServer(
        image, [Tool(name="q", description="", query=sql), Tool(name="s", description="", statements=(sql,))]
    )
    for tool in ("q", "s"):
        observation = server.call(Call(tool=tool, arguments={}))
        assert observation.error, f"{sql} ran: {observation.text}"
    assert server.state_hash() == image_hash(image)


def test_a_query_that_runs_away_ends(image: bytes) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    server = ToolServer(image, [Tool(name="q", description="", query=endless)])
    assert server.call(Call(tool="q", arguments={})).error


def test_long_results_are_cut(image: bytes) -> None:
    wide = Tool(name="q", description="", query="SELECT printf('%30000s', 'x') AS x", row_format="{x}")
    text = ToolServer(image, [wide]).call(Call(tool="q", arguments={})).text
    assert text.endswith("[cut: 10000 characters]")
    assert len(text) < 20_100


def test_arguments_are_never_sql(task: Task, image: bytes) -> None:
    server = ToolServer(image, task.tools)
    observation = server.call(Call(tool="look", arguments={"item": "' OR 1=1 --"}))
    assert observation.text == "none"


def test_each_entry_is_chained_to_the_one_before(task: Task, image: bytes) -> None:
    server = ToolServer(image, task.tools)
    for item in ("apple", "pear", "plum"):
        server.call(Call(tool="look", arguments={"item": item}))
    previous = GENESIS
    for step, entry in enumerate(server.journal):
        assert entry.chain == chain_hash(previous, step, "look", entry.arguments, entry.result, error=False)
        previous = entry.chain
    changed = replace(server.journal[0], result="4")
    assert (
        chain_hash(GENESIS, 0, changed.tool, changed.arguments, changed.result, changed.error)
        != changed.chain
    )


def test_a_journal_played_again_gives_the_same_journal_and_state(task: Task, image: bytes) -> None:
    first, again = ToolServer(image, task.tools), ToolServer(image, task.tools)
    calls = [Call(tool="sell", arguments={"item": "apple", "count": n}) for n in (1, 9, 2)]
    for call in [*calls, Call(tool="\ud800", arguments={"x": [float("inf")], "\udfff": "\ud800"})]:
        first.call(call)
    replay(again, first.journal)
    assert again.journal == first.journal
    assert again.state_hash() == first.state_hash()


def test_servers_share_nothing(task: Task, image: bytes) -> None:
    first, second = ToolServer(image, task.tools), ToolServer(image, task.tools)
    first.call(Call(tool="sell", arguments={"item": "apple", "count": 1}))
    assert second.call(Call(tool="look", arguments={"item": "apple"})).text == "3"


def test_observed_effects_are_what_sqlite_sees(task: Task, image: bytes) -> None:
    sell = task.tools[1]
    reads, writes = observe_effects(image, sell, {"item": "apple", "count": 1})
    assert (reads, writes) == ({"stock"}, {Write(table="stock", operation="update", columns=("amount",))})
    liar = Tool(name="liar", description="", statements=("DELETE FROM stock WHERE item = 'pear'",))
    assert observe_effects(image, liar, {})[1] == {Write(table="stock", operation="delete")}


def test_an_image_that_is_no_database_is_one_line() -> None:
    with pytest.raises(ValueError, match="not a readable SQLite database"):
        open_image(b"not a database at all, but long enough to look at" * 20)


def test_a_tools_schema_names_its_parameters() -> None:
    tool = Tool(name="t", description="d", parameters=(Param(name="p", description="x", enum=("a", "b")),))
    assert json_schema(tool) == {
        "name": "t",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"p": {"type": "string", "description": "x", "enum": ["a", "b"]}},
            "required": ["p"],
            "additionalProperties": False,
        },
    }
