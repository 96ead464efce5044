"""The verifier's parts, each by a play of a world of two rows that breaks that part alone."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import pytest

from envs.task import AnswerSpec, Call, Clause, Task
from envs.tool_server import JournalEntry, ToolServer, chain_hash
from envs.verifier import Episode, Grader, GraderError, judge, judge_answers, judge_snapshots, parse_answer
from envs.world import open_image

LOOK = Call(tool="look", arguments={"item": "apple"})
SELL = Call(tool="sell", arguments={"item": "apple", "count": 1})


def play(task: Task, image: bytes, calls: Sequence[Call], answer: str = "done") -> Episode:
    server = ToolServer(image, task.tools)
    for call in calls:
        server.call(call)
    episode = Episode(initial=image, final=server.snapshot(), journal=tuple(server.journal), answer=answer)
    server.close()
    return episode


def edited(image: bytes, sql: str) -> bytes:
    db = open_image(image)
    db.execute(sql)
    content = db.serialize()
    db.close()
    return content


def rechained(entries: Sequence[JournalEntry]) -> tuple[JournalEntry, ...]:
    chain, found = "0" * 64, []
    for step, e in enumerate(entries):
        chain = chain_hash(chain, step, e.tool, e.arguments, e.result, e.error)
        found.append(replace(e, step=step, chain=chain))
    return tuple(found)


def test_the_right_play_scores_one(task: Task, image: bytes) -> None:
    verdict = judge(task, play(task, image, [LOOK, SELL]))
    assert (verdict.score, verdict.reason) == (1.0, "all parts hold")


def test_a_goal_that_is_not_reached_scores_zero_by_the_goal_alone(task: Task, image: bytes) -> None:
    verdict = judge(task, play(task, image, [LOOK]))
    assert verdict.score == 0.0
    assert (verdict.goal, verdict.frame, verdict.policy, verdict.answer) == (False, True, True, True)


def test_a_change_outside_the_frame_scores_zero_by_the_frame_alone(task: Task, image: bytes) -> None:
    pear = Call(tool="sell", arguments={"item": "pear", "count": 1})
    verdict = judge(task, play(task, image, [LOOK, SELL, pear]))
    assert verdict.reason == "frame: stock row pear: amount changed"
    assert (verdict.score, verdict.goal, verdict.frame, verdict.policy) == (0.0, True, False, True)


def test_a_grader_says_of_each_play_what_a_fresh_one_says(task: Task, image: bytes) -> None:
    """It keeps the first rows, and the last snapshot that it loaded, from one play to the next."""
    pear = Call(tool="sell", arguments={"item": "pear", "count": 1})
    plays = [play(task, image, calls) for calls in ([LOOK, SELL], [LOOK, SELL, pear], [LOOK], [LOOK, pear])]
    plays.append(replace(plays[0], journal=plays[2].journal))  # the same snapshot after another journal
    grader = Grader(task, image)
    for order in (0, 1, 0, 2, 3, 4, 1, 1, 2, 0, 4, 0, 3, 2, 2):
        episode = plays[order]
        fresh = Grader(task, image)
        assert grader.grade_play(episode, ["done", "refused"]) == fresh.grade_play(
            episode, ["done", "refused"]
        )
        fresh.close()
    grader.close()


def test_a_broken_policy_scores_zero_by_the_policy_alone(task: Task, image: bytes) -> None:
    verdict = judge(task, play(task, image, [SELL, LOOK]))
    assert (verdict.score, verdict.goal, verdict.frame, verdict.policy) == (0.0, True, True, False)


def test_a_wrong_answer_scores_zero_by_the_answer_alone(task: Task, image: bytes) -> None:
    verdict = judge(task, play(task, image, [LOOK, SELL], "refused"))
    assert (verdict.score, verdict.goal, verdict.frame, verdict.policy, verdict.answer) == (
        0.0,
        True,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE stock SET price = 1 WHERE item = 'pear'",
        "INSERT INTO stock VALUES ('plum', 1, 1)",
        "DELETE FROM stock WHERE item = 'pear'",
        "CREATE TRIGGER t AFTER UPDATE ON stock BEGIN DELETE FROM stock; END",
        "CREATE VIEW v AS SELECT item FROM stock",
        "DROP TABLE stock",
    ],
)
def test_an_edit_behind_the_servers_back_is_tampering(task: Task, image: bytes, sql: str) -> None:
    right = play(task, image, [LOOK, SELL])
    verdict = judge(task, replace(right, final=edited(right.final, sql)))
    assert verdict.tampering
    assert verdict.score == 0.0


def test_the_goal_state_without_the_call_is_tampering(task: Task, image: bytes) -> None:
    forged = replace(
        play(task, image, [LOOK]), final=edited(image, "UPDATE stock SET amount = 2 WHERE item = 'apple'")
    )
    assert judge(task, forged).tampering


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", bytes(512)])
def test_a_damaged_last_snapshot_is_tampering(task: Task, image: bytes, content: bytes) -> None:
    assert judge(task, replace(play(task, image, [LOOK, SELL]), final=content)).tampering


def test_a_broken_chain_is_tampering(task: Task, image: bytes) -> None:
    right = play(task, image, [LOOK, SELL])
    verdict = judge(task, replace(right, journal=right.journal[1:]))
    assert verdict.reason == "tampering: the journal's chain breaks at step 0"


def test_a_forged_result_is_tampering_even_with_its_chain_computed(task: Task, image: bytes) -> None:
    right = play(task, image, [LOOK, SELL])
    forged = rechained([replace(right.journal[0], result="9"), right.journal[1]])
    assert judge(task, replace(right, journal=forged)).reason.startswith("tampering: step 0 (look)")


def test_an_entry_that_no_call_can_have_left_is_tampering_and_not_a_failure(task: Task, image: bytes) -> None:
    right = play(task, image, [LOOK, SELL])
    forged = rechained([replace(right.journal[0], arguments="{"), right.journal[1]])
    assert judge(task, replace(right, journal=forged)).reason == "tampering: a call cannot be read"


def test_equal_states_with_other_bytes_are_no_tampering(task: Task, image: bytes) -> None:
    right = play(task, image, [LOOK, SELL])
    repacked = edited(right.final, "VACUUM")
    db = sqlite3.connect(":memory:")
    db.deserialize(repacked)
    db.execute("UPDATE stock SET amount = amount")
    db.commit()
    assert db.serialize() != right.final
    assert judge(task, replace(right, final=db.serialize())).score == 1.0
    db.close()


def test_many_answers_are_graded_as_one_by_one(task: Task, image: bytes) -> None:
    episode = play(task, image, [LOOK, SELL])
    answers = ["refused", "done", "", "Done. ", "undone"]
    alone = [judge(task, replace(episode, answer=answer)) for answer in answers]
    assert judge_answers(task, episode, answers) == alone
    assert [verdict.score for verdict in alone] == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_many_snapshots_are_graded_as_one_by_one(task: Task, image: bytes) -> None:
    episode = play(task, image, [LOOK, SELL])
    finals = [image, episode.final, b"", edited(episode.final, "DELETE FROM stock")]
    assert judge_snapshots(task, episode, finals) == [
        judge(task, replace(episode, final=final)) for final in finals
    ]


def test_a_grader_serves_many_plays_without_mixing_them(task: Task, image: bytes) -> None:
    grader = Grader(task, image)
    plays = [
        play(task, image, calls)
        for calls in ([SELL, LOOK], [LOOK, SELL], [LOOK], [LOOK, SELL, SELL], [LOOK, SELL])
    ]
    assert [grader.grade_play(each, ["done"])[0].score for each in plays] == [0.0, 1.0, 0.0, 0.0, 1.0]
    grader.close()


def test_a_clause_that_cannot_run_is_not_a_score(task: Task, image: bytes) -> None:
    broken = replace(task, clauses=(Clause(name="odd", part="goal", sql="SELECT nothing FROM nowhere"),))
    with pytest.raises(GraderError, match="clause odd"):
        judge(broken, play(task, image, [LOOK, SELL]))


@pytest.mark.parametrize(
    "sql", ["DELETE FROM answer", "UPDATE stock SET amount = 2", "PRAGMA user_version", "VACUUM"]
)
def test_a_clause_may_only_read(task: Task, image: bytes, sql: str) -> None:
    greedy = replace(task, clauses=(Clause(name="writes", part="goal", sql=sql), *task.clauses))
    with pytest.raises(GraderError, match=r"clause writes: (not authorized|authorization denied)"):
        judge(greedy, play(task, image, [LOOK]))


@pytest.mark.parametrize("table", ["json_each", "json_tree"])
def test_a_clause_over_a_table_function_is_refused_and_does_not_end_the_process(
    task: Task, image: bytes, table: str
) -> None:
    sql = f"SELECT 1 FROM (SELECT 1 AS n) a JOIN {table}('[0, 1]') t WHERE t.value > 5"
    odd = replace(task, clauses=(Clause(name="odd", part="goal", sql=sql),))
    with pytest.raises(GraderError, match="clause odd"):
        judge(odd, play(task, image, [LOOK]))


ROWS = AnswerSpec(kind="rows", columns=("a", "b"), num_rows=1)


@pytest.mark.parametrize(
    "answer",
    [
        "", "[]", "{}", "[1]", "null",
        '[{"a": "x"}]', '[{"a": "x", "b": 1}]', '[{"a": "x", "b": "y", "c": "z"}]',
        '[{"a": "x", "b": "y"}, {"a": "x", "b": "y"}]', "[" * 10_000,
        '[{"a": "x", "b": "' + "y" * 30_000 + '"}]',
        '[{"a": "x", "b": "\\ud800"}]',
    ],
)  # fmt: skip
def test_answers_of_another_form_are_refused(answer: str) -> None:
    assert parse_answer(ROWS, answer) is None


def test_a_name_that_sqlite_cannot_hold_does_not_empty_the_answer(task: Task, image: bytes) -> None:
    """An empty answer table would break no clause of the kind `SELECT 1 FROM answer WHERE ...`."""
    clause = Clause(name="is apple", part="answer", sql="SELECT 1 FROM answer WHERE item <> 'apple'")
    asking = replace(task, answer=AnswerSpec(kind="rows", columns=("item",)), clauses=(clause,), frame=())
    episode = play(task, image, [])
    scores = [
        v.score for v in judge_answers(asking, episode, ['[{"item": "\\ud800"}]', '[{"item": "apple"}]'])
    ]
    assert scores == [0.0, 1.0]


def test_a_failed_calls_arguments_cannot_stop_the_grading(task: Task, image: bytes) -> None:
    """A clause reads the journal's arguments as JSON: what an agent sends must never make that fail."""
    reads = Clause(
        name="reads",
        part="policy",
        sql="SELECT 1 FROM journal WHERE json_extract(arguments, '$.item') = 'kiwi'",
    )
    strict = replace(task, clauses=(*task.clauses, reads))
    deep: object = "x"
    for _ in range(3000):
        deep = [deep]
    odd = [
        Call(tool="look", arguments={"item": float("nan")}),
        Call(tool="look", arguments={"item": deep}),
        Call(tool="l\ud800", arguments={"\ud800": "\ud800"}),
        Call(tool="look", arguments={"item": "\ud800"}),
        Call(tool="look", arguments={"item": "apple", "more": 2**80}),
        Call(tool="look", arguments={"item": "nul\0"}),
    ]
    verdict = judge(strict, play(strict, image, [*odd, LOOK, SELL]))
    assert (verdict.score, verdict.reason) == (1.0, "all parts hold")


def test_the_journal_is_json_that_names_each_call(task: Task, image: bytes) -> None:
    entry = play(task, image, [SELL]).journal[0]
    assert (entry.tool, json.loads(entry.arguments), entry.error) == (
        "sell",
        {"item": "apple", "count": 1},
        False,
    )
