"""The engine against the trainer's forward: same tokens, same log-probabilities, same experts."""

import numpy as np
import pytest
import torch

from policies.engine import Engine, Sampling, SessionRecord
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.replay import pad_routes

STOP = 5
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0}


def make_model(seed: int = 0, **overrides) -> WorldsmithForCausalLM:
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    model = WorldsmithForCausalLM(
        tiny_config(64, **(sizes | {"index_topk": 12, "index_n_heads": 2} | overrides))
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


def make_engine(model: WorldsmithForCausalLM, num_slots: int = 4, max_length: int = 96) -> Engine:
    return Engine(model, num_slots=num_slots, max_length=max_length, stop_token_ids=[STOP])


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(6, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(engine: Engine, sessions: list[int], extensions: dict[int, list[list[int]]] | None = None) -> dict:
    """Run the sessions to their end, feeding each its extensions in turn; records by session."""
    pending = {session: list((extensions or {}).get(session, [])) for session in sessions}
    records: dict[int, SessionRecord] = {}
    while len(records) < len(sessions):
        for turn in engine.step():
            if pending[turn.session] and turn.stop_reason != "context":
                engine.extend(turn.session, pending[turn.session].pop(0))
            else:
                records[turn.session] = engine.close(turn.session)
    return records


def assert_agrees_with_the_trainer(model: WorldsmithForCausalLM, record: SessionRecord) -> None:
    ids = torch.tensor([record.token_ids])
    with torch.no_grad():
        out = model(ids, return_routes=True)
        forced = model(ids, routes=pad_routes([record.routes], num_columns=ids.shape[1], offsets=[0]))
    for logits in (out.logits, forced.logits):
        logps = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        sampled = torch.tensor(record.sampled_mask[1:])
        error = (logps - torch.tensor(record.logps[1:]))[sampled].abs().max()
        assert error < 1e-5
    live = np.sort(out.routes[0, :-1].numpy(), -1)
    assert np.array_equal(np.sort(record.routes[:-1].astype(np.int64), -1), live)
    assert (record.routes[-1] == 255).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"token_selector": "dense"},
        {"token_selector": "window"},
        {"token_selector": "random"},
        {"token_selector": "oracle"},
        {"token_selector": "lsh", "lsh_tables": 4, "lsh_bits": 3, "lsh_window": 2},
        {"rope_parameters": YARN},
        {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "attention_bias": True},
        {"first_k_dense_replace": 0, "v_head_dim": 24, "n_shared_experts": 2, "tie_word_embeddings": True},
        {"index_n_heads": 1, "index_topk": 3},
    ],
)
def test_turns_with_extensions_equal_one_full_forward(overrides: dict) -> None:
    model = make_model(**overrides)
    if overrides.get("attention_bias"):
        for name, parameter in model.named_parameters():
            if name.endswith("proj.bias"):
                parameter.data.uniform_(-0.5, 0.5)
    engine = make_engine(model)
    sampling = Sampling(max_new_tokens=9)
    # Six sessions on four slots, two with one prompt; answers of different lengths arrive at different steps.
    sessions = [engine.open(prompt(8 + 3 * (i // 2), i // 2), seed=i, sampling=sampling) for i in range(6)]
    extensions = {session: [prompt(2 + 5 * session, 50), prompt(3, 51)] for session in sessions}
    for record in play(engine, sessions, extensions).values():
        assert_agrees_with_the_trainer(model, record)
    assert engine.num_running == engine.num_waiting == 0


def test_a_session_is_the_same_alone_and_in_company() -> None:
    model = make_model()
    sampling = Sampling(temperature=0.9, max_new_tokens=20)
    engine = make_engine(model, num_slots=1)
    alone = play(engine, [engine.open(prompt(15, 3), seed=42, sampling=sampling)], {0: [prompt(6, 8)]})[0]
    crowd = make_engine(model, num_slots=4)
    others = [crowd.open(prompt(5 + i, i), seed=i, sampling=sampling) for i in range(6)]
    for _ in range(3):
        crowd.step()
    late = crowd.open(prompt(15, 3), seed=42, sampling=sampling)
    records = play(crowd, [*others, late], {late: [prompt(6, 8)]})
    assert records[late].token_ids == alone.token_ids
    assert records[late].logps == pytest.approx(alone.logps, abs=1e-5)
    assert np.array_equal(np.sort(records[late].routes, -1), np.sort(alone.routes, -1))


@pytest.mark.parametrize("alone_from", [3, 1000])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"token_selector": "oracle"},
        {"token_selector": "lsh", "lsh_tables": 4, "lsh_bits": 3, "lsh_window": 2},
    ],
)
def test_long_prompts_read_over_gathered_latents_give_the_same(
    monkeypatch: pytest.MonkeyPatch, overrides: dict, alone_from: int
) -> None:
    monkeypatch.setattr("policies.engine.gathered_prefill_from", lambda config: 10)
    monkeypatch.setattr("policies.engine.READ_ALONE_FROM", alone_from)
    monkeypatch.setattr("policies.model.decode.GATHERED_FLOATS", 3_000)  # several portions
    monkeypatch.setattr("policies.model.decode.DENSE_EXPERT_TOKENS", 8)  # sorted dispatch for prompts
    model = make_model(**overrides)
    engine = make_engine(model)
    sessions = [engine.open(prompt(40, i), seed=i, sampling=Sampling(max_new_tokens=5)) for i in range(3)]
    for record in play(engine, sessions).values():
        assert_agrees_with_the_trainer(model, record)


def test_turns_end_by_stop_token_budget_or_full_row() -> None:
    model = make_model()
    model.lm_head.weight.data.zero_()  # every token has probability 1/64
    engine = Engine(model, num_slots=2, max_length=12, stop_token_ids=range(64))
    first = engine.open([7, 8], seed=0, sampling=Sampling())
    (turn,) = engine.step()
    assert (turn.session, turn.stop_reason, len(turn.token_ids)) == (first, "stop_token", 1)
    assert turn.logps == pytest.approx([-np.log(64)], abs=1e-5)
    engine = Engine(model, num_slots=2, max_length=12, stop_token_ids=[])
    short = engine.open([7, 8], seed=0, sampling=Sampling(max_new_tokens=3))
    long = engine.open([7, 8], seed=1, sampling=Sampling(max_new_tokens=30))
    turns = [turn for _ in range(10) for turn in engine.step()]
    assert [(t.session, t.stop_reason, len(t.token_ids)) for t in turns] == [
        (short, "length", 3),
        (long, "context", 10),
    ]
    assert len(engine.close(long).token_ids) == 12
    assert engine.room(short) == 12 - 1 - 5
    assert engine.step() == []  # the other one is paused


def test_sessions_wait_for_slots_and_closing_frees_one() -> None:
    engine = make_engine(make_model(), num_slots=1)
    first = engine.open([7, 8, 9], seed=0, sampling=Sampling(max_new_tokens=50))
    second = engine.open([9, 8], seed=1, sampling=Sampling(max_new_tokens=50))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    record = engine.close(first)  # in the middle of a turn
    assert record.sampled_mask == [False] * 3 + [True]
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 0)
    assert engine.close(second).token_ids[:2] == [9, 8]
    third = engine.open([1], seed=2, sampling=Sampling())
    assert engine.close(third).sampled_mask == [False]  # never started


def test_kept_sets_and_processed_log_probabilities() -> None:
    model = make_model()
    engine = make_engine(model)
    session = engine.open(prompt(9, 0), seed=3, sampling=Sampling(top_k=4, temperature=0.7, max_new_tokens=6))
    record = play(engine, [session])[session]
    with torch.no_grad():
        logits = model(torch.tensor([record.token_ids])).logits[0] / 0.7
    for place, token in enumerate(record.token_ids):
        if not record.sampled_mask[place]:
            assert record.kept_sets[place] == []
            continue
        best = logits[place - 1].topk(4)
        assert sorted(record.kept_sets[place]) == sorted(best.indices.tolist())
        expected = logits[place - 1, token] - best.values.logsumexp(0)
        assert record.logps[place] == pytest.approx(expected.item(), abs=1e-5)


def test_new_weights_are_used_from_the_next_step_and_numbered() -> None:
    model, other = make_model(0), make_model(1)
    engine = make_engine(model)
    session = engine.open(prompt(6, 0), seed=0, sampling=Sampling(max_new_tokens=4))
    engine.step()
    engine.load_weights(other.state_dict(), version=7)
    engine.step()
    record = engine.close(session)
    assert record.weights_versions == [0] * 6 + [0, 7]
    fresh = make_engine(other)
    expected = play(fresh, [fresh.open(prompt(6, 0), seed=0, sampling=Sampling(max_new_tokens=4))])[0]
    after = play(engine, [engine.open(prompt(6, 0), seed=0, sampling=Sampling(max_new_tokens=4))])
    assert next(iter(after.values())).token_ids == expected.token_ids


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_that_arrive_in_mid_turn_meet_the_old_cache_or_a_recomputed_one(recompute: bool) -> None:
    """What was sampled before keeps its log-probability and version; what follows comes of the new weights,
    over a cache of the old ones or, recomputed, over one of the new ones alone.
    """
    old, new = make_model(1, token_selector="dense"), make_model(2, token_selector="dense")
    engine = Engine(
        make_model(1, token_selector="dense"),
        num_slots=4,
        max_length=96,
        stop_token_ids=[],
        recompute=recompute,
    )
    session = engine.open(prompt(9, seed=3), seed=4, sampling=Sampling(max_new_tokens=8))
    for _ in range(4):
        assert engine.step() == []
    engine.load_weights(new.state_dict(), version=1)
    while not engine.step():
        pass
    record = engine.close(session)
    assert record.weights_versions[9:13] == [0] * 4
    assert record.weights_versions[13:] == [1] * (len(record.token_ids) - 13)
    assert set(record.weights_versions[:9]) == {0}
    ids = torch.tensor([record.token_ids])
    routes = pad_routes([record.routes], num_columns=ids.shape[1], offsets=[0])
    errors = []
    for model, forced in ((old, routes), (new, None)):
        with torch.no_grad():
            logits = model(ids, routes=forced).logits[0, :-1]
        logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        errors.append((logps - torch.tensor(record.logps[1:])).abs())
    assert errors[0][8:12].max() < 1e-5
    assert (errors[1][12:].max() < 1e-5) == recompute


def test_one_prompt_is_read_once_for_its_whole_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    engine = make_engine(model)
    rows = []
    plain = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda ids, *a, **k: rows.append(ids.shape) or plain(ids, *a, **k)
    )
    sessions = [engine.open(prompt(9, 0), seed=i, sampling=Sampling(max_new_tokens=8)) for i in range(4)]
    records = play(engine, sessions)
    assert rows == [(1, 9)]
    assert len({tuple(record.token_ids) for record in records.values()}) == 4
    for record in records.values():
        assert_agrees_with_the_trainer(model, record)


def test_misuse_is_one_clear_line() -> None:
    engine = make_engine(make_model(), num_slots=1, max_length=10)
    with pytest.raises(ValueError, match="1 to 9 tokens, got 10"):
        engine.open([1] * 10, seed=0, sampling=Sampling())
    with pytest.raises(ValueError, match="token id 64 is outside the vocabulary of 64"):
        engine.open([64], seed=0, sampling=Sampling())
    session = engine.open([1, 2], seed=0, sampling=Sampling(max_new_tokens=1))
    with pytest.raises(ValueError, match="still generating"):
        engine.extend(session, [1])
    engine.step()
    with pytest.raises(ValueError, match="room for 6 of max_length 10"):
        engine.extend(session, [1] * 7)
    engine.close(session)
    with pytest.raises(ValueError, match="not open"):
        engine.close(session)
