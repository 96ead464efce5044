"""What the client of an OpenAI-compatible endpoint makes of good, bad and hostile answers."""

from collections.abc import Iterator
from typing import Any

import pytest

from policies import openai_client
from policies.chat_format import ToolCall
from policies.openai_client import ContextFullError, Endpoint, EndpointClient, EndpointError
from tests.fake_endpoint import Answer, FakeEndpoint, completion, fake_endpoint

QUESTION = [{"role": "user", "content": "hello"}]
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}


def client_of(endpoint: FakeEndpoint, **options: Any) -> EndpointClient:
    return EndpointClient(Endpoint(url=endpoint.url, model="some/model"), **{"retries": 2, **options})


def ask(answer: Answer, **options: Any) -> openai_client.Completion:
    with fake_endpoint(lambda payload: answer) as endpoint:
        return client_of(endpoint, **options).complete(QUESTION, [TOOL], seed=5)


def one_after_another(*answers: Answer) -> Any:
    waiting: Iterator[Answer] = iter(answers)
    return lambda payload: next(waiting)


def test_a_request_has_the_conversation_the_tools_and_how_to_sample() -> None:
    with fake_endpoint(lambda payload: completion("hi")) as endpoint:
        client = client_of(endpoint, temperature=0.5, max_tokens=9)
        assert client.complete(QUESTION, [TOOL], seed=(1 << 40) + 5).content == "hi"
    assert endpoint.asked == [
        {
            "model": "some/model",
            "temperature": 0.5,
            "max_completion_tokens": 9,
            "messages": QUESTION,
            "seed": 5,
            "tools": [{"type": "function", "function": TOOL}],
        }
    ]


def test_calls_are_read_and_go_back_under_their_ids() -> None:
    found = ask(completion(None, ("look", {"at": "x"}), ("look", "{}")))
    assert found.tool_calls == (
        ToolCall(name="look", arguments={"at": "x"}),
        ToolCall(name="look", arguments={}),
    )
    assert [call["id"] for call in found.message["tool_calls"]] == ["id-0", "id-1"]
    assert (found.fault, found.cut, found.prompt_tokens, found.completion_tokens) == ("", False, 7, 3)


def test_calls_without_ids_or_with_the_same_one_get_ids_of_their_own() -> None:
    answer = completion(None, ("look", {}), ("look", {}))
    for call in answer.body["choices"][0]["message"]["tool_calls"]:
        call["id"] = "same"
    assert [call["id"] for call in ask(answer).message["tool_calls"]] == ["call_0", "call_1"]


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}'])
def test_arguments_that_are_no_json_object_are_a_fault_and_shown_as_text(arguments: str) -> None:
    found = ask(completion("so", ("look", arguments)))
    assert found.fault == "the arguments of the call to look are not a JSON object"
    assert found.tool_calls == ()
    assert "tool_calls" not in found.message
    assert found.message["content"].startswith("so\nlook(")


def test_half_characters_become_question_marks() -> None:
    found = ask(Answer(body=b'{"choices": [{"message": {"content": "a\\ud800b"}}]}'))
    assert found.content == "a?b"


def test_reasoning_goes_back_and_a_cut_message_says_so() -> None:
    answer = completion("x", finish="length")
    answer.body["choices"][0]["message"]["reasoning_content"] = "because"
    found = ask(answer)
    assert found.cut
    assert found.message["reasoning_content"] == "because"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "choices: Field required"),
        ({"choices": []}, "choices: List should have at least 1 item"),
        ({"choices": [{"message": {"content": 3}}]}, "choices.0.message.content"),
        ({"choices": [{"message": {"tool_calls": [{}]}}]}, "choices.0.message.tool_calls.0.function"),
        (b"<html>", "the answer"),
        (b"[" * 100_000, "the answer"),
        ({"choices": [{"message": {}}], "usage": {"prompt_tokens": -1}}, "usage.prompt_tokens"),
    ],
)
def test_what_is_no_completion_is_the_endpoints_fault(body: Any, words: str) -> None:
    with pytest.raises(EndpointError, match="not a chat completion") as raised:
        ask(Answer(body=body))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "MAX_RESPONSE_BYTES", 1 << 20)
    with pytest.raises(EndpointError, match="answered with more than 1,048,576 bytes"):
        ask(Answer(body=b" " * (3 << 20)))


def test_a_busy_endpoint_is_asked_again_and_never_waits_longer_than_we_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_client, "LONGEST_PAUSE_S", 0)
    busy = Answer(body={}, status=429, headers={"Retry-After": "100000000"})
    with fake_endpoint(one_after_another(busy, Answer(body={}, status=503), completion("now"))) as endpoint:
        assert client_of(endpoint).complete(QUESTION, [], seed=0).content == "now"
    assert len(endpoint.asked) == 3
    assert "tools" not in endpoint.asked[0]


def test_an_endpoint_that_stays_down_says_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "LONGEST_PAUSE_S", 0)
    with (
        fake_endpoint(lambda payload: Answer(body=b"out\nof\x1b[31m memory", status=500)) as endpoint,
        pytest.raises(EndpointError, match=r"answered 500: out of \[31m memory$"),
    ):
        client_of(endpoint).complete(QUESTION, [], seed=0)
    assert len(endpoint.asked) == 3


def test_a_refusal_is_not_asked_again() -> None:
    with (
        fake_endpoint(lambda payload: Answer(body={"error": "no tools"}, status=400)) as endpoint,
        pytest.raises(EndpointError, match="answered 400"),
    ):
        client_of(endpoint).complete(QUESTION, [], seed=0)
    assert len(endpoint.asked) == 1


def test_a_conversation_too_long_is_told_apart() -> None:
    with pytest.raises(ContextFullError):
        ask(Answer(body={"error": {"message": "This model's maximum context length is 10"}}, status=400))


def test_the_key_goes_along_but_not_to_where_the_endpoint_sends_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with fake_endpoint(lambda payload: completion("x")) as other:
        moved = Answer(body=b"", status=307, headers={"Location": f"{other.url}/chat/completions"})
        with (
            fake_endpoint(lambda payload: moved) as endpoint,
            pytest.raises(EndpointError, match="answered 307"),
        ):
            client_of(endpoint).complete(QUESTION, [], seed=0)
    assert endpoint.keys == ["Bearer secret"]
    assert other.keys == []


def test_check_finds_a_wrong_name_a_wrong_key_and_no_endpoint() -> None:
    with fake_endpoint(lambda payload: completion("x")) as endpoint:
        client_of(endpoint).check()
        wrong = EndpointClient(Endpoint(url=endpoint.url, model="some/mode"))
        with pytest.raises(ValueError, match="has no model 'some/mode'; did you mean some/model"):
            wrong.check()
    with pytest.raises(EndpointError, match="refused"):
        client_of(endpoint).check()
    refusing = Answer(body={}, status=401)
    with (
        fake_endpoint(lambda payload: completion("x"), models=refusing) as endpoint,
        pytest.raises(EndpointError, match="refuses this key"),
    ):
        client_of(endpoint).check()
    with fake_endpoint(lambda payload: completion("x"), models=Answer(body={}, status=404)) as endpoint:
        client_of(endpoint).check()


@pytest.mark.parametrize(
    "text",
    ["", "http://host/v1", "ftp://host#m", "http://#m", "http://u:p@host/v1#m", "http://host/v1?key=1#m"],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not URL#MODEL|has a user, a password or a query"):
        Endpoint.parse(text)


def test_a_model_name_may_have_slashes() -> None:
    assert Endpoint.parse("http://host:8000/v1/#Qwen/Qwen3") == Endpoint(
        url="http://host:8000/v1", model="Qwen/Qwen3"
    )
