"""Counterfactual twins: a task's request in its world but for one fact, so that another behaviour is right.

Of a task and its twin a policy that does not mind the fact is right about one at most. The domain offers
worlds with one fact changed (`synthesis.grammar.Twinning`); the first is taken in which the planner does
something else, the answer is unique, and neither task's gold is paid by the other's verifier. The twin then
passes every gate as a task of its own and names the task that it is a twin of.
"""

from dataclasses import replace
from itertools import islice

from envs.agents import gold_plan, play_plan
from envs.task import Plan, Task
from envs.world import Table, build_image, image_hash
from synthesis.general import Candidate, demonstrate, domain_named, make_candidate, make_task, named
from synthesis.grammar import Draft, Twinning, full_care, twin_levels
from synthesis.solver import solve

MAX_WORLDS = 40
"""Tried for one task before it is said to have no twin."""


def made_again(task: Task) -> Candidate | None:
    """The candidate that the task's domain, level and seed give; of a twin, the twin."""
    made = make_candidate(domain_named(task.domain), task.level, task.world.seed)
    return make_twin(made) if made is not None and task.provenance.twin_of else made


def make_twin(original: Candidate) -> Candidate | None:
    """The candidate's twin, or None where its domain or level has none, or no fact tried gives one."""
    domain = domain_named(original.task.domain)
    if not isinstance(domain, Twinning) or original.task.level not in twin_levels(domain):
        return None
    for draft in islice(domain.twins(original.task.level, original.task.world.seed), MAX_WORLDS):
        if not _is_same_request(original.draft, draft) or num_differences(original.draft, draft) != 1:
            continue
        twin = _twin_in(original, draft)
        if twin is not None and _tells_apart(original, twin):
            return twin
    return None


def _twin_in(original: Candidate, draft: Draft) -> Candidate | None:
    """The twin of that draft; None where its planner finds nothing to do, or does the same."""
    domain = domain_named(draft.domain)
    image = build_image(draft.tables)
    try:
        gold = demonstrate(domain, draft, image, full_care())
    except (LookupError, ValueError, StopIteration):  # the changed world holds no such task
        return None
    if _deeds(original.task, gold) == _deeds(original.task, original.task.gold):
        return None
    if len(solve(draft.problem, limit=2).optima) != 1:
        return None
    task = make_task(domain, draft, world_hash=image_hash(image), gold=gold)
    task = replace(task, provenance=replace(task.provenance, twin_of=original.task.task_id))
    return Candidate(task=named(task), image=image, draft=draft)


def _deeds(task: Task, plan: Plan) -> tuple[object, ...]:
    """What a plan comes to: its answer and its writes, whatever it read on the way."""
    writing = {tool.name for tool in task.tools if tool.writes}
    return (plan.answer, *((call.tool, call.arguments) for call in plan.calls if call.tool in writing))


def _tells_apart(one: Candidate, other: Candidate) -> bool:
    """Neither gold is right in the other's world."""
    return all(
        play_plan(here.task, here.image, gold_plan(there.task)).reward == 0.0
        for here, there in ((one, other), (other, one))
    )


def _is_same_request(one: Draft, other: Draft) -> bool:
    """All that the agent is told before its first call."""
    return (one.system, one.prompt, one.tools) == (other.system, other.prompt, other.tools)


def num_differences(one: Draft, other: Draft) -> int:
    """In how many cells two drafts' worlds differ; worlds of other shapes or orders differ in all of them."""
    return sum(_cells_apart(mine, theirs) for mine, theirs in zip(one.tables, other.tables, strict=True))


def _cells_apart(mine: Table, theirs: Table) -> int:
    if [len(row) for row in mine.rows] != [len(row) for row in theirs.rows]:
        return sum(map(len, mine.rows))
    return sum(
        a != b
        for ours, yours in zip(mine.rows, theirs.rows, strict=True)
        for a, b in zip(ours, yours, strict=True)
    )
