"""What a session may be given is the same, and refused by the same line, whoever serves the policy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from policies.engine import Engine
from policies.model.checkpoint import save_model
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.sampling import Sampling
from policies.policy_engine import PolicyEngine
from policies.replicas import ReplicaPool, vllm_config
from policies.token_limits import checked_answer, checked_prompt

VOCAB, MAX_LENGTH = 64, 10
ONE = Sampling(max_new_tokens=1)


@pytest.fixture(scope="module")
def model() -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    return WorldsmithForCausalLM(tiny_config(VOCAB, num_hidden_layers=1, hidden_size=32)).eval()


@pytest.fixture(params=["in process", "replicas"])
def served(
    request: pytest.FixtureRequest, model: WorldsmithForCausalLM, tmp_path: Path
) -> tuple[PolicyEngine, Callable[[int], None]]:
    """An engine, and what ends the turn of one of its sessions, of 1 sampled token."""
    if request.param == "in process":
        engine = Engine(model, num_slots=2, max_length=MAX_LENGTH, stop_token_ids=[])
        return engine, lambda session: assert_ended(engine, session)
    save_model(model, tmp_path)
    config = vllm_config(str(tmp_path), slots=2, max_length=MAX_LENGTH)
    pool = ReplicaPool(config, num_replicas=0, stop_token_ids=[])  # nothing reaches a replica

    def answer(session: int) -> None:
        state = pool._sessions[session]
        state.begin([5], version=0)
        state.paused = True

    return pool, answer


def assert_ended(engine: Engine, session: int) -> None:
    assert [turn.session for turn in engine.step()] == [session]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 64], "token id 64 is outside the vocabulary of 64"),
        ([-1], "token id -1 is outside the vocabulary of 64"),
        ([], "a prompt must have 1 to 9 tokens, got 0"),
        ([1] * 10, "a prompt must have 1 to 9 tokens, got 10"),
    ],
)
def test_a_prompt_that_cannot_be_is_one_line(
    served: tuple[PolicyEngine, Callable[[int], None]], tokens: list[int], message: str
) -> None:
    engine, _ = served
    with pytest.raises(ValueError, match=f"^{message}$"):
        engine.open(tokens, seed=0, sampling=ONE)
    assert engine.open([63] * 9, seed=0, sampling=ONE) == 0  # the refused one left nothing


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 64], "token id 64 is outside the vocabulary of 64"),
        ([-7, 64], "token id -7 is outside the vocabulary of 64"),
        ([1] * 7, "session 0: 7 more tokens do not fit, room for 6 of max_length 10"),
    ],
)
def test_an_answer_that_cannot_be_is_one_line_and_the_session_stays_as_it_was(
    served: tuple[PolicyEngine, Callable[[int], None]], tokens: list[int], message: str
) -> None:
    engine, end_turn = served
    session = engine.open([1, 2], seed=0, sampling=ONE)
    with pytest.raises(ValueError, match="still generating"):
        engine.extend(session, [1])
    end_turn(session)
    with pytest.raises(ValueError, match=f"^{message}$"):
        engine.extend(session, tokens)
    assert engine.room(session) == 6
    engine.extend(session, [63] * 6)
    assert engine.room(session) == 0
    assert engine.close(session).token_ids[3:] == [63] * 6


def test_where_the_vocabulary_is_not_known_only_negative_ids_are_refused() -> None:
    assert checked_prompt([10**6], vocab_size=None, max_length=2) == [10**6]
    with pytest.raises(ValueError, match=r"^token id -1 is outside the vocabulary$"):
        checked_answer([-1], session=0, vocab_size=None, room=3, max_length=4)


@pytest.mark.parametrize(
    ("fields", "vocab_size"),
    [
        ({"vocab_size": 9}, 9),
        ({"text_config": {"vocab_size": 8}}, 8),
        ({}, None),
        ({"vocab_size": "9"}, None),
    ],
)
def test_the_vocabulary_of_others_is_read_from_their_config(
    fields: dict[str, object], vocab_size: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))
    assert vllm_config(str(tmp_path), slots=1, max_length=8).vocab_size == vocab_size
