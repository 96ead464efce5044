"""Requests of mixed lengths that arrive at random: each gets what it would get alone."""

import random
from collections import deque
from dataclasses import dataclass, replace

import pytest
import torch

from policies.engine import Engine, Sampling, SessionRecord
from policies.model.cache import allocate_cache
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM

STOP = 5
MAX_LENGTH = 112


@dataclass(frozen=True, kw_only=True)
class Request:
    prompt: list[int]
    answers: list[list[int]]
    """What the environment says after each turn but the last."""
    seed: int
    sampling: Sampling
    arrival: int
    """The step before which it is opened."""


def make_model() -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    model = WorldsmithForCausalLM(tiny_config(64, **sizes, index_topk=12, index_n_heads=2)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    return model


def make_requests(count: int) -> list[Request]:
    rng = random.Random(0)
    shared = [[rng.randrange(6, 64) for _ in range(rng.randrange(4, 60))] for _ in range(10)]
    requests, step = [], 0
    for seed in range(count):
        step += rng.choice((0, 0, 1, 3))
        own = [rng.randrange(6, 64) for _ in range(rng.randrange(1, 60))]
        sampling = Sampling(
            temperature=rng.choice((0.0, 0.7, 1.0)),
            top_p=rng.choice((1.0, 1.0, 0.9)),
            top_k=rng.choice((0, 0, 8)),
            max_new_tokens=rng.randrange(1, 24),
        )
        answers = [
            [rng.randrange(6, 64) for _ in range(rng.randrange(1, 20))]
            for _ in range(rng.choice((0, 0, 1, 2)))
        ]
        prompt = rng.choice(shared) if rng.random() < 0.3 else own
        requests.append(Request(prompt=prompt, answers=answers, seed=seed, sampling=sampling, arrival=step))
    return requests


def open_request(engine: Engine, request: Request) -> int:
    return engine.open(request.prompt, seed=request.seed, sampling=request.sampling)


def serve(engine: Engine, requests: list[Request]) -> list[SessionRecord]:
    """All of them, each opened before the step of its arrival; records in the order of the requests."""
    coming = deque(enumerate(requests))
    numbers: dict[int, int] = {}
    answers: dict[int, list[list[int]]] = {}
    records: dict[int, SessionRecord] = {}
    step = 0
    while coming or numbers:
        while coming and coming[0][1].arrival <= step:
            place, request = coming.popleft()
            session = open_request(engine, request)
            numbers[session], answers[session] = place, list(request.answers)
        for turn in engine.step():
            rest = answers[turn.session]
            if rest and turn.stop_reason != "context" and len(rest[0]) <= engine.room(turn.session):
                engine.extend(turn.session, rest.pop(0))
            else:
                records[numbers.pop(turn.session)] = engine.close(turn.session)
        step += 1
    return [records[place] for place in range(len(requests))]


def assert_each_as_alone(count: int, num_slots: int) -> None:
    model, requests = make_model(), make_requests(count)
    stops = [STOP]
    crowd = Engine(model, num_slots=num_slots, max_length=MAX_LENGTH, stop_token_ids=stops)
    together = serve(crowd, requests)
    assert crowd.num_running == crowd.num_waiting == 0
    single = Engine(model, num_slots=1, max_length=MAX_LENGTH, stop_token_ids=stops)
    for request, found in zip(requests, together, strict=True):
        (alone,) = serve(single, [replace(request, arrival=0)])
        assert found.token_ids == alone.token_ids
        assert found.sampled_mask == alone.sampled_mask
        assert found.kept_sets == alone.kept_sets
        assert found.logps == pytest.approx(alone.logps, abs=1e-5)


def test_twenty_requests_that_arrive_at_random_are_each_as_alone() -> None:
    assert_each_as_alone(20, num_slots=5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_requests_that_arrive_at_random_are_each_as_alone() -> None:
    assert_each_as_alone(500, num_slots=32)


def test_the_cache_takes_what_is_planned() -> None:
    """A float for each latent and each index key, of every layer, slot and place; no row is ever added."""
    config = make_model().config
    cache = allocate_cache(config, 7, MAX_LENGTH)
    assert cache.num_bytes == 4 * 3 * 7 * MAX_LENGTH * (64 + 16 + 16)
    hashed = allocate_cache(tiny_config(64, token_selector="lsh", lsh_tables=4), 2, 10)
    assert hashed.num_bytes == 4 * 4 * 2 * 10 * (64 + 16 + 16 + 4)
