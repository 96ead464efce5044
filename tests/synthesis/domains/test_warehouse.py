"""The warehouse: faults and their order, careless codes, parts, the desk's limit, and the cheapest bundle."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from synthesis.domains.warehouse import DOMAIN
from synthesis.domains.warehouse_bundle import LADDER, Dials, Purchase, bundle_problem
from synthesis.domains.warehouse_tools import TOOLSETS
from synthesis.domains.warehouse_world import (
    Bill,
    Offer,
    Paper,
    WarehouseWorld,
    clean_code,
    decide,
    received_pieces,
)
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care, Draft
from synthesis.solver import solve

Candidates = Callable[..., Candidate]
ByHand = Callable[[Draft], Candidate]
Careless = Callable[[Candidate, float, int], tuple[Plan, Care]]


def bill(number: int, sku: str, billed: int, unit_price: int) -> Bill:
    return Bill(bill=f"B{number}", invoice="I1", sku=sku, billed=billed, unit_price=unit_price)


def invoice(*bills: Bill) -> Draft:
    """Ordered: 20 KX41 at 10, 30 LM52 at 20. Of LM52 there came 10 and 15. The desk approves up to 400."""
    paper = Paper(
        invoice="I1",
        po="PO1",
        supplier="Dalton",
        bills=bills,
        lines=(("N1", "KX41", 20, 10), ("N2", "LM52", 30, 20)),
        receipts=(("R1", "kx-41", 20), ("R2", "LM 52", 10), ("R3", "lm52", 15)),
    )
    world = WarehouseWorld(papers=(paper,), suppliers={"Dalton": ("Brno", 20)}, offers=(), max_amount=400)
    return DOMAIN.make(4, 1, random.Random(0), TOOLSETS[0], world)


def decisions(made: Candidate) -> dict[object, str]:
    written = [
        call for call in made.task.gold.calls if call.tool.endswith("_bill") and call.tool != "get_bill"
    ]
    return {call.arguments["bill"]: str(call.arguments.get("reason", call.tool)) for call in written}


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    assert [r for r in run_gates(candidate("warehouse", level)) if not r.passed] == []


def test_codes_are_the_same_but_for_case_blanks_and_hyphens() -> None:
    assert {clean_code(code) for code in ("KX41", "kx-41", "K X 41", "Kx 41")} == {"KX41"}
    assert received_pieces([("kx-41", 5), ("KX41", 3), ("LM52", 1)]) == {"KX41": 8, "LM52": 1}


@pytest.mark.parametrize(
    ("billed", "unit_price", "decision"),
    [
        (20, 10, "approved"),
        (19, 9, "approved"),
        (21, 10, "quantity"),
        (20, 11, "price"),
        (21, 11, "quantity"),  # the first fault counts
    ],
)
def test_the_faults_and_their_order(billed: int, unit_price: int, decision: str) -> None:
    assert decide(bill(1, "KX41", billed, unit_price), {"KX41": 10}, {"KX41": 20}) == decision
    assert decide(bill(1, "ZZ99", billed, unit_price), {"KX41": 10}, {"KX41": 20}) == "unordered"


@pytest.mark.parametrize(
    ("last", "decision", "answer"),
    [
        (bill(2, "LM52", 20, 20), "approve_bill", "paid"),  # 400 is within the limit
        (bill(2, "LM52", 21, 20), "escalate_bill", "held"),
        (bill(2, "LM52", 26, 20), "quantity", "held"),  # 25 came, in two parts
        (bill(2, "LM52", 25, 21), "price", "held"),
        (bill(2, "LN52", 1, 1), "unordered", "held"),
    ],
)
def test_an_invoice_worked_by_hand(by_hand: ByHand, last: Bill, decision: str, answer: str) -> None:
    made = by_hand(invoice(bill(1, "KX41", 20, 10), last))
    assert decisions(made) == {"B1": "approve_bill", "B2": decision}
    assert made.task.gold.answer == answer
    assert Trial(made).score(made.task.gold) == 1.0
    assert round(sum(Trial(made).score(plan) for plan in made.task.guess.plans)) == 1


def test_the_desk_cannot_approve_above_its_limit(by_hand: ByHand) -> None:
    made = by_hand(invoice(bill(1, "KX41", 20, 10), bill(2, "LM52", 21, 20)))
    episode = Trial(made).play(Plan(calls=(Call(tool="approve_bill", arguments={"bill": "B2"}),), answer=""))
    assert episode.journal[0].error
    assert "B2 is above what this desk may approve" in episode.journal[0].result
    assert episode.final == episode.initial


def test_the_verifier_refuses_a_line_undone_or_overdone(by_hand: ByHand) -> None:
    made = by_hand(invoice(bill(1, "KX41", 20, 10), bill(2, "LM52", 26, 20)))
    trial, gold = Trial(made), made.task.gold
    for call in gold.calls[-2:]:
        assert trial.score(replace(gold, calls=tuple(c for c in gold.calls if c != call))) == 0.0
    escalate, approve = (
        Call(tool=f"{verb}_bill", arguments={"bill": "B2"}) for verb in ("escalate", "approve")
    )
    assert trial.score(replace(gold, calls=(*gold.calls, escalate))) == 0.0
    assert (
        trial.score(replace(gold, calls=(*gold.calls, approve))) == 1.0
    )  # 520: the desk may not, so nothing is
    assert trial.score(replace(gold, answer="paid")) == 0.0


def test_a_line_without_a_fault_cannot_be_answered(candidate: Candidates) -> None:
    made = candidate("warehouse", 1)
    (right,) = json.loads(made.task.gold.answer)
    bills = Trial(made).columns["bills", "bill"]
    words = ("quantity", "price", "approved", "")
    answers = [json.dumps([{"bill": b, "fault": f}]) for b in bills for f in words]
    scores = Trial(made).scores((), answers)
    assert [json.loads(a)[0] for a, s in zip(answers, scores, strict=True) if s] == [right]


def test_the_bundle_worked_by_hand() -> None:
    """Dalton is too slow for LM52 in 5 days, and 10 * 5 + 10 * 9 = 140 from Dalton and Bexley is the least.

    Their fees are 30 + 20 = 50, which a bound of 50 forbids.
    """
    offered = [
        Offer(offer=f"F{i}", supplier=supplier, sku=sku, price=price, days=days)
        for i, (supplier, sku, price, days) in enumerate(
            [
                ("Dalton", "KX41", 5, 3),
                ("Bexley", "KX41", 7, 3),
                ("Dalton", "LM52", 7, 9),
                ("Bexley", "LM52", 9, 3),
                ("Fulmar", "LM52", 20, 3),
            ]
        )
    ]
    fees = {"Dalton": 30, "Bexley": 20, "Fulmar": 10}

    def best(max_days: int, max_fees: int) -> tuple[int, list[str]]:
        wanted = Purchase(items=(("KX41", 10), ("LM52", 10)), max_days=max_days, max_fees=max_fees)
        found = solve(bundle_problem(wanted, offered, fees), limit=1)
        return found.objective, list(found.optima[0].values())

    assert best(5, 51) == (140, ["Dalton", "Bexley"])
    assert best(9, 51)[0] == 140  # either way round
    assert best(5, 50) == (250, ["Dalton", "Fulmar"])
    assert best(5, 40) == (270, ["Bexley", "Fulmar"])


def test_raised_purchases_grow_by_an_item_or_a_rule(candidate: Candidates) -> None:
    hardest: Candidate | None = candidate("warehouse", max(LADDER.rungs))
    chain = []
    while hardest is not None:
        chain.append(hardest)
        hardest = hardest.easier
    chain.reverse()
    asked = [dict(made.draft.goal.items) for made in chain]
    for easier, harder in itertools.pairwise(asked):
        assert easier.items() <= harder.items()
    assert [len(items) for items in asked] == [2, 2, 3, 3, 4]
    assert [len(made.task.clauses) for made in chain] == [3, 3, 3, 4, 5]


def test_dials_have_ends() -> None:
    with pytest.raises(ValueError, match=r"the dial offers goes from 2 to 6, got 7"):
        Dials(offers=7)


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, careless: Careless, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("warehouse", level, index)
        plan, care = careless(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert care.num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores
