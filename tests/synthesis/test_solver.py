"""The oracle against brute force over small problems of every kind of constraint."""

import itertools
import random

import pytest

from synthesis.solver import AllDifferent, Allow, AllowAny, Constraint, Dearer, Problem, SumBelow, solve

Assignment = dict[str, str]


def holds(constraint: Constraint, chosen: Assignment) -> bool:
    if isinstance(constraint, AllDifferent):
        values = [chosen[name] for name in constraint.variables]
        return len(set(values)) == len(values)
    if isinstance(constraint, Dearer):
        return constraint.cost[chosen[constraint.variable]] > constraint.cost[chosen[constraint.than]]
    if not all(chosen[name] in options for name, options in constraint.when.items()):
        return True
    if isinstance(constraint, Allow):
        return chosen[constraint.variable] in constraint.options
    if isinstance(constraint, AllowAny):
        return any(chosen[name] in constraint.options for name in constraint.variables)
    return sum(constraint.cost[chosen[name]] for name in constraint.variables) < constraint.bound


def brute_force(problem: Problem) -> tuple[list[Assignment], int]:
    found: list[tuple[int, Assignment]] = []
    for values in itertools.product(*problem.options.values()):
        chosen = dict(zip(problem.options, values, strict=True))
        if all(holds(constraint, chosen) for constraint in problem.constraints):
            found.append((sum(costs[chosen[name]] for name, costs in problem.cost.items()), chosen))
    best = min((cost for cost, _ in found), default=0)
    return [chosen for cost, chosen in found if cost == best], best


def draw_problem(rng: random.Random) -> Problem:
    options = {name: tuple("pqrs"[: rng.randint(2, 4)]) for name in "abc"}
    cost = {option: rng.randint(1, 6) for option in "pqrs"}

    def some() -> frozenset[str]:
        return frozenset(rng.sample("pq", rng.randint(1, 2)) + rng.sample("rs", rng.randint(0, 1))) - {"s"}

    def subset(name: str) -> frozenset[str]:
        return some() & frozenset(options[name])

    kinds: list[Constraint] = [
        Allow(name="x", variable="a", options=some()),
        Allow(name="x", variable="b", options=some(), when={"a": subset("a"), "c": subset("c")}),
        AllowAny(name="x", variables=("a", "b"), options=some(), when={"c": subset("c")}),
        AllDifferent(name="x", variables=("a", "b", "c")),
        SumBelow(
            name="x", variables=("a", "b"), cost=cost, bound=rng.randint(3, 12), when={"c": subset("c")}
        ),
        Dearer(name="x", variable="a", than="c", cost=cost),
    ]
    costs = (
        {name: {option: cost[option] for option in options[name]} for name in "ab"}
        if rng.random() < 0.5
        else {}
    )
    return Problem(options=options, constraints=tuple(rng.sample(kinds, rng.randint(1, 4))), cost=costs)


@pytest.mark.parametrize("seed", range(60))
def test_the_solver_finds_what_brute_force_finds(seed: int) -> None:
    problem = draw_problem(random.Random(seed))
    expected, best = brute_force(problem)
    found = solve(problem, limit=100)
    assert found.proved
    assert found.complete
    assert sorted(map(str, map(sorted, map(dict.items, found.optima)))) == sorted(
        map(str, map(sorted, map(dict.items, expected)))
    )
    if expected and problem.cost:
        assert found.objective == best


def test_a_limit_leaves_the_rest_unproved() -> None:
    found = solve(Problem(options={"a": ("p", "q", "r")}, constraints=()), limit=2)
    assert len(found.optima) == 2
    assert not found.complete


def test_a_problem_without_a_solution_is_proved_empty() -> None:
    never = Allow(name="never", variable="a", options=frozenset())
    found = solve(Problem(options={"a": ("p", "q")}, constraints=(never,)))
    assert (found.optima, found.proved, found.complete) == ((), True, True)
