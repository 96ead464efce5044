"""Seed after seed to a certified task, in this process or in boxes: the same either way.

With `twins` a seed gives a task and its counterfactual twin, both certified, or neither.
"""

import itertools
from collections.abc import Callable, Iterator

from synthesis.certificate import certify_candidate
from synthesis.corpus import CorpusTask
from synthesis.counterfactual import make_twin
from synthesis.general import domain_named, make_candidate

NO_TWIN = "no fact tried changes what is right"
Made = tuple[CorpusTask, ...] | str | None
"""What a seed gives: its certified tasks, why there is none, or None: its world holds no task."""


def certified_candidates(
    domain: str,
    level: int,
    seed_of: Callable[[int], int],
    *,
    tier: str | None,
    batch: int,
    twins: bool = False,
) -> Iterator[Made]:
    """For each index what its seed gives; a candidate that a gate refuses, by the gate's name.

    tier: of the boxes, which take `batch` seeds at a time and make no twins; None: in this process. Raises
    SandboxError, and ValueError for twins in boxes.
    """
    if tier is None:
        yield from (_certified(domain, level, seed_of(index), twins) for index in itertools.count())
    if twins:
        raise ValueError("boxes make no twins; leave the sandbox or the twins out")
    from synthesis.boxed.maker import shared_maker  # in this process nothing of it is needed

    for start in itertools.count(0, batch):
        seeds = [seed_of(index) for index in range(start, start + batch)]
        for made in shared_maker(tier).made(domain, level, seeds):
            yield (made,) if isinstance(made, CorpusTask) else made


def _certified(domain: str, level: int, seed: int, twins: bool) -> Made:
    candidate = make_candidate(domain_named(domain), level, seed)
    if candidate is None:
        return None
    wanted = [candidate]
    if twins:
        twin = make_twin(candidate)
        if twin is None:
            return NO_TWIN
        wanted.append(twin)
    certified: list[CorpusTask] = []
    for each in wanted:
        found = certify_candidate(each)
        if not isinstance(found, CorpusTask):
            return found.gate
        certified.append(found)
    return tuple(certified)
