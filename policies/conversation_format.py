"""A whole conversation in the format that DeepSeek-V3.2's released models read, thinking included.

Messages are OpenAI's mappings: `role` (system, developer, user, assistant, tool) and `content`; `tools` and
`response_format` on a system or developer message, `reasoning` (or `reasoning_content`), `tool_calls` and
`prefix` on an assistant's, `tool_call_id` on a tool's. Reasoning stands only after the last user message: a
new one drops it, tool results do not. Character for character what vLLM 0.32's encoder writes, but where that
one is at fault; docs/chat_format.md lists where, tests/conformance/test_vllm_encoder.py compares.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from policies.chat_format import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    THINK,
    USER,
    ToolCall,
    neutral,
    render_calls,
    to_json,
)

Message = Mapping[str, Any]

TOOLS_TEXT: Final = """## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{d}function_calls>" block like the following as part of your reply to the user:
<{d}function_calls>
<{d}invoke name="$FUNCTION_NAME">
<{d}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{d}parameter>
...
</{d}invoke>
<{d}invoke name="$FUNCTION_NAME2">
...
</{d}invoke>
</{d}function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:
<{d}function_calls>
...
</{d}function_calls>
<function_results>
...
</function_results>
<think>...thinking about results</think>
Here are the functions available in JSONSchema format:
<functions>
{schemas}
</functions>
"""  # noqa: E501 (the published prompt, to the letter)


_SCHEMA_TEXT: Final = "You MUST strictly adhere to the following schema to reply:"


def encode_messages(messages: Sequence[Message], *, thinking: bool) -> str:
    """The prompt: where the last message asks for a reply, up to the place where the policy writes.

    Args:
        thinking: whether the policy reasons before it answers.

    Raises ValueError, one line, for messages that the format cannot carry.
    """
    users = [index for index, message in enumerate(messages) if message.get("role") in ("user", "developer")]
    last_user = users[-1] if users else -1
    text, index = BOS, 0
    while index < len(messages):
        message, role = messages[index], messages[index].get("role")
        thinks = thinking and index >= last_user
        if role == "system":
            text += _system(message, index)
        elif role in ("user", "developer"):
            text += _user(message, index) + (THINK if thinks else END_THINK)
        elif role == "assistant":
            calls = _tool_calls(message, index)
            results = _following_results(messages, index)
            text += _assistant(message, index, calls, thinks)
            if results:
                text += _results(message, results, index) + (THINK if thinks else END_THINK)
            index += len(results)
        elif role == "tool":
            raise ValueError(f"message {index}: a tool's result must follow an assistant's calls")
        else:
            raise ValueError(
                f"message {index}: role is {role!r}, expected system, developer, user, assistant or tool"
            )
        if role == "assistant" and message.get("prefix") and index + 1 < len(messages):
            raise ValueError(f"message {index}: only the last message can be a prefix")
        index += 1
    return text


def _text(message: Message, index: int, *, needed: bool) -> str:
    """The message's content, as one string without control tokens."""
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "\n".join(part["text"] for part in content)
    if content is None and not needed:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"message {index}: content must be text, got {content!r:.80}")
    return neutral(content)


def _system(message: Message, index: int) -> str:
    return _text(message, index, needed=False) + _extras(message, index)


def _extras(message: Message, index: int) -> str:
    """The tools and the response format that a message brings."""
    text = ""
    tools = message.get("tools") or []
    if any(not isinstance(tool, Mapping) or "function" not in tool for tool in tools):
        raise ValueError(f"message {index}: tools must be a list of {{'type': 'function', 'function': ...}}")
    if tools:
        schemas = "\n".join(to_json(tool["function"]) for tool in tools)
        text += "\n\n" + TOOLS_TEXT.format(d=DSML, schemas=schemas)
    if message.get("response_format"):
        schema = to_json(message["response_format"])
        text += f"\n\n## Response Format:\n\n{_SCHEMA_TEXT}\n{schema}"
    return text


def _user(message: Message, index: int) -> str:
    content = _text(message, index, needed=True)
    if message["role"] == "developer":
        if not content:
            raise ValueError(f"message {index}: a developer's message must not be empty")
        content = f"{_extras(message, index)}\n\n# The user's message is: {content}"
    return f"{USER}{content}{ASSISTANT}"


def _assistant(message: Message, index: int, calls: Sequence[ToolCall], thinks: bool) -> str:
    """`thinks`: its reasoning is shown, after the tag that opens it."""
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    text = ""
    if thinks:
        if not reasoning and not calls:
            raise ValueError(f"message {index}: after the last user message a reply needs reasoning or calls")
        if THINK in reasoning or END_THINK in reasoning:
            raise ValueError(f"message {index}: its reasoning holds {THINK} or {END_THINK}")
        text = neutral(reasoning) + END_THINK
    text += _text(message, index, needed=False)
    if message.get("prefix") and not calls:
        return text
    return text + render_calls(calls) + EOS


def _tool_calls(message: Message, index: int) -> list[ToolCall]:
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"message {index}: a tool call must be {{'function': {{'name': ..., 'arguments': ...}}}}"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise ValueError(
                    f"message {index}: the arguments of {function['name']} are not JSON"
                ) from None
        if not isinstance(arguments, Mapping):
            raise ValueError(f"message {index}: the arguments of {function['name']} must be an object")
        calls.append(ToolCall(name=function["name"], arguments=dict(arguments)))
    return calls


def _following_results(messages: Sequence[Message], index: int) -> list[Message]:
    stop = index + 1
    while stop < len(messages) and messages[stop].get("role") == "tool":
        stop += 1
    return list(messages[index + 1 : stop])


def _results(message: Message, results: Sequence[Message], index: int) -> str:
    """The block of results, in the order of the calls: by id where all have one, else as they come."""
    calls = message.get("tool_calls") or []
    if len(results) != len(calls):
        raise ValueError(f"message {index}: {len(calls)} calls, but {len(results)} results follow")
    places = {call.get("id"): place for place, call in enumerate(calls)}
    ids = [result.get("tool_call_id") for result in results]
    contents = [_text(result, index + 1 + place, needed=True) for place, result in enumerate(results)]
    if None not in places and None not in ids:
        if set(ids) != set(places) or len(places) != len(calls):
            raise ValueError(f"message {index}: its calls have ids {list(places)}, the results {ids}")
        ordered = sorted(zip(ids, contents, strict=True), key=lambda pair: places[pair[0]])
        contents = [content for _, content in ordered]
    rows = "".join(f"\n<result>{content}</result>" for content in contents)
    return f"\n\n<function_results>{rows}\n</function_results>\n\n"
