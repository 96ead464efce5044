"""A conversation as token ids: which of them the policy wrote, and which it read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envs.task import Call, Message
from envs.tools import Tool, json_schema
from policies import chat_format
from policies.tokenizer import TextCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """token_ids: the whole conversation; written: True where the policy wrote the token."""

    token_ids: tuple[int, ...]
    written: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A conversation to learn from: a system and a user message, then what a demonstrator did and read."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reward: float


def prompt_text(prompt: Sequence[Message], tools: Sequence[Tool]) -> str:
    """A task's prompt up to where the policy begins. Raises ValueError unless it is one system and one user
    message.
    """
    if [message.role for message in prompt] != ["system", "user"]:
        raise ValueError(
            f"a prompt is a system and a user message, got {[message.role for message in prompt]}"
        )
    system, user = (message.content for message in prompt)
    return chat_format.render_prompt(system, user, [json_schema(tool) for tool in tools])


def reply_text(message: Message) -> str:
    calls = [chat_format.ToolCall(name=call.tool, arguments=call.arguments) for call in message.tool_calls]
    return chat_format.render_reply(message.content, calls)


def environment_text(messages: Sequence[Message], *, ended: bool) -> str:
    """What the policy reads next: results of its calls, or a user message. `ended`: it closed its turn
    itself.
    """
    if any(message.role == "user" for message in messages):
        text = chat_format.render_user("\n".join(message.content for message in messages))
        return text if ended else chat_format.EOS + text
    return chat_format.render_results([message.content for message in messages])


def to_message(reply: chat_format.Reply) -> Message:
    calls = tuple(Call(tool=call.name, arguments=call.arguments) for call in reply.tool_calls)
    return Message(role="assistant", content=reply.content, tool_calls=calls)


def segments(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[tuple[str, bool]]:
    """A conversation's text, piece by piece as an episode reads and writes it, and whether the policy wrote
    it.
    """
    yield prompt_text(messages[:2], tools), False
    index = 2
    while index < len(messages):
        if messages[index].role == "assistant":
            yield reply_text(messages[index]), True
            index += 1
            continue
        end = next((i for i in range(index, len(messages)) if messages[i].role == "assistant"), len(messages))
        yield environment_text(messages[index:end], ended=not messages[index - 1].tool_calls), False
        index = end


def conversation_text(demonstration: Demonstration) -> str:
    return "".join(text for text, _ in segments(demonstration.messages, demonstration.tools))


def encode_conversation(messages: Sequence[Message], tools: Sequence[Tool], codec: TextCodec) -> Transcript:
    """A finished conversation; each piece is encoded by itself, as an episode reads and writes it."""
    token_ids: list[int] = []
    written: list[bool] = []
    for text, by_policy in segments(messages, tools):
        new = codec.encode(text)
        token_ids += new
        written += [by_policy] * len(new)
    return Transcript(token_ids=tuple(token_ids), written=tuple(written))
