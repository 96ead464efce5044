"""TRL's own path sees the text, the tokens, the tools and the rewards of our rollouts: only then may they be
compared.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import get_json_schema
from trl.chat_template_utils import (
    is_chat_template_prefix_preserving,
    parse_response,
    supports_tool_calling,
)
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.trl_environment import (
    ToolWorld,
    WireTokenizer,
    dataset_row,
    rewards,
    wire_tokenizer,
    world_of,
)
from envs.agents import gold_plan
from envs.task import Call, Message
from envs.tools import json_schema
from policies import chat_format
from policies.tokenizer import TextCodec, build_tokenizer, learn_pieces
from rl.trajectory import PlayableTask
from rl.transcript import conversation_text, environment_text, prompt_text, reply_text
from tests.rl.small_run import make_data, playable


@pytest.fixture(scope="module")
def tasks() -> list[PlayableTask]:
    return playable(range(3), 2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WireTokenizer:
    directory: Path = tmp_path_factory.mktemp("policy")
    texts = [conversation_text(shown) for shown in make_data().clean]
    build_tokenizer(learn_pieces(texts, max_pieces=500)).save_pretrained(directory)
    return wire_tokenizer(directory)


def test_a_prompt_has_the_tokens_of_our_rollouts(tokenizer: WireTokenizer, tasks: list[PlayableTask]) -> None:
    for index, one in enumerate(tasks):
        row = dataset_row(index, one)
        theirs = tokenizer.apply_chat_template(conversation=[row["prompt"]], tools=[], tokenize=True)
        assert theirs["input_ids"][0] == TextCodec(tokenizer).encode(
            prompt_text(one.task.prompt, one.task.tools)
        )
        assert row["task"] == index


def test_what_tools_said_has_the_tokens_of_our_rollouts(tokenizer: WireTokenizer) -> None:
    trainer: Any = SimpleNamespace(processing_class=tokenizer, _tokenizer=tokenizer, chat_template=None)
    trainer.chat_template_kwargs, trainer._is_vlm = {}, False
    said = [
        {"role": "tool", "name": "get_order_details", "content": text} for text in ("kettle; pending", "none")
    ]
    theirs = GRPOTrainer._get_tool_suffix_ids(trainer, said)
    messages = [Message(role="tool", content=one["content"]) for one in said]
    assert theirs == TextCodec(tokenizer).encode(environment_text(messages, ended=False))


def test_trl_takes_the_tokenizer_for_one_that_calls_tools(tokenizer: WireTokenizer) -> None:
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)


def test_replies_are_read_as_ours_are(tokenizer: WireTokenizer) -> None:
    codec = TextCodec(tokenizer)
    calls = (Call(tool="a", arguments={"x": "1"}), Call(tool="b", arguments={}))
    text = reply_text(Message(role="assistant", content="so", tool_calls=calls))
    read = parse_response(tokenizer, codec.encode(text), prefix=[], tools=[])
    assert read["content"] == "so"
    assert [call["function"] for call in read["tool_calls"]] == [
        {"name": "a", "arguments": {"x": "1"}},
        {"name": "b", "arguments": {}},
    ]
    answer = parse_response(tokenizer, codec.encode("refused" + chat_format.EOS), prefix=[], tools=[])
    assert answer == {"role": "assistant", "content": "refused"}
    cut_short = parse_response(tokenizer, codec.encode(text[:-3]), prefix=[], tools=[])
    assert "tool_calls" not in cut_short


def opened(tasks: list[PlayableTask], index: int) -> ToolWorld:
    world = world_of(tasks)()
    world.reset(**dataset_row(index, tasks[index]))
    return world


def call(world: ToolWorld, name: str, arguments: dict[str, Any]) -> str:
    return getattr(world, name)(**arguments)


def test_tools_are_methods_that_trl_describes_as_we_do(tasks: list[PlayableTask]) -> None:
    world = opened(tasks, 0)
    public = [
        name
        for name, _ in inspect.getmembers(type(world), predicate=inspect.isfunction)
        if not name.startswith("_") and name != "reset"
    ]
    assert sorted(public) == sorted(tool.name for tool in tasks[0].task.tools)
    for tool in tasks[0].task.tools:
        theirs, ours = get_json_schema(getattr(world, tool.name))["function"], json_schema(tool)
        assert (theirs["name"], theirs["description"]) == (ours["name"], ours["description"])
        assert theirs["parameters"]["required"] == ours["parameters"]["required"]
        for name, shown in theirs["parameters"]["properties"].items():
            meant = ours["parameters"]["properties"][name]
            assert (shown["type"], shown["description"]) == (meant["type"], meant["description"])


def test_a_gold_played_by_method_calls_is_rewarded_and_a_wrong_answer_is_not(
    tasks: list[PlayableTask],
) -> None:
    for index, one in enumerate(tasks):
        plan = gold_plan(one.task)
        world = opened(tasks, index)
        for step in plan.calls:
            assert not call(world, step.tool, step.arguments).startswith("error")
        right = [{"role": "tool", "content": "x"}, {"role": "assistant", "content": plan.answer}]
        wrong = opened(tasks, index)
        lazy = [{"role": "assistant", "content": "neither of the answers"}]
        assert rewards([right, lazy], [world, wrong]) == [1.0, 0.0]
        assert call(world, plan.calls[0].tool, plan.calls[0].arguments) == "error: the episode is over"


def test_an_episode_that_stops_amid_its_calls_scores_nothing(tasks: list[PlayableTask]) -> None:
    plan = gold_plan(tasks[0].task)
    calls = [{"type": "function", "function": {"name": "x", "arguments": {}}}]
    for last in (
        {"role": "assistant", "content": plan.answer, "tool_calls": calls},
        {"role": "tool", "content": "x"},
    ):
        world = opened(tasks, 0)
        for step in plan.calls:
            call(world, step.tool, step.arguments)
        assert rewards([[last]], [world]) == [0.0]


def test_a_world_begins_anew_when_it_is_reset(tasks: list[PlayableTask]) -> None:
    world = opened(tasks, 0)
    rewards([[{"role": "assistant", "content": "done"}]], [world])
    world.reset(**dataset_row(1, tasks[1]))
    plan = gold_plan(tasks[1].task)
    for step in plan.calls:
        call(world, step.tool, step.arguments)
    assert rewards([[{"role": "assistant", "content": plan.answer}]], [world]) == [1.0]
