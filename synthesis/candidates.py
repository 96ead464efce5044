"""Seed after seed to a certified task, in this process or in boxes: the same either way."""

import itertools
from collections.abc import Callable, Iterator

from synthesis.certificate import certify_candidate
from synthesis.corpus import CorpusTask
from synthesis.general import domain_named, make_candidate


def certified_candidates(
    domain: str, level: int, seed_of: Callable[[int], int], *, tier: str | None, batch: int
) -> Iterator[CorpusTask | str | None]:
    """For each index its seed's certified task, the gate that refuses it, or None: its world holds no task.

    tier: of the boxes, which take `batch` seeds at a time; None: in this process. Raises SandboxError.
    """
    if tier is None:
        yield from (_certified(domain, level, seed_of(index)) for index in itertools.count())
    from synthesis.boxed.maker import shared_maker  # in this process nothing of it is needed

    for start in itertools.count(0, batch):
        seeds = [seed_of(index) for index in range(start, start + batch)]
        yield from shared_maker(tier).made(domain, level, seeds)


def _certified(domain: str, level: int, seed: int) -> CorpusTask | str | None:
    candidate = make_candidate(domain_named(domain), level, seed)
    if candidate is None:
        return None
    certified = certify_candidate(candidate)
    return certified if isinstance(certified, CorpusTask) else certified.gate
