"""The general family: from (domain, level, seed) to a task with its world and gold, before the gates."""

from dataclasses import dataclass, replace

from envs.task import Message, Plan, Provenance, Task, WorldRef, content_hash
from envs.tool_server import ToolServer
from envs.world import build_image, image_hash
from synthesis.domains import (
    access,
    airline,
    clinic,
    courses,
    ledger,
    library,
    parcels,
    retail,
    rooms,
    trip,
    warehouse,
)
from synthesis.grammar import Care, Client, Domain, Draft, Raising, full_care

FAMILY = "general"
_ALL: tuple[Domain, ...] = (
    trip.DOMAIN,
    retail.DOMAIN,
    access.DOMAIN,
    airline.DOMAIN,
    clinic.DOMAIN,
    courses.DOMAIN,
    ledger.DOMAIN,
    library.DOMAIN,
    parcels.DOMAIN,
    rooms.DOMAIN,
    warehouse.DOMAIN,
)
DOMAINS: dict[str, Domain] = {domain.name: domain for domain in _ALL}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A task that no gate has seen, with its world's bytes and the draft that it came from.

    easier: the candidate that this one was raised from, in the same world.
    """

    task: Task
    image: bytes
    draft: Draft
    easier: "Candidate | None" = None


def domain_named(name: str) -> Domain:
    """Raises ValueError for a domain that does not exist."""
    if name not in DOMAINS:
        raise ValueError(f"no domain {name!r}; there are {', '.join(DOMAINS)}")
    return DOMAINS[name]


def make_candidate(domain: Domain, level: int, seed: int) -> Candidate | None:
    """The candidate of a seed, or None when its world holds no task of that level."""
    below = domain.raised_from(level) if isinstance(domain, Raising) else None
    easier = make_candidate(domain, below, seed) if below is not None else None
    draft = domain.draft(level, seed)
    if draft is None or (below is not None and easier is None):
        return None
    image = build_image(draft.tables)
    gold = demonstrate(domain, draft, image, full_care())
    task = make_task(domain, draft, world_hash=image_hash(image), gold=gold)
    if easier is not None:
        assert easier.image == image
        lineage = (*easier.task.provenance.lineage, easier.task.task_id)
        task = replace(task, provenance=replace(task.provenance, lineage=lineage))
    return Candidate(task=named(task), image=image, draft=draft, easier=easier)


def named(task: Task) -> Task:
    """The task with its id: domain, level and the beginning of its content hash."""
    return replace(task, task_id=f"{task.domain}-{task.level}-{content_hash(task)[:12]}")


def make_task(domain: Domain, draft: Draft, *, world_hash: str, gold: Plan) -> Task:
    """The draft as a task, still without an id."""
    generator = f"{FAMILY}/{domain.name}"
    return Task(
        task_id="",
        family=FAMILY,
        domain=domain.name,
        level=draft.level,
        world=WorldRef(
            generator=generator, generator_version=domain.version, seed=draft.seed, content_hash=world_hash
        ),
        prompt=(Message(role="system", content=draft.system), Message(role="user", content=draft.prompt)),
        tools=draft.tools,
        clauses=draft.clauses,
        frame=draft.frame,
        answer=draft.answer,
        gold=gold,
        guess=draft.guess,
        max_turns=draft.max_turns,
        provenance=Provenance(generator=generator, generator_version=domain.version, seed=draft.seed),
    )


def demonstrate(domain: Domain, draft: Draft, image: bytes, care: Care) -> Plan:
    """The planner's calls and answer on a fresh copy of the world."""
    server = ToolServer(image, draft.tools)
    try:
        return domain.plan(draft, Client(server), care)
    finally:
        server.close()
