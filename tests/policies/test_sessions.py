"""A session outlives its replicas: what it asks for, what it takes, when it gives up."""

import numpy as np

from policies.model.sampling import Sampling
from policies.sessions import MAX_MOVES, Session
from policies.vllm_replica import Sampled

STOPS = [9]


def session(max_new_tokens: int = 4, max_length: int = 20) -> Session:
    made = Session(number=7, seed=1, sampling=Sampling(max_new_tokens=max_new_tokens), max_length=max_length)
    made.begin([1, 2, 3], version=5)
    return made


def sampled(name: str, *token_ids: int, ended: bool = False, **more) -> Sampled:
    return Sampled(
        name=name,
        engine_name=name,
        token_ids=list(token_ids),
        logps=[-0.5] * len(token_ids),
        kept_sets=[[] for _ in token_ids],
        version=6,
        ended=ended,
        **more,
    )


def test_after_a_loss_it_goes_on_from_the_same_prefix_with_what_is_left_of_the_turn() -> None:
    playing = session()
    asked = playing.request(STOPS)
    assert (asked.token_ids, asked.max_new_tokens) == ([1, 2, 3], 4)
    assert playing.add(sampled(asked.name, 4, 5), STOPS) is None
    assert playing.lost() is None
    again = playing.request(STOPS)
    assert (again.token_ids, again.max_new_tokens) == ([1, 2, 3, 4, 5], 2)
    assert again.name != asked.name
    turn = playing.add(sampled(again.name, 6, 9, ended=True), STOPS)
    assert turn is not None
    assert (turn.token_ids, turn.stop_reason) == ([4, 5, 6, 9], "stop_token")


def test_a_turn_ends_by_its_budget_or_by_the_context() -> None:
    by_budget, by_context = session(max_new_tokens=2), session(max_length=5)
    assert by_context.request(STOPS).max_new_tokens == 2
    for playing, reason in ((by_budget, "length"), (by_context, "context")):
        turn = playing.add(sampled("", 4, 5, ended=True), STOPS)
        assert turn is not None
        assert turn.stop_reason == reason


def test_it_is_given_up_when_its_replicas_die_again_and_again() -> None:
    playing = session()
    for _ in range(MAX_MOVES - 1):
        assert playing.lost() is None
    turn = playing.lost()
    assert turn is not None
    assert turn.stop_reason == "lost"


def test_the_record_says_what_was_read_sampled_and_by_which_weights() -> None:
    playing = session()
    routes = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)  # the last sampled token was never read
    playing.add(sampled("", 4, 9, ended=True, routes=routes), STOPS)
    record = playing.record()
    assert record.token_ids == [1, 2, 3, 4, 9]
    assert record.sampled_mask == [False, False, False, True, True]
    assert record.weights_versions == [5, 5, 5, 6, 6]
    assert record.logps == [0.0, 0.0, 0.0, -0.5, -0.5]
    assert record.routes.flatten().tolist() == [0, 1, 2, 3, 255]
