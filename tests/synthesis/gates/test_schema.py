"""G0: impure SQL is refused wherever it stands, and tools withstand what an agent may send."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.tools import Param
from synthesis.gates import schema
from synthesis.gates.pure_sql import impure
from synthesis.gates.trial import Trial
from synthesis.general import Candidate

Retail = Callable[..., Candidate]
Changed = Callable[..., Trial]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT date('now')",
        "SELECT julianday( 'now' , 'start of day')",
        'SELECT datetime("now")',
        "SELECT strftime('%Y', ' NOW ')",
        "SELECT strftime('%Y')",
        "SELECT time()",
        "SELECT 1 WHERE due < CURRENT_TIMESTAMP",
        "SELECT * FROM t ORDER BY RANDOM ()",
        "SELECT random/* no comment hides it */()",
        "SELECT hex(randomblob(4))",
        "UPDATE t SET n = total_changes()",
        "SELECT last_insert_rowid()",
    ],
)
def test_sql_that_depends_on_the_clock_or_on_chance_is_found(sql: str) -> None:
    assert impure(sql) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT date(due, '+1 day') FROM loans",
        "SELECT 1 WHERE status = 'now'",
        "SELECT 'random()' AS text, \"current_date\" FROM t",
        "SELECT 1 -- random()",
        "SELECT random_order, changes FROM t",
        "SELECT julianday(:from_date) - julianday(due) FROM loans",
    ],
)
def test_pure_sql_is_let_through(sql: str) -> None:
    assert impure(sql) is None


def test_an_impure_clause_and_an_impure_tool_are_refused(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    assert schema.check(Trial(made)).passed
    clause = replace(made.task.clauses[0], sql="SELECT 1 WHERE date('now') < '2000-01-01'")
    record = schema.check(changed(made, clauses=(clause, *made.task.clauses[1:])))
    assert not record.passed
    assert "depends on date('now'" in record.evidence
    first, *rest = made.task.tools
    tool = replace(first, query=f"{first.query} ORDER BY random()")
    assert "random(" in schema.check(changed(made, tools=(tool, *rest))).evidence


def test_fuzzing_finds_a_tool_that_an_agent_can_crash(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    num_calls, faults = schema.fuzz(Trial(made))
    assert num_calls > 5 * len(made.task.tools)
    assert faults == []
    tools = {tool.name: tool for tool in made.task.tools}
    broken = replace(
        tools["get_user_orders"], query="SELECT 1 AS n WHERE :user_id <> 'x'", row_format="{missing}"
    )
    record = schema.check(changed(made, tools=(broken, *made.task.tools[2:])))
    assert "get_user_orders raises KeyError" in record.evidence


def test_fuzzing_finds_a_reading_tool_that_writes(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    sly = replace(
        made.task.tools[0],
        statements=("UPDATE users SET name = :name",),
        parameters=(Param(name="name", description="x"),),
        query=None,
    )
    assert "only reads changes the world" in schema.check(changed(made, tools=(sly,))).evidence
