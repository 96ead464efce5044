"""GV: damage to the verifier is noticed, and what is not noticed is told apart from what cannot be."""

from collections import Counter
from collections.abc import Callable

import pytest

from envs.task import Clause, FrameRule
from synthesis.gates import solution_mutants, verifier_mutants
from synthesis.gates.solution_mutants import Mutant
from synthesis.gates.sql_mutants import MAX_MUTANTS, sql_mutants
from synthesis.gates.tampering import journal_attacks
from synthesis.gates.trial import Trial
from synthesis.general import Candidate

Retail = Callable[..., Candidate]
Changed = Callable[..., Trial]


def fates(trial: Trial) -> dict[str, str]:
    return {outcome.mutant: outcome.fate for outcome in verifier_mutants.outcomes(trial)}


def test_every_clause_of_a_sound_task_is_missed(retail: Retail) -> None:
    made = retail(allowed=True)
    found = fates(Trial(made))
    for clause in made.task.clauses:
        assert found[f"without {clause.name!r}"] == "killed"
    assert found["without the frame"] == found["every row of orders in the frame"] == "killed"
    assert found["without the replay"] == "killed"


def test_a_clause_that_decides_nothing_is_redundant_where_all_guesses_were_tried(
    retail: Retail, changed: Changed
) -> None:
    made = retail(allowed=True)
    idle = Clause(name="idle", part="goal", sql="SELECT 1 FROM orders WHERE status = 'lost'")
    found = fates(changed(made, clauses=(*made.task.clauses, idle)))
    assert found["without 'idle'"] == "redundant"


def test_a_weak_suite_is_refused(retail: Retail, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no mutants of the solution, only the enumeration of guesses notices damage to goal and frame."""
    trial = Trial(retail(allowed=True))
    monkeypatch.setattr(
        solution_mutants, "mutants", lambda trial: iter([Mutant(operator="none", calls=(), answer="x")])
    )
    record = verifier_mutants.check(trial)
    assert not record.passed
    assert record.value < verifier_mutants.MIN_KILLED
    assert "missed: " in record.evidence


def test_a_replay_that_no_attack_needs_is_missed(retail: Retail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged journal whose state the clauses refuse anyway says nothing about the replay."""
    trial = Trial(retail(allowed=True))
    assert verifier_mutants._replay_needed(trial)
    undone = [attack for attack in journal_attacks(trial) if "not in the state" in attack[0]]
    monkeypatch.setattr(verifier_mutants, "journal_attacks", lambda trial: undone)
    assert not verifier_mutants._replay_needed(trial)
    assert fates(trial)["without the replay"] == "missed"


def test_large_guess_spaces_leave_mutants_open(candidate: Retail) -> None:
    counts = Counter(fates(Trial(candidate("trip", 5))).values())
    assert counts["killed"] > 10
    assert counts["open"] > 0
    assert counts["redundant"] == 0


def test_a_mutant_that_sqlite_refuses_does_not_count(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    fragile = Clause(
        name="fragile", part="goal", sql="SELECT 1 FROM orders WHERE days BETWEEN 900 AND 1000"
    )  # with OR for AND this is no SQL
    names = list(fates(changed(made, clauses=(*made.task.clauses, fragile))))
    assert "fragile: 900 as 901 at 40" in names
    assert not any("AND as OR" in name and name.startswith("fragile") for name in names)


def test_the_frames_rules_matter_on_their_own(retail: Retail, changed: Changed) -> None:
    """A frame that lets every order change is found by one write more, before it is ever mutated."""
    made = retail(allowed=True)
    keys = [key for (_, column), held in Trial(made).columns.items() if column == "order_id" for key in held]
    loose = tuple(FrameRule(table="orders", key=key, columns=("refund", "status")) for key in keys)
    assert not solution_mutants.check(changed(made, frame=loose)).passed


def test_sql_is_mutated_at_each_operator_and_never_inside_a_text() -> None:
    sql = "SELECT 1 FROM t WHERE a >= 30 AND NOT b = 'x >= 3 AND y'"
    assert dict(sql_mutants(sql)) == {
        ">= as > at 24": "SELECT 1 FROM t WHERE a  >  30 AND NOT b = 'x >= 3 AND y'",
        "30 as 31 at 27": "SELECT 1 FROM t WHERE a >=  31  AND NOT b = 'x >= 3 AND y'",
        "30 as 29 at 27": "SELECT 1 FROM t WHERE a >=  29  AND NOT b = 'x >= 3 AND y'",
        "AND as OR at 30": "SELECT 1 FROM t WHERE a >= 30  OR  NOT b = 'x >= 3 AND y'",
        "NOT as nothing at 34": "SELECT 1 FROM t WHERE a >= 30 AND    b = 'x >= 3 AND y'",
        "= as LIKE at 40": "SELECT 1 FROM t WHERE a >= 30 AND NOT b  LIKE  'x >= 3 AND y'",
        "'x >= 3 AND y' as '' at 42": "SELECT 1 FROM t WHERE a >= 30 AND NOT b =  '' ",
    }
    assert len(dict(sql_mutants(" AND ".join(f"a < {n}" for n in range(10, 40))))) <= MAX_MUTANTS
