"""Levels raised step by step: one world, harder dials, tools that only grow, and a lineage."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from envs.task import GateRecord
from envs.tools import Tool
from synthesis.certificate import certify_candidate, check_task
from synthesis.corpus import CorpusTask
from synthesis.domains import airline_raised, clinic_round, rooms_event, warehouse_bundle
from synthesis.gates.suite import GATES
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.raising import Ladder, check_range, is_harder
from synthesis.toolsets import shown_by

Candidates = Callable[..., Candidate]
LADDERS = {
    "airline": airline_raised.LADDER,
    "clinic": clinic_round.LADDER,
    "rooms": rooms_event.LADDER,
    "warehouse": warehouse_bundle.LADDER,
}
ADDED = {
    "airline": {"get_extras", "get_passenger"},
    "clinic": {"find_patient_id", "get_patient"},
    "rooms": {"list_hours"},
    "warehouse": {"get_supplier"},
}
"""What the ladder adds to the toolset it begins with."""


def chain_of(hardest: Candidate) -> list[Candidate]:
    chain = [hardest]
    while chain[0].easier is not None:
        chain.insert(0, chain[0].easier)
    return chain


def tool_names(made: Candidate) -> list[str]:
    return [tool.name for tool in made.task.tools]


@pytest.mark.parametrize("domain", LADDERS)
def test_raised_tasks_share_a_world_and_keep_their_lineage(candidate: Candidates, domain: str) -> None:
    chain = chain_of(candidate(domain, max(LADDERS[domain].rungs)))
    assert [made.task.level for made in chain] == list(LADDERS[domain].rungs)
    assert len({made.image for made in chain}) == 1
    ids = [made.task.task_id for made in chain]
    assert [made.task.provenance.lineage for made in chain] == [tuple(ids[:at]) for at in range(len(ids))]
    assert len({made.task.prompt for made in chain}) == len(chain)
    golds = [made.task.gold for made in chain if made.task.answer.kind == "rows"]  # others may be refusals
    assert all(len(a.calls) <= len(b.calls) for a, b in itertools.pairwise(golds))
    assert not golds or len(golds[0].calls) < len(golds[-1].calls)


@pytest.mark.parametrize("domain", LADDERS)
@pytest.mark.parametrize("index", range(4))
def test_the_toolset_grows_by_what_the_goal_lacks_and_by_no_more(
    candidate: Candidates, domain: str, index: int
) -> None:
    chain = chain_of(candidate(domain, max(LADDERS[domain].rungs), index))
    for easier, harder in itertools.pairwise(map(tool_names, chain)):
        assert [name for name in harder if name in easier] == easier
    first, last = set(tool_names(chain[0])), set(tool_names(chain[-1]))
    assert last - first == ADDED[domain]
    for made in chain:
        called = {call.tool for call in made.task.gold.calls}
        assert called <= set(tool_names(made))
        if made.task.answer.kind == "rows":
            assert called & ADDED[domain] == set(tool_names(made)) & ADDED[domain]


@pytest.mark.parametrize("domain", LADDERS)
def test_a_raised_task_falls_with_an_easier_one(
    candidate: Candidates, monkeypatch: pytest.MonkeyPatch, domain: str
) -> None:
    first = min(LADDERS[domain].rungs)
    made = candidate(domain, first + 1)
    entry = certify_candidate(made)
    assert isinstance(entry, CorpusTask)
    assert check_task(entry) is None
    easier = made.easier
    assert easier is not None
    check = GATES["G3"]

    def refuse_easier(trial: Trial) -> GateRecord:
        return replace(check(trial), passed=trial.task.level != first)

    monkeypatch.setitem(GATES, "G3", refuse_easier)
    refused = certify_candidate(made)
    assert isinstance(refused, GateRecord)
    assert (refused.gate, refused.passed) == ("G3", False)
    fault = check_task(entry)
    assert fault is not None
    assert fault.startswith(f"gate G3 refuses {easier.task.task_id}, which it was raised from")


@dataclass(frozen=True)
class Dials:
    hops: int
    rules: int


def test_a_rung_that_is_not_harder_is_refused() -> None:
    assert is_harder(Dials(1, 1), Dials(1, 2))
    assert not is_harder(Dials(1, 1), Dials(1, 1))
    assert not is_harder(Dials(2, 1), Dials(1, 5))
    for rungs in (
        {6: Dials(1, 1), 7: Dials(1, 1)},
        {6: Dials(1, 1), 7: Dials(2, 0)},
        {6: Dials(1, 1), 8: Dials(1, 2)},
    ):
        with pytest.raises(ValueError, match="raised"):
            Ladder(rungs=rungs, needs=lambda dials: set())


def reading(name: str, *columns: str) -> Tool:
    row = " ".join(f"{{{column}}}" for column in columns)
    return Tool(name=name, description="Reads.", query="SELECT 1", row_format=row, reads=("t",))


def test_tools_are_held_back_until_a_goal_needs_what_they_show() -> None:
    a, b, both = reading("a", "x"), reading("b", "y"), reading("both", "y", "z")
    ladder = Ladder(
        rungs={1: Dials(1, 0), 2: Dials(1, 1), 3: Dials(1, 2)},
        needs=lambda dials: {"y"} if dials.rules == 1 else {"y", "z"} if dials.rules else set(),
    )
    found = [[tool.name for tool in ladder.tools((a, b, both), dials)] for dials in ladder.rungs.values()]
    assert found == [["a"], ["a", "b"], ["a", "b", "both"]]
    assert ladder.toolsets([(a, b, both)]) == ((a,), (a, b), (a, b, both))
    assert [ladder.raised_from(level) for level in (0, 1, 2, 3, 4)] == [None, None, 1, 2, None]
    assert shown_by(both) == {"y", "z"}


def test_dials_have_ends() -> None:
    check_range(Dials(1, 2), hops=(1, 3), rules=(0, 2))
    with pytest.raises(ValueError, match=r"the dial rules goes from 0 to 1, got 2"):
        check_range(Dials(1, 2), hops=(1, 3), rules=(0, 1))
