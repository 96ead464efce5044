"""Agents of graded ability: what each lacks, and that one that lacks nothing finds the gold."""

import random
from collections.abc import Callable

import pytest

from envs.tool_server import Observation
from synthesis.gates.trial import Trial
from synthesis.general import DOMAINS, Candidate
from synthesis.graded import ABILITIES, Ability, _choose, _recall, graded_plan, look_ahead
from synthesis.solver import AllDifferent, Allow, Dearer, Problem, SumBelow, best_choice

Candidates = Callable[..., Candidate]
PRICES = {"x": 1, "y": 2, "z": 9}
TWO = Problem(
    options={"a": ("x", "y"), "b": ("x", "z")},
    constraints=(AllDifferent(name="apart", variables=("a", "b")),),
    cost={"a": {"x": 1, "y": 2}, "b": {"x": 1, "z": 9}},
)


def test_one_step_ahead_takes_the_cheapest_and_pays_for_it_later() -> None:
    assert look_ahead(TWO, 1) == {"a": "x", "b": "z"}  # 1 + 9
    assert look_ahead(TWO, 2) == {"a": "y", "b": "x"} == best_choice(TWO)  # 2 + 1


def test_what_comes_after_the_horizon_is_not_minded() -> None:
    three = Problem(
        options=dict.fromkeys("abc", ("x", "y", "z")),
        constraints=(
            Dearer(name="rising", variable="b", than="a", cost=PRICES),
            Dearer(name="rising", variable="c", than="b", cost=PRICES),
            SumBelow(name="cheap", variables=("a", "b", "c"), cost=PRICES, bound=13),
            Allow(name="y first", variable="a", options=frozenset("x"), when={"c": frozenset("z")}),
        ),
        cost={name: {option: -price for option, price in PRICES.items()} for name in "abc"},
    )
    assert best_choice(three) == {"a": "x", "b": "y", "c": "z"}
    assert look_ahead(three, 3) == best_choice(three)
    assert look_ahead(three, 2) == {"a": "y", "b": "x", "c": "x"}  # y and z go together, but nothing above z
    assert look_ahead(three, 1) == {"a": "z", "b": "x", "c": "x"}  # nothing rises above z


def test_the_blind_see_no_constraint() -> None:
    blind = Ability(blindness=1.0)
    assert _choose(TWO, ability=blind, rng=random.Random(0)) == {"a": "x", "b": "x"}


def test_rows_of_lists_are_forgotten_and_single_rows_are_not() -> None:
    rng = random.Random(0)
    for count, kept in ((0, 0), (1, 1), (2, 0), (5, 0)):
        seen = Observation(text="", error=False, rows=tuple({"n": n} for n in range(count)))
        assert len(_recall(seen, forgetting=1.0, rng=rng).rows) == kept
        assert _recall(seen, forgetting=0.0, rng=rng) == seen


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_one_that_lacks_nothing_finds_the_gold(candidate: Candidates, domain: str) -> None:
    made = candidate(domain, DOMAINS[domain].levels[3])
    plan = graded_plan(DOMAINS[domain], made.draft, made.image, Ability(), seed=1)
    assert plan == made.task.gold


@pytest.mark.parametrize("domain", ["warehouse", "courses", "retail"])
def test_every_ability_answers_and_none_is_told_the_gold(candidate: Candidates, domain: str) -> None:
    made = candidate(domain, DOMAINS[domain].levels[-1])
    for ability in (*ABILITIES.values(), Ability(forgetting=1.0), Ability(blindness=1.0)):
        plan = graded_plan(DOMAINS[domain], made.draft, made.image, ability, seed=1)
        assert graded_plan(DOMAINS[domain], made.draft, made.image, ability, seed=1) == plan
    lost = graded_plan(DOMAINS[domain], made.draft, made.image, Ability(forgetting=1.0), seed=1)
    assert Trial(made).score(lost) == 0.0
