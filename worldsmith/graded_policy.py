"""Agents of graded ability as policies of `eval`: the planner of a task's domain, played by messages."""

from envs.agents import Agent, PlanAgent, make_agent, submit_plan
from rl.trajectory import PlayableTask
from synthesis.general import FAMILY, domain_named
from synthesis.graded import ABILITIES, graded_plan

GRADED = tuple(ABILITIES)


def scripted_agent(name: str, playable: PlayableTask, seed: int) -> Agent:
    """The scripted agent called `name`, graded ones among them.

    Raises ValueError for an unknown one, or for a graded one on a task that no domain of ours makes again.
    """
    task = playable.task
    if name not in ABILITIES:
        return make_agent(name, task, seed)
    if task.family != FAMILY:
        raise ValueError(f"task {task.task_id}: {name} plans by a domain, and family {task.family} has none")
    domain = domain_named(task.domain)
    draft = domain.draft(task.level, task.world.seed)
    if draft is None or domain.version != task.world.generator_version:
        raise ValueError(
            f"task {task.task_id}: made by version {task.world.generator_version} of {domain.name}, which is"
            f" now {domain.version}; make the corpus again to play it with {name}"
        )
    plan = graded_plan(domain, draft, playable.image, ABILITIES[name], seed=seed)
    return PlanAgent(submit_plan(task, plan))
