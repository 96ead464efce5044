"""Our model in real vLLM engines, in Ray actors: the trainer's numbers, proof of sync, what a kill costs."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from envs.child_processes import share_packages
from policies.engine import Sampling, SessionRecord
from policies.model.checkpoint import save_model
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.replay import pad_routes, pad_selected
from policies.replicas import ReplicaPool, vllm_config
from policies.weights import WeightsMismatchError, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
STOP = 5
VOCAB = 96
INDEX_TOPK = 12
MAX_LENGTH = 128


def make_model(seed: int) -> WorldsmithForCausalLM:
    """Weights large enough that no distribution is flat, biases that matter."""
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    model = WorldsmithForCausalLM(tiny_config(VOCAB, **sizes, index_topk=INDEX_TOPK)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaPool]:
    directory = tmp_path_factory.mktemp("policy")
    save_model(make_model(0), directory)
    share_packages()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    config = vllm_config(str(directory), slots=32, max_length=MAX_LENGTH, record_selected=True)
    pool = ReplicaPool(config, num_replicas=2, stop_token_ids=[STOP])
    yield pool
    pool.shutdown()
    ray.shutdown()


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(6, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(pool: ReplicaPool, sessions: list[int], extensions: int = 0) -> list[SessionRecord]:
    """To their end, each extended so often by a text of its own."""
    left = dict.fromkeys(sessions, extensions)
    records: dict[int, SessionRecord] = {}
    while len(records) < len(sessions):
        for turn in pool.step():
            if left[turn.session] and pool.room(turn.session) > 20:
                left[turn.session] -= 1
                pool.extend(turn.session, prompt(6, turn.session))
            else:
                records[turn.session] = pool.close(turn.session)
    return [records[session] for session in sessions]


def differences(model: WorldsmithForCausalLM, record: SessionRecord, *, forced: bool) -> np.ndarray:
    """|log-probability of the replica - of the trainer's forward| of each sampled token, nats."""
    ids = torch.tensor([record.token_ids])
    held: dict[str, torch.Tensor] = {}
    if forced:
        assert record.selected is not None
        columns = ids.shape[1]
        held["routes"] = pad_routes([record.routes], num_columns=columns, offsets=[0])
        held["selected"] = pad_selected([record.selected], num_columns=columns, offsets=[0])
    with torch.no_grad():
        logits = model(ids, **held).logits
    logps = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1).numpy()
    sampled = np.array(record.sampled_mask[1:])
    return np.abs(logps - np.array(record.logps[1:]))[sampled]


def test_a_hundred_trajectories_have_the_trainers_log_probabilities(pool: ReplicaPool) -> None:
    model = make_model(1)
    pool.load(publish(model, version=1))
    sampling = Sampling(temperature=1.0, max_new_tokens=40)
    sessions = [pool.open(prompt(16 + n % 9, n // 4), seed=n, sampling=sampling) for n in range(100)]
    records = play(pool, sessions, extensions=2)
    live = np.concatenate([differences(model, record, forced=False) for record in records])
    forced = np.concatenate([differences(model, record, forced=True) for record in records])
    lengths = [len(record.token_ids) for record in records]
    sys.stdout.write(  # shown with pytest's -s
        f"\n{len(records)} trajectories of {min(lengths)} to {max(lengths)} tokens, index_topk {INDEX_TOPK},"
        f" {len(live)} sampled: max |difference| {live.max():.2e} live, {forced.max():.2e} with routes and"
        f" selections kept\n"
    )
    assert min(lengths) > INDEX_TOPK
    assert forced.max() < 1e-3
    assert live.max() < 1e-3
    assert len({tuple(record.token_ids) for record in records}) > 90  # seeds differ, so do texts


def test_turns_continue_over_the_cached_prefix_and_records_cover_all_that_was_read(pool: ReplicaPool) -> None:
    model = make_model(1)
    pool.load(publish(model, version=2))
    sampling = Sampling(temperature=1.0, max_new_tokens=12)
    first, second = (pool.open(prompt(40, 7), seed=seed, sampling=sampling) for seed in (1, 2))
    for record in play(pool, [first, second], extensions=2):
        with torch.no_grad():
            out = model(torch.tensor([record.token_ids]), return_routes=True)
        read = slice(0, len(record.token_ids) - 1)
        live = np.sort(out.routes[0, read].numpy(), axis=-1)
        assert (np.sort(record.routes[read].astype(int), axis=-1) == live).mean() > 0.99
        assert record.weights_versions == [2] * len(record.token_ids)


def test_top_p_is_processed_and_its_kept_sets_come_along(pool: ReplicaPool) -> None:
    model = make_model(1)
    pool.load(publish(model, version=3))
    sampling = Sampling(temperature=0.8, top_p=0.7, max_new_tokens=16)
    (record,) = play(pool, [pool.open(prompt(20, 3), seed=3, sampling=sampling)])
    with torch.no_grad():
        logits = model(torch.tensor([record.token_ids])).logits[0] / 0.8
    for place in np.flatnonzero(record.sampled_mask):
        kept = torch.tensor(record.kept_sets[place])
        logps = logits[place - 1].log_softmax(-1)
        assert logps[kept].exp().sum() + 1e-4 >= 0.7
        expected = logps[record.token_ids[place]] - logps[kept].logsumexp(0)
        assert record.logps[place] == pytest.approx(expected.item(), abs=1e-3)


def test_weights_that_are_not_what_was_published_are_refused_and_rolled_back(pool: ReplicaPool) -> None:
    good, other = make_model(1), make_model(2)
    pool.load(publish(good, version=4))
    published = publish(other, version=5)
    name = next(name for name in published.tensors if name.endswith("e_score_correction_bias"))
    forged = replace(published, tensors={**published.tensors, name: published.tensors[name] + 1})
    with pytest.raises(WeightsMismatchError, match=rf"version 5: {name} is not what was published"):
        pool.load(forged)
    canary = replace(published, canary=publish(good, version=5).canary)
    with pytest.raises(WeightsMismatchError, match=r"version 5: .* computes other log-probabilities"):
        pool.load(canary)
    assert pool.versions() == [4, 4]
    sampling = Sampling(temperature=1.0, max_new_tokens=30)
    records = play(pool, [pool.open(prompt(20, n), seed=n, sampling=sampling) for n in range(4)])
    assert max(differences(good, record, forced=False).max() for record in records) < 1e-3


def test_a_killed_replica_loses_nothing(pool: ReplicaPool) -> None:
    model = make_model(3)
    pool.load(publish(model, version=6))
    sampling = Sampling(temperature=1.0, max_new_tokens=90)
    sessions = [pool.open(prompt(20, n), seed=n, sampling=sampling) for n in range(48)]
    victim = pool.processes()[0]
    records: dict[int, SessionRecord] = {}
    while not any(len(session.tokens) > 24 for session in pool._replicas[0].sessions.values()):
        records |= {turn.session: pool.close(turn.session) for turn in pool.step()}
    before = {number: list(session.tokens) for number, session in pool._sessions.items()}
    moving = {session.number for session in pool._replicas[0].sessions.values()}
    os.kill(victim, signal.SIGKILL)
    left = [session for session in sessions if session not in records]
    records |= dict(zip(left, play(pool, left), strict=True))
    assert moving, "the killed replica had something to lose"
    assert len(records) == 48
    for number, tokens in before.items():
        assert records[number].token_ids[: len(tokens)] == tokens
    for record in records.values():
        assert differences(model, record, forced=False).max() < 1e-3
    assert pool.versions() == [6, 6]
    assert victim not in pool.processes()


def test_the_policy_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a model's config\.json"):
        vllm_config(str(tmp_path), slots=1, max_length=16)
