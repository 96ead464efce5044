"""Candidates of drafts that a test made by hand, and plays of a careless planner."""

import random
from collections.abc import Callable

import pytest

from envs.task import Plan
from envs.tool_server import ToolServer
from envs.world import build_image, image_hash
from synthesis.general import Candidate, demonstrate, domain_named, make_task
from synthesis.grammar import Care, Client, Draft, full_care


def candidate_of(draft: Draft) -> Candidate:
    domain = domain_named(draft.domain)
    image = build_image(draft.tables)
    gold = demonstrate(domain, draft, image, full_care())
    task = make_task(domain, draft, world_hash=image_hash(image), gold=gold)
    return Candidate(task=task, image=image, draft=draft)


def careless_play(made: Candidate, slip_rate: float, seed: int) -> tuple[Plan, Care]:
    server = ToolServer(made.image, made.task.tools)
    care = Care(slip_rate=slip_rate, rng=random.Random(seed))
    try:
        return domain_named(made.task.domain).plan(made.draft, Client(server), care), care
    finally:
        server.close()


@pytest.fixture
def by_hand() -> Callable[[Draft], Candidate]:
    return candidate_of


@pytest.fixture
def careless() -> Callable[[Candidate, float, int], tuple[Plan, Care]]:
    return careless_play
