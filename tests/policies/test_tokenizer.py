"""The learnt tokenizer: exact on any text, names whole, digits single, tags and set phrases one token."""

import random

import pytest

from policies import chat_format
from policies.chat_format import ToolCall, render_prompt, render_reply, render_results
from policies.tokenizer import TextCodec, build_tokenizer, learn_pieces

NAMES = ["Aldora", "Benting", "Corvo", "Delphine", "Elmsworth", "Fairholt"]
SYSTEM = "You book hotels with the tools. Look a hotel up before you choose it."


def conversation(rng: random.Random) -> str:
    chosen = rng.sample(NAMES, 3)
    call = ToolCall(name="get_price", arguments={"hotel": chosen[1]})
    return (
        render_prompt(SYSTEM, f"A room under {rng.randrange(100, 999)}.", [{"name": "get_price"}])
        + render_reply("", [ToolCall(name="list_hotels", arguments={})])
        + render_results([" | ".join(chosen)])
        + render_reply("", [call])
        + render_results([f"price {rng.randrange(100, 999)}"])
        + render_reply(chosen[1], [])
    )


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    rng = random.Random(0)
    return TextCodec(build_tokenizer(learn_pieces([conversation(rng) for _ in range(300)], max_pieces=500)))


def pieces(codec: TextCodec, text: str) -> list[str]:
    return [codec.decode([token]) for token in codec.encode(text)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "Größe 你好 🎉\x00\r\n\t",
        "<｜DSML｜invoke",
        "<｜User｜>",
        "0x41 <0x41> Ġ",
        "a" * 5000,
        "\u202e\ufeff",
    ],
)
def test_any_text_goes_through_unchanged(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


def test_a_name_is_one_token_and_the_same_one_wherever_it_stands(codec: TextCodec) -> None:
    for name in NAMES:
        (alone,) = codec.encode(name)
        listed = codec.encode(render_results([f"Zzz | {name} | Zzz"]))
        called = codec.encode(render_reply("", [ToolCall(name="get_price", arguments={"hotel": name})]))
        assert alone in listed
        assert alone in called


def test_digits_are_single_tokens(codec: TextCodec) -> None:
    assert pieces(codec, "price 407")[-3:] == ["4", "0", "7"]


def test_the_shared_prompt_is_a_handful_of_tokens(codec: TextCodec) -> None:
    prompt = render_prompt(SYSTEM, "A room under 350.", [{"name": "get_price"}])
    assert len(prompt) > 500
    assert len(codec.encode(prompt)) <= 12


def test_a_turn_ends_with_a_stop_token_and_holds_no_other(codec: TextCodec) -> None:
    for reply in (
        render_reply("Aldora", []),
        render_reply("", [ToolCall(name="get_price", arguments={"hotel": "Corvo"})]),
    ):
        tokens = codec.encode(reply)
        assert tokens[-1] in codec.stop_ids
        assert not set(tokens[:-1]) & codec.stop_ids


def test_no_token_reaches_from_what_is_read_into_what_is_written(codec: TextCodec) -> None:
    for seed in range(20):
        text = conversation(random.Random(seed))
        for piece in pieces(codec, text):
            assert chat_format.END_THINK not in piece.removesuffix(chat_format.END_THINK)
