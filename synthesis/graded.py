"""Agents of graded ability: a domain's own planner with a limited head. What they get of a task says how hard
it is, without a model.

Each lacks one thing. One that looks `k` steps ahead settles a choice after the other, each with the best of
the next `k` that go together, and finds out too late what comes after. A constraint-blind one overlooks each
constraint now and then. A forgetful one has lost some of the rows of every list that it read. A careless one
slips where its domain says that one may.
"""

import random
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from envs.task import Call, Plan, stable_seed
from envs.tool_server import Observation, ToolServer
from synthesis.grammar import Care, Client, Domain, Draft
from synthesis.solver import AllDifferent, Allow, AllowAny, Constraint, Dearer, Problem, SumBelow, best_choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """look_ahead: choices weighed together, 0 for all of them. The others are probabilities: of overlooking
    a constraint, of forgetting a row of a list, of a slip.
    """

    look_ahead: int = 0
    blindness: float = 0.0
    forgetting: float = 0.0
    slip_rate: float = 0.0


ABILITIES: dict[str, Ability] = {
    "look-ahead-1": Ability(look_ahead=1),
    "look-ahead-2": Ability(look_ahead=2),
    "look-ahead-3": Ability(look_ahead=3),
    "blind-0.1": Ability(blindness=0.1),
    "blind-0.3": Ability(blindness=0.3),
    "forgetful-0.02": Ability(forgetting=0.02),
    "forgetful-0.05": Ability(forgetting=0.05),
    "careless-0.1": Ability(slip_rate=0.1),
    "careless-0.3": Ability(slip_rate=0.3),
}


def graded_plan(domain: Domain, draft: Draft, image: bytes, ability: Ability, *, seed: int) -> Plan:
    """What an agent of that ability does in a fresh copy of the world, and answers.

    One that is left with too little to go on gives up: it answers with nothing.
    """
    rng = random.Random(stable_seed("graded", seed))
    care = Care(slip_rate=ability.slip_rate, rng=rng, choose=partial(_choose, ability=ability, rng=rng))
    with closing(ToolServer(image, draft.tools)) as server:
        client = Client(server, recall=partial(_recall, forgetting=ability.forgetting, rng=rng))
        try:
            return domain.plan(draft, client, care)
        except (LookupError, ValueError, StopIteration):  # the planner's own words for a lack of facts
            return Plan(calls=tuple[Call, ...](client.calls), answer="")


def _recall(observation: Observation, *, forgetting: float, rng: random.Random) -> Observation:
    """A single row stays."""
    if len(observation.rows) < 2:
        return observation
    kept = tuple(row for row in observation.rows if rng.random() >= forgetting)
    return replace(observation, rows=kept)


def _choose(problem: Problem, *, ability: Ability, rng: random.Random) -> Mapping[str, str]:
    if ability.blindness:
        seen = tuple(c for c in problem.constraints if rng.random() >= ability.blindness)
        problem = replace(problem, constraints=seen)
    return look_ahead(problem, ability.look_ahead) if ability.look_ahead else best_choice(problem)


def look_ahead(problem: Problem, depth: int) -> dict[str, str]:
    """An option for each variable in turn, the one that the best choice of the next `depth` begins with.

    Only constraints among them and the earlier ones are minded. Where nothing goes together any more it takes
    the first option.
    """
    names = list(problem.options)
    chosen: dict[str, str] = {}
    for index, name in enumerate(names):
        found = best_choice(narrowed(problem, chosen, names[index : index + depth]))
        chosen[name] = found.get(name, problem.options[name][0])
    return chosen


def narrowed(problem: Problem, chosen: Mapping[str, str], free: list[str]) -> Problem:
    """The part of `problem` that speaks of `free` variables and of those chosen before."""
    options = {name: (option,) for name, option in chosen.items()}
    options |= {name: problem.options[name] for name in free}
    constraints = (_among(constraint, options) for constraint in problem.constraints)
    cost = {
        name: {option: costs[option] for option in options[name] if option in costs}
        for name, costs in problem.cost.items()
        if name in options
    }
    return Problem(options=options, constraints=tuple(c for c in constraints if c is not None), cost=cost)


def _among(constraint: Constraint, options: Mapping[str, tuple[str, ...]]) -> Constraint | None:
    """What the constraint says of these variables alone; nothing where it needs others to say anything."""
    if isinstance(constraint, Dearer):
        return constraint if {constraint.variable, constraint.than} <= options.keys() else None
    if isinstance(constraint, AllDifferent):
        known = tuple(name for name in constraint.variables if name in options)
        return replace(constraint, variables=known) if len(known) > 1 else None
    if not constraint.when.keys() <= options.keys():
        return None
    when = {name: each & frozenset(options[name]) for name, each in constraint.when.items()}
    if isinstance(constraint, Allow):
        return replace(constraint, when=when) if constraint.variable in options else None
    if isinstance(constraint, AllowAny):
        return replace(constraint, when=when) if set(constraint.variables) <= options.keys() else None
    assert isinstance(constraint, SumBelow)
    known = tuple(name for name in constraint.variables if name in options)
    return replace(constraint, variables=known, when=when) if known else None
