"""G9, G13 to G16, G21: right variants score, conditions bind, nothing leaks, no short cut, twins hold."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Clause, Message, Plan
from synthesis.gates import false_negatives, leaks, necessity, provenance, shortcuts, twins
from synthesis.gates.renaming import Renaming, renamings
from synthesis.gates.trial import Trial
from synthesis.general import Candidate

Retail = Callable[..., Candidate]
Changed = Callable[..., Trial]


def test_right_variants_score(retail: Retail, candidate: Retail) -> None:
    for made in (retail(allowed=True, level=4), retail(allowed=False), candidate("trip", 3)):
        names = [name for name, _, _ in false_negatives.variants(Trial(made))]
        assert {"every read twice", "looked around first", "looked around afterwards"} <= set(names)
        assert false_negatives.check(Trial(made)).value == 1.0


@pytest.mark.parametrize(
    ("sql", "variant"),
    [
        ("SELECT 1 FROM journal GROUP BY tool, arguments HAVING count(*) > 1", "every read twice"),
        ("SELECT 1 FROM journal WHERE error", "a read that fails"),
        ("SELECT 1 WHERE (SELECT count(*) FROM journal) > 3", "looked around first"),
    ],
)
def test_a_verifier_that_wants_the_golds_own_steps_is_refused(
    retail: Retail, changed: Changed, sql: str, variant: str
) -> None:
    made = retail(allowed=True)
    strict = Clause(name="as the gold did it", part="policy", sql=sql)
    record = false_negatives.check(changed(made, clauses=(*made.task.clauses, strict)))
    assert not record.passed
    assert variant in record.evidence


def test_two_writes_that_leave_no_order_may_be_swapped(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    orders = [
        key for (_, column), keys in Trial(made).columns.items() if column == "order_id" for key in keys
    ]
    cancels = tuple(Call(tool="cancel_order", arguments={"order_id": key}) for key in orders[:2])
    trial = changed(made, gold=Plan(calls=cancels, answer="done"))
    assert "independent writes swapped" in [name for name, _, _ in false_negatives.variants(trial)]


def test_a_clause_that_never_decides_is_not_shown_to_bind(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    assert necessity.check(Trial(made)).value == 1.0
    idle = Clause(name="decorative", part="goal", sql="SELECT 1 FROM users WHERE 0")
    record = necessity.check(changed(made, clauses=(*made.task.clauses, idle)))
    assert record.value == len(made.task.clauses) / (len(made.task.clauses) + 1)
    assert "not shown: decorative" in record.evidence
    assert not necessity.check(changed(made, clauses=(idle,))).passed


def test_two_clauses_that_say_the_same_are_neither_of_them_needed(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    twins_of_clauses = [replace(clause, name=f"{clause.name} again") for clause in made.task.clauses]
    record = necessity.check(changed(made, clauses=(*made.task.clauses, *twins_of_clauses)))
    assert (record.passed, record.value) == (False, 0.0)


def test_a_cell_that_the_prompt_gives_away_is_a_leak(candidate: Retail, changed: Changed) -> None:
    made = candidate("trip", 1)
    (slot,) = made.task.guess.slots
    gold = next(option for option in slot.options if f'"{option}"' in made.task.gold.answer)
    prompt = made.task.prompt
    assert leaks.check(Trial(made)).passed

    def telling(text: str) -> Trial:
        return changed(made, prompt=(*prompt, Message(role="user", content=text)))

    assert gold in leaks.check(telling(f"I hear {gold} is fine.")).evidence
    assert leaks.check(telling(f"There are {', '.join(slot.options)}.")).passed
    assert "hash" in leaks.check(telling(made.task.world.content_hash)).evidence
    assert "verifier" in leaks.check(telling("The verifier reads the table.")).evidence


def test_a_choice_that_only_the_right_word_names_is_a_leak(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=False)
    assert leaks.check(Trial(made)).passed
    system = replace(made.task.prompt[0], content="Answer refused.")
    assert not leaks.check(changed(made, prompt=(system, made.task.prompt[1]))).passed


def test_who_always_acts_is_right_where_acting_is(retail: Retail) -> None:
    for allowed in (True, False):
        evidence = shortcuts.check(Trial(retail(allowed=allowed))).evidence
        assert f"always acts: {allowed:d}" in evidence
        assert f"always refuses: {not allowed:d}" in evidence


def test_the_first_option_is_right_where_it_is_the_golds(candidate: Retail) -> None:
    found = set()
    for index in range(16):
        made = candidate("trip", 1, index)
        (slot,) = made.task.guess.slots
        is_first = f'"{slot.options[0]}"' in made.task.gold.answer
        assert f"first option: {is_first:d}" in shortcuts.check(Trial(made)).evidence
        found.add(is_first)
    assert found == {True, False}


def test_short_cuts_that_may_never_score_are_refused(
    retail: Retail, candidate: Retail, changed: Changed
) -> None:
    made = retail(allowed=True)
    lax = Clause(name="x", part="goal", sql="SELECT 1 WHERE 0")
    record = shortcuts.check(changed(made, clauses=(lax,)))
    assert not record.passed
    assert "always acts and always refuses" in record.evidence
    trip = candidate("trip", 1)
    (slot,) = trip.task.guess.slots
    gold = next(option for option in slot.options if f'"{option}"' in trip.task.gold.answer)
    telling = (trip.task.prompt[0], Message(role="user", content=f"Not {gold}?"))
    assert "copies the prompt" in shortcuts.check(changed(trip, prompt=telling)).evidence.split(";")[0]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_renamed_twin_keeps_its_verdict(retail: Retail, allowed: bool) -> None:
    trial = Trial(retail(allowed=allowed, level=4))
    renaming = next(iter(renamings(trial)))
    assert set(renaming.names) == set(renaming.names.values())
    assert all(old != new for old, new in renaming.names.items())
    assert twins.renamed_fault(trial, renaming) is None


def test_a_renaming_maps_whole_words_and_literals_alone() -> None:
    renaming = Renaming("changed places", {"KA": "LB", "LB": "KA"})
    assert renaming.text("order KA, KAB, AKA and LB") == "order LB, KAB, AKA and KA"
    clause = Clause(name="KA", part="goal", sql="SELECT KA FROM orders WHERE order_id = 'KA'")
    assert renaming.clause(clause).sql == "SELECT KA FROM orders WHERE order_id = 'LB'"
    assert renaming.value({"a": ("KA", 1)}) == {"a": ("LB", 1)}


def test_a_verifier_that_goes_by_a_name_has_no_renamed_twin(candidate: Retail, changed: Changed) -> None:
    made = candidate("trip", 1)
    ((column, value),) = json.loads(made.task.gold.answer)[0].items()
    sql = f"SELECT 1 FROM answer WHERE hex({column}) <> '{value.encode().hex().upper()}'"
    by_name = Clause(name="by its name", part="answer", sql=sql)
    record = twins.check(changed(made, clauses=(*made.task.clauses, by_name)))
    assert not record.passed
    assert "the renamed gold scores 0 (answer: by its name)" in record.evidence


def test_where_the_order_of_names_matters_they_get_new_endings(candidate: Retail, changed: Changed) -> None:
    """The verifier asks for a name from some letter on: in their new places names have others."""
    made = candidate("trip", 1)
    ((column, value),) = json.loads(made.task.gold.answer)[0].items()
    sql = f"SELECT 1 FROM answer WHERE unicode({column}) <> {ord(value[0])}"
    letter = Clause(name="by its letter", part="answer", sql=sql)
    trial = changed(made, clauses=(*made.task.clauses, letter))
    places, endings = renamings(trial)
    assert (twins.renamed_fault(trial, places) is None) == (places.names[value][0] == value[0])
    assert twins.renamed_fault(trial, endings) is None
    assert twins.check(trial).passed


def test_a_planner_that_knows_names_by_heart_is_refused(
    candidate: Retail, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = candidate("trip", 1)
    monkeypatch.setattr(twins, "demonstrate", lambda *_: made.task.gold)
    record = twins.check(Trial(made))
    assert not record.passed
    assert "the planner answers" in record.evidence


def test_a_condition_turned_over_makes_the_gold_wrong(retail: Retail) -> None:
    record = twins.check(Trial(retail(allowed=True)))
    assert "turned over 'the answer is done': the gold scores 0, another plan 1" in record.evidence


def test_a_twin_whose_own_gold_fails_is_refused(retail: Retail) -> None:
    """What violates another condition too is not right where only the first is turned over."""
    trial = Trial(retail(allowed=True))
    clause = next(clause for clause in trial.task.clauses if clause.part == "answer")
    (verdict,) = trial.verdicts((), ["refused"])
    assert len(verdict.faults) > 1
    (probe,) = [probe for probe in trial.probes() if probe.answer == "refused" and not probe.calls]
    _, fault = twins._check_negated(trial, clause, probe)
    assert fault == f"with {clause.name!r} turned over the gold scores 0, the twin's gold 0"


def test_a_changed_fact_changes_the_answer(retail: Retail) -> None:
    evidence = [twins.check(Trial(retail(allowed=allowed))).evidence for allowed in (True, False)]
    assert any("gives another answer" in each for each in evidence)


def test_provenance_refuses_another_source(retail: Retail, changed: Changed) -> None:
    made = retail(allowed=True)
    assert provenance.check(Trial(made)).passed
    other = replace(made.task.provenance, seed=made.task.provenance.seed + 1)
    assert not provenance.check(changed(made, provenance=other)).passed
    stranger = replace(made.task.provenance, generator="somebody else's")
    assert "different sources" in provenance.check(changed(made, provenance=stranger)).evidence
    old = replace(made.task.provenance, generator_version=0)
    world = replace(made.task.world, generator_version=0)
    assert "version 0" in provenance.check(changed(made, provenance=old, world=world)).evidence


def test_provenance_counts_what_was_played(retail: Retail) -> None:
    trial = Trial(retail(allowed=True))
    before = provenance.check(trial).value
    trial.score(Plan(calls=(), answer="done"))
    assert provenance.check(trial).value == before + 1
