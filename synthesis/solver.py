"""The oracle: what the right answers of a task are, by CP-SAT, with a proof.

A `Problem` says it without the verifier's SQL, so that the two are independent: variables with options, sets
of options that are allowed, allowed under a condition, or forbidden together, and costs. `solve` gives the
optimum and its proof, and every optimum up to a limit by adding a no-good cut after each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ortools.sat.python import cp_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Allow:
    """`variable` must take one of `options`; if `when` is given, only where each of its variables lies in its
    set.
    """

    name: str
    variable: str
    options: frozenset[str]
    when: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AllowAny:
    """At least one of `variables` takes one of `options`, where `when` holds."""

    name: str
    variables: tuple[str, ...]
    options: frozenset[str]
    when: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AllDifferent:
    """No two of `variables` take the same option."""

    name: str
    variables: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SumBelow:
    """The summed cost of `variables` (by `cost`) is below `bound` where `when` holds."""

    name: str
    variables: tuple[str, ...]
    cost: Mapping[str, int]
    bound: int
    when: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dearer:
    """The option of `variable` costs more than that of `than`."""

    name: str
    variable: str
    than: str
    cost: Mapping[str, int]


Constraint = Allow | AllowAny | AllDifferent | SumBelow | Dearer


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """options: per variable, in a fixed order. cost: what each option of a variable adds to the objective."""

    options: Mapping[str, tuple[str, ...]]
    constraints: tuple["Constraint", ...]
    cost: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solutions:
    """optima: every optimal assignment, up to the limit asked for; `complete` when the cut proved there are
    no more.
    """

    optima: tuple[dict[str, str], ...]
    objective: int
    proved: bool
    complete: bool


class _Model:
    def __init__(self, problem: Problem) -> None:
        self.model = cp_model.CpModel()
        self.literals = {
            name: {option: self.model.new_bool_var(f"{name}={option}") for option in options}
            for name, options in problem.options.items()
        }
        for choices in self.literals.values():
            self.model.add_exactly_one(choices.values())
        for constraint in problem.constraints:
            self._add(constraint)
        self.objective = sum(
            cost * self.literals[name][option]
            for name, costs in problem.cost.items()
            for option, cost in costs.items()
        )

    def _cost(self, variable: str, cost: Mapping[str, int]) -> cp_model.LinearExprT:
        return sum(cost[option] * literal for option, literal in self.literals[variable].items())

    def _guard(self, when: Mapping[str, frozenset[str]]) -> list[cp_model.IntVar]:
        """Literals that are all true exactly where every condition holds."""
        guards = []
        for name, options in when.items():
            guard = self.model.new_bool_var("")
            self.model.add(sum(self.literals[name][o] for o in sorted(options)) == guard)
            guards.append(guard)
        return guards

    def _add(self, constraint: Constraint) -> None:
        if isinstance(constraint, AllDifferent):
            every = sorted({option for name in constraint.variables for option in self.literals[name]})
            for option in every:
                self.model.add_at_most_one(
                    self.literals[name][option]
                    for name in constraint.variables
                    if option in self.literals[name]
                )
            return
        if isinstance(constraint, Dearer):
            self.model.add(
                self._cost(constraint.variable, constraint.cost)
                > self._cost(constraint.than, constraint.cost)
            )
            return
        guards = self._guard(constraint.when)
        if isinstance(constraint, Allow | AllowAny):
            names = (constraint.variable,) if isinstance(constraint, Allow) else constraint.variables
            allowed = [
                self.literals[n][o] for n in names for o in self.literals[n] if o in constraint.options
            ]
            self.model.add_bool_or([*allowed, *(guard.negated() for guard in guards)])
            return
        total = sum(self._cost(name, constraint.cost) for name in constraint.variables)
        self.model.add(total < constraint.bound).only_enforce_if(guards)


def best_choice(problem: Problem) -> dict[str, str]:
    """One optimum of `problem`, by variable; nothing where it has no solution."""
    optima = solve(problem, limit=1).optima
    return optima[0] if optima else {}


def solve(problem: Problem, *, limit: int = 2) -> Solutions:
    """All optima of `problem`, at most `limit`. No assignment at all gives no optima, proved."""
    built = _Model(problem)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = 30.0
    if problem.cost:
        built.model.minimize(built.objective)
    optima: list[dict[str, str]] = []
    objective = 0
    while len(optima) < limit:
        status = solver.solve(built.model)
        if status == cp_model.INFEASIBLE:
            return Solutions(optima=tuple(optima), objective=objective, proved=True, complete=True)
        if status != cp_model.OPTIMAL and (problem.cost or status != cp_model.FEASIBLE):
            return Solutions(optima=tuple(optima), objective=objective, proved=False, complete=False)
        found = {
            name: next(option for option, literal in choices.items() if solver.boolean_value(literal))
            for name, choices in built.literals.items()
        }
        if not optima and problem.cost:
            objective = round(solver.objective_value)
            built.model.add(built.objective == objective)
        optima.append(found)
        built.model.add_bool_or([built.literals[name][option].negated() for name, option in found.items()])
    return Solutions(optima=tuple(optima), objective=objective, proved=True, complete=False)
