"""Each gate lets a sound candidate pass and refuses one with the fault that it looks for.

Then the attacks themselves are measured: every damage to the verifier must be noticed by some gate, or be
proved to change no verdict over the whole guess space.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import envs.verifier
from envs.task import Call, Clause, FrameRule, GuessSpace, Plan, Task
from envs.tools import Write
from synthesis.gates import (
    determinism,
    floor,
    frame,
    gold,
    grounding,
    guessing,
    schema,
    solution_mutants,
    tampering,
    uniqueness,
)  # fmt: skip
from synthesis.gates.grounding import appears
from synthesis.gates.suite import GATES, run_gates
from synthesis.gates.trial import Trial
from synthesis.general import DOMAINS, Candidate
from synthesis.solver import Problem

Candidates = Callable[..., Candidate]
LEVELS = [(name, level) for name, domain in DOMAINS.items() for level in domain.levels[:5]]


def changed(candidate: Candidate, **fields: object) -> Trial:
    return Trial(replace(candidate, task=replace(candidate.task, **fields)))


def retail(candidate: Candidates, *, allowed: bool, level: int = 2) -> Candidate:
    made = (candidate("retail", level, index) for index in range(40))
    return next(each for each in made if bool(each.task.frame) == allowed)


@pytest.mark.parametrize(("domain", "level"), LEVELS)
def test_sound_candidates_pass_every_gate(candidate: Candidates, domain: str, level: int) -> None:
    records = run_gates(candidate(domain, level))
    assert [record.gate for record in records] == list(GATES)
    assert [record for record in records if not record.passed] == []


def test_the_first_gate_that_refuses_ends_the_trial(candidate: Candidates) -> None:
    made = candidate("retail", 1)
    records = run_gates(replace(made, task=replace(made.task, max_turns=1)))
    assert [record.gate for record in records if not record.passed] == [records[-1].gate]
    assert len(records) < len(GATES)


def test_schema_refuses_two_tools_of_one_name(candidate: Candidates) -> None:
    tools = candidate("retail", 1).task.tools
    assert not schema.check(changed(candidate("retail", 1), tools=(*tools, tools[0]))).passed


def test_determinism_refuses_another_seed_and_another_world(candidate: Candidates) -> None:
    made, other = candidate("trip", 1, 0), candidate("trip", 1, 1)
    assert not determinism.check(Trial(replace(made, image=other.image))).passed
    assert not determinism.check(changed(made, max_turns=99)).passed


def test_gold_refuses_an_error_a_wrong_gold_and_too_few_turns(candidate: Candidates) -> None:
    made = retail(candidate, allowed=True)
    calls = made.task.gold.calls
    bad = Call(tool="get_order_details", arguments={"order_id": "O1"})
    assert (
        "there is no order O1"
        in gold.check(changed(made, gold=Plan(calls=(bad, *calls), answer="done"))).evidence
    )
    assert not gold.check(changed(made, gold=Plan(calls=calls[:-1], answer="done"))).passed
    assert not gold.check(changed(made, max_turns=2)).passed


def test_floor_refuses_a_task_that_doing_nothing_solves(candidate: Candidates) -> None:
    refused = retail(candidate, allowed=False)
    assert floor.check(Trial(refused)).passed
    without_policy = tuple(clause for clause in refused.task.clauses if clause.part != "policy")
    record = floor.check(changed(refused, clauses=without_policy))
    assert (record.passed, record.value) == (False, 1.0)


def test_guessing_counts_exactly(candidate: Candidates) -> None:
    for level in (1, 4, 5):
        trial = Trial(candidate("trip", level))
        size = math.prod(len(slot.options) for slot in trial.task.guess.slots)
        assert guessing.check(trial).value == 1 / size
    assert (
        guessing.check(Trial(candidate("retail", 2))).value == 1 / 30
    )  # six orders, each: refuse, cancel, 3 refunds


def test_guessing_refuses_a_verifier_that_accepts_more_than_the_solver_proves(candidate: Candidates) -> None:
    made = candidate("trip", 1)
    in_city = made.task.clauses[:1]
    assert not guessing.check(changed(made, clauses=in_city)).passed


def test_guessing_refuses_a_coin_toss(candidate: Candidates) -> None:
    made = retail(candidate, allowed=True)
    two = GuessSpace(plans=(made.task.gold, Plan(calls=(), answer="refused")))
    assert not guessing.check(changed(made, guess=two)).passed


def test_solution_mutants_refuse_a_verifier_that_lets_one_live(candidate: Candidates) -> None:
    made = retail(candidate, allowed=True)
    order = made.task.frame[0].key
    loose = (*made.task.frame, *(
        FrameRule(table="orders", key=key, columns=("status", "refund"))
        for (_, column), keys in Trial(made).columns.items() if column == "order_id"
        for key in keys if key != order
    ))  # fmt: skip
    record = solution_mutants.check(changed(made, frame=loose))
    assert not record.passed
    assert "one write more" in record.evidence


def test_solution_mutants_cover_the_operators(candidate: Candidates) -> None:
    acting = {mutant.operator for mutant in solution_mutants.mutants(Trial(retail(candidate, allowed=True)))}
    assert acting >= {
        "write dropped", "write repeated", "stopped before a write", "other row", "other choice",
        "other tool",
        "write then undone", "one write more", "acted first", "never looked", "no answer",
    }  # fmt: skip
    answering = {mutant.operator for mutant in solution_mutants.mutants(Trial(candidate("trip", 2)))}
    assert answering >= {
        "other cell",
        "swapped cells",
        "missing row",
        "extra row",
        "missing key",
        "extra key",
    }


def test_a_mutant_that_leaves_the_golds_state_and_answer_is_equivalent(candidate: Candidates) -> None:
    """Without the clause against doing it twice, a repeated return is no other deed."""
    made = retail(candidate, allowed=True)
    kept = tuple(clause for clause in made.task.clauses if clause.name != "nothing was changed twice")
    record = solution_mutants.check(changed(made, clauses=kept))
    assert "write repeated" not in record.evidence.partition("killed")[0]
    assert not record.evidence.endswith(" 0 equivalent")


def test_tampering_is_attacked_in_every_way(candidate: Candidates) -> None:
    trial = Trial(retail(candidate, allowed=True))
    names = [name for name, _ in tampering.snapshot_attacks(trial)] + [
        name for name, _ in tampering.journal_attacks(trial)
    ]
    assert len(names) == len(set(names)) == 15
    assert all(content != trial.gold.final for _, content in tampering.snapshot_attacks(trial))


def test_frame_refuses_a_wider_a_narrower_and_an_undeclared_one(candidate: Candidates) -> None:
    made = retail(candidate, allowed=True)
    rule = made.task.frame[0]
    assert frame.check(Trial(made)).passed
    assert not frame.check(changed(made, frame=())).passed
    assert not frame.check(changed(made, frame=(replace(rule, columns=(*rule.columns, "item")),))).passed
    assert not frame.check(changed(made, frame=(rule, replace(rule, key="O1")))).passed
    silent = tuple(replace(tool, writes=()) for tool in made.task.tools)
    assert "declares writes []" in frame.check(changed(made, tools=silent)).evidence
    boastful = tuple(
        replace(tool, writes=(*tool.writes, Write(table="users", operation="delete")))
        for tool in made.task.tools
    )
    assert not frame.check(changed(made, tools=boastful)).passed
    blind = tuple(replace(tool, reads=("users",)) for tool in made.task.tools)
    assert "declares reads" in frame.check(changed(made, tools=blind)).evidence


def test_grounding_refuses_a_literal_from_nowhere(candidate: Candidates) -> None:
    made = candidate("retail", 3)
    assert grounding.check(Trial(made)).passed
    blind = Plan(
        calls=made.task.gold.calls[-1:], answer=made.task.gold.answer
    )  # an order id that nothing showed
    assert not grounding.check(changed(made, gold=blind)).passed
    trip = candidate("trip", 1)
    assert not grounding.check(changed(trip, gold=Plan(calls=(), answer=trip.task.gold.answer))).passed


def test_a_literal_appears_as_a_whole_word() -> None:
    assert appears("O12", "orders: O12, O13")
    assert not appears("O12", "orders: O123")
    assert not appears("12", "O12")


def test_uniqueness_refuses_two_answers_none_and_another_than_the_golds(candidate: Candidates) -> None:
    made = candidate("trip", 1)
    problem = made.draft.problem
    assert uniqueness.check(Trial(made)).passed
    for constraints in ((), (*problem.constraints, replace(problem.constraints[0], options=frozenset()))):
        draft = replace(made.draft, problem=Problem(options=problem.options, constraints=constraints))
        assert not uniqueness.check(Trial(replace(made, draft=draft))).passed
    ((column, gold_value),) = json.loads(made.task.gold.answer)[0].items()
    other = next(option for option in problem.options[column] if option != gold_value)
    moved = replace(problem.constraints[0], options=frozenset({other}))
    draft = replace(made.draft, problem=Problem(options=problem.options, constraints=(moved,)))
    assert "the solver says" in uniqueness.check(Trial(replace(made, draft=draft))).evidence


def refusing_gates(candidate: Candidate) -> list[str]:
    """The gates on behaviour alone: determinism would notice any edit."""
    trial = Trial(candidate)
    behaviour = ("G2", "G3", "G4", "G5", "G6")
    return [gate for gate in behaviour if not GATES[gate](trial).passed]


def accepted_guesses(task: Task, made: Candidate) -> list[float]:
    trial = Trial(replace(made, task=task))
    if task.guess.plans:
        return [trial.score(plan) for plan in task.guess.plans]
    return trial.scores((), guessing.all_answers(trial))


def clause_mutants(task: Task) -> Iterator[tuple[str, Task]]:
    for index, clause in enumerate(task.clauses):
        rest = (*task.clauses[:index], *task.clauses[index + 1 :])
        yield f"without {clause.name}", replace(task, clauses=rest)
        true = Clause(name=clause.name, part=clause.part, sql="SELECT 1 WHERE 0")
        yield f"{clause.name} always holds", replace(task, clauses=(*rest, true))


# One cell has so many answers to enumerate that it takes two minutes.
CLAUSE_CELLS = [
    pytest.param(*cell, marks=[pytest.mark.slow] if cell == ("courses", 4) else [])
    for cell in LEVELS
    if cell[1] <= 4
]


@pytest.mark.parametrize(("domain", "level"), CLAUSE_CELLS)
def test_every_dropped_clause_is_noticed_or_changes_nothing(
    candidate: Candidates, domain: str, level: int
) -> None:
    noticed = 0
    for index in range(4):
        made = candidate(domain, level, index)
        for name, task in clause_mutants(made.task):
            if refusing_gates(replace(made, task=task)):
                noticed += 1
            else:
                assert accepted_guesses(task, made) == accepted_guesses(made.task, made), (
                    f"{made.task.task_id} {name}"
                )
    assert noticed > 0


@pytest.mark.parametrize(
    ("mutation", "domains"),
    [
        ("frame", ["retail"]),
        ("replay", ["retail", "trip"]),
        ("results", ["retail", "trip"]),
        ("state", ["retail", "trip"]),
    ],
)
def test_a_verifier_without_a_part_is_noticed(
    candidate: Candidates, monkeypatch: pytest.MonkeyPatch, mutation: str, domains: list[str]
) -> None:
    """Trip has no writing tool: there the replay alone guards the rows, and the frame is a second lock."""
    replayed = envs.verifier._Replay
    if mutation == "frame":
        monkeypatch.setattr(envs.verifier, "_stray_changes", lambda db, frame, known: [])
    elif mutation == "replay":
        monkeypatch.setattr(replayed, "_play", lambda self, journal: None)
        monkeypatch.setattr(replayed, "state_fault", any_readable)
    elif mutation == "results":
        monkeypatch.setattr(envs.verifier, "_chain_fault", lambda journal: None)
        monkeypatch.setattr(
            replayed, "_play", lambda self, journal: envs.verifier.replay(self._server, journal)
        )
    else:
        monkeypatch.setattr(replayed, "state_fault", any_readable)
        monkeypatch.setattr(envs.verifier, "_stray_changes", lambda db, frame, known: [])
    for domain in domains:
        made = retail(candidate, allowed=True) if domain == "retail" else candidate(domain, 2)
        assert refusing_gates(made), f"{domain}: no gate misses the {mutation}"


def any_readable(replay: object, final: bytes) -> str | None:
    return None if envs.verifier._image_state(final) else "not a database"


def test_a_verifier_that_always_accepts_is_noticed(
    candidate: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs.verifier, "_is_violated", lambda db, name, sql: False)
    for domain in DOMAINS:
        assert set(refusing_gates(candidate(domain, 2))) >= {"G3", "G5"}
