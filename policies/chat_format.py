"""One turn after another in DeepSeek-V3.2's wire format, as an episode reads and writes it, and back.

Turns: `<bos>system` `<｜User｜>text<｜Assistant｜></think>` reply `<eos>`, tools as JSON Schema lines in the
system message, calls as DSML blocks, results in call order. Prompts are in chat mode, and their note on tools
is a short one of ours; `conversation_format` has the published one, and thinking. A policy's own text is
parsed strictly, and what is wrong with it is a `ParseFault`, never an exception.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
PAD: Final = "<｜▁pad▁｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
THINK: Final = "<think>"
END_THINK: Final = "</think>"
DSML: Final = "｜DSML｜"
_OPEN: Final = f"\n\n<{DSML}function_calls>\n"
END_CALLS: Final = f"</{DSML}function_calls>"
_CLOSE: Final = f"\n{END_CALLS}"
_INVOKE: Final = f'<{DSML}invoke name="'
_END_INVOKE: Final = f"</{DSML}invoke>"
_PARAM: Final = f'<{DSML}parameter name="'
_END_PARAM: Final = f"</{DSML}parameter>"

_CONTROL: Final = re.compile("|".join(map(re.escape, (BOS, EOS, PAD, USER, ASSISTANT, DSML))))
_BAD_NAME: Final = re.compile(r'["\n｜]')

TAGS: Final = (
    f"{_OPEN}{_INVOKE}",
    f'">\n{_PARAM}',
    '" string="true">',
    '" string="false">',
    f"{_END_PARAM}\n{_PARAM}",
    f"{_END_PARAM}\n{_END_INVOKE}{_CLOSE}",
    f'">\n\n{_END_INVOKE}{_CLOSE}',
    f"\n{_END_INVOKE}\n{_INVOKE}",
    "\n\n<function_results>\n<result>",
    "</result>\n<result>",
    f"</result>\n</function_results>\n\n{END_THINK}",
)
"""What stands between the variable parts of calls and results, longest runs first: a tokenizer's natural
pieces.
"""

TOOLS_TEXT: Final = """## Tools
Call functions by writing a block like this as part of your reply:
<{d}function_calls>
<{d}invoke name="$FUNCTION_NAME">
<{d}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{d}parameter>
...
</{d}invoke>
</{d}function_calls>
Strings are written as they are, other values as JSON. The functions, as JSON Schema:
<functions>
{schemas}
</functions>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A policy's message: free text and calls, after its reasoning."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    reasoning: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseFault:
    """What is wrong with a policy's text, in one line that it can act on."""

    fault: str


def render_prompt(system: str, user: str, tool_schemas: Sequence[Mapping[str, Any]]) -> str:
    """The text up to the place where the policy begins to write."""
    tools = ""
    if tool_schemas:
        schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in tool_schemas)
        tools = "\n\n" + TOOLS_TEXT.format(d=DSML, schemas=schemas)
    return f"{BOS}{neutral(system)}{tools}{USER}{neutral(user)}{ASSISTANT}{END_THINK}"


def render_reply(content: str, tool_calls: Sequence[ToolCall]) -> str:
    """A policy's message as it writes it: it stops after `EOS`, or after the tag that closes its calls.

    The end of sentence after calls is certain, so the policy is not asked for it: `render_results` brings it.
    """
    return content + (render_calls(tool_calls) or EOS)


def render_calls(tool_calls: Sequence[ToolCall]) -> str:
    """The block of calls; nothing where there are none.

    Raises ValueError for a name or a value that the format cannot carry.
    """
    if not tool_calls:
        return ""
    return _OPEN + "\n".join(_render_call(call) for call in tool_calls) + _CLOSE


def neutral(text: str) -> str:
    """Text from outside without the sign that every control token holds, so that it cannot forge one."""
    return text.replace("｜", "|")


def render_results(results: Sequence[str]) -> str:
    """What the policy reads after its calls, up to the place where it writes again."""
    rows = "".join(f"\n<result>{neutral(result)}</result>" for result in results)
    return f"{EOS}\n\n<function_results>{rows}\n</function_results>\n\n{END_THINK}"


def render_user(content: str) -> str:
    """A later user message, up to the place where the policy writes again."""
    return f"{USER}{neutral(content)}{ASSISTANT}{END_THINK}"


def _render_call(call: ToolCall) -> str:
    lines = [_render_argument(name, value) for name, value in call.arguments.items()]
    return f'{_INVOKE}{_checked(call.name)}">\n' + "\n".join(lines) + f"\n{_END_INVOKE}"


def _render_argument(name: str, value: Any) -> str:
    """Text as it is, unless it holds a control token: that would end it early, so it goes as JSON."""
    is_text = isinstance(value, str) and not _CONTROL.search(value)
    text = value if is_text else to_json(value)
    return f'{_PARAM}{_checked(name)}" string="{"true" if is_text else "false"}">{text}{_END_PARAM}'


def to_json(value: Any) -> str:
    """JSON in which no string holds a control token; otherwise its characters as they are.

    Raises ValueError for a number that JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("｜", "\\uff5c") if _CONTROL.search(text) else text


def _checked(name: str) -> str:
    if not name or _BAD_NAME.search(name):
        raise ValueError(f"{name!r} cannot be the name of a tool or parameter: DSML has no escape for it")
    return name


def parse_reply(text: str, *, thinking: bool = False) -> Reply | ParseFault:
    """A policy's text, from its first character to its end of sentence or the end of its calls.

    Args:
        thinking: whether the prompt ended in `<think>`, so that reasoning comes first.
    """
    body, end, rest = text.partition(EOS)
    if rest:
        return ParseFault(fault="text after the end of the message")
    if not end and not text.endswith(_CLOSE):
        return ParseFault(fault="the message does not end")
    reasoning, closed, body = body.partition(END_THINK) if thinking else ("", END_THINK, body)
    if not closed:
        return ParseFault(fault="the reasoning does not end")
    content, opening, block = body.partition(_OPEN)
    if any(_CONTROL.search(part) or THINK in part or END_THINK in part for part in (reasoning, content)):
        return ParseFault(fault="a control token inside the text")
    if not opening:
        return Reply(content=content, tool_calls=(), reasoning=reasoning)
    if not block.endswith(_CLOSE):
        return ParseFault(fault="the block of calls is not closed, or text follows it")
    calls = _parse_block(block.removesuffix(_CLOSE))
    if isinstance(calls, ParseFault):
        return calls
    return Reply(content=content, tool_calls=calls, reasoning=reasoning)


def _parse_block(block: str) -> tuple[ToolCall, ...] | ParseFault:
    calls: list[ToolCall] = []
    rest = block
    while True:
        if not rest.startswith(_INVOKE):
            return ParseFault(fault="a call does not begin with its invoke tag")
        name, quote, rest = rest.removeprefix(_INVOKE).partition('">\n')
        body, end, rest = rest.partition(_END_INVOKE)
        if not quote or not end or not name or _BAD_NAME.search(name):
            return ParseFault(fault="an invoke tag is not well formed")
        arguments = _parse_arguments(body)
        if isinstance(arguments, ParseFault):
            return arguments
        calls.append(ToolCall(name=name, arguments=arguments))
        if not rest:
            return tuple(calls)
        if not rest.startswith("\n"):
            return ParseFault(fault="text between two calls")
        rest = rest[1:]


def _parse_arguments(body: str) -> dict[str, Any] | ParseFault:
    arguments: dict[str, Any] = {}
    rest = body
    while rest.strip("\n"):
        rest = rest.lstrip("\n")
        if not rest.startswith(_PARAM):
            return ParseFault(fault="text between the parameters of a call")
        head, closed, rest = rest.removeprefix(_PARAM).partition('">')
        name, marked, kind = head.partition('" string="')
        value, end, rest = rest.partition(_END_PARAM)
        if not (closed and marked and end) or kind not in ("true", "false"):
            return ParseFault(fault="a parameter tag is not well formed")
        if not name or _BAD_NAME.search(name):
            return ParseFault(fault="a parameter tag is not well formed")
        if name in arguments:
            return ParseFault(fault=f"parameter {name} is given twice")
        if _CONTROL.search(value):
            return ParseFault(fault=f"a control token inside the value of parameter {name}")
        try:
            arguments[name] = value if kind == "true" else parse_json(value)
        except (ValueError, RecursionError):
            return ParseFault(fault=f"the value of parameter {name} is not JSON")
    return arguments


def parse_json(text: str) -> Any:
    """Raises ValueError for what is not JSON, NaN, 1e999 and half a character (a lone surrogate) included."""
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value
