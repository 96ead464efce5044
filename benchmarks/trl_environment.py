"""Our tasks as TRL plays them by itself: environment class, tokenizer, dataset, reward for its GRPOTrainer.

The same text and the same tokens as in our own rollouts: the tokenizer renders and parses the wire format by
`policies.chat_format`, which costs TRL less than a Jinja template and a response template would.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from envs.episode import TaskEnv
from envs.outcome import Cause
from envs.task import Call, Message
from envs.tools import ParamType, Tool
from policies import chat_format
from rl.trajectory import PlayableTask
from rl.transcript import prompt_text

_ANNOTATIONS: dict[ParamType, type] = {"string": str, "integer": int, "number": float, "boolean": bool}


class WireTokenizer(PreTrainedTokenizerFast):
    """A policy's tokenizer, with what TRL asks of a chat model's."""

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride] (what TRL passes)
        self,
        conversation: list[Any],
        tools: Any = None,
        *,
        tokenize: bool = True,
        return_dict: bool = True,
        **ignored: Any,
    ) -> Any:
        """Conversations, or one, as text or ids. Tools stand in the system message already."""
        batched = isinstance(conversation[0], list)
        texts = [_render(messages) for messages in (conversation if batched else [conversation])]
        if not tokenize:
            return texts if batched else texts[0]
        ids = [self.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        found = ids if batched else ids[0]
        return {"input_ids": found} if return_dict else found

    def parse_response(self, response: list[int], *ignored: Any, **options: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises ValueError for a reply that is not well formed; to TRL it is plain text then."""
        text = self.backend_tokenizer.decode(list(response), skip_special_tokens=False)
        reply = chat_format.parse_reply(text)
        if isinstance(reply, chat_format.ParseFault):
            raise ValueError(reply.fault)
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
        return {"role": "assistant", "content": reply.content} | ({"tool_calls": calls} if calls else {})


def wire_tokenizer(directory: Path) -> WireTokenizer:
    """The tokenizer of a policy directory."""
    tokenizer = WireTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "rendered in Python"
    tokenizer.response_template = {"parsed in": "Python"}
    tokenizer.padding_side = "left"
    return tokenizer


def _render(messages: Sequence[dict[str, Any]]) -> str:
    text, results = "", []
    for message in messages:
        if message["role"] == "tool":
            results.append(message["content"])
            continue
        text += chat_format.render_results(results) if results else ""
        results = []
        if message["role"] == "system":
            text += chat_format.BOS + message["content"]
        elif message["role"] == "user":
            text += chat_format.render_user(message["content"])
        else:
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            text += chat_format.render_reply(
                message["content"],
                [chat_format.ToolCall(name=c["name"], arguments=c["arguments"]) for c in calls],
            )
    return text + (chat_format.render_results(results) if results else "")


def dataset_row(index: int, playable: PlayableTask) -> dict[str, Any]:
    """The task's prompt as TRL's messages, and its place, which the environment's `reset` is given."""
    task = playable.task
    text = prompt_text(task.prompt, task.tools)
    system = text.removeprefix(chat_format.BOS).partition(chat_format.USER)[0]
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": task.prompt[1].content},
    ]
    return {"prompt": messages, "task": index}


class ToolWorld:
    """One of `tasks` at a time; `world_of` adds a method for each tool. To TRL, public methods are tools."""

    tasks: ClassVar[Sequence[PlayableTask]] = ()

    def __init__(self) -> None:
        self._env: TaskEnv | None = None
        self._reward: float | None = None

    def reset(self, *, task: int, **row: Any) -> None:
        if self._env is not None:
            self._env.close()
        playable = self.tasks[task]
        self._env, self._reward = TaskEnv(playable.task, playable.image), None
        self._env.start()

    def _play(self, message: Message) -> str:
        """What the tools say. The episode's reward is kept when it ends."""
        if self._env is None or self._reward is not None:
            return "error: the episode is over"
        result = self._env.play(message)
        if result.cause is not None:
            self._reward = result.reward or 0.0
        return result.messages[0].content if result.messages else "done"

    def _finish(self, last: dict[str, Any]) -> float:
        """The reward, once the policy's last message is an answer; 0 where it stopped amid its calls."""
        if self._reward is None and last["role"] == "assistant" and not last.get("tool_calls"):
            self._play(Message(role="assistant", content=last["content"]))
        elif self._reward is None and self._env is not None:
            self._reward = self._env.stop(Cause.TOKENS).reward
        return self._reward or 0.0


def world_of(tasks: Sequence[PlayableTask]) -> type[ToolWorld]:
    """The class to give to `environment_factory`. The tasks have the same tools."""
    tools = tasks[0].task.tools
    assert all(playable.task.tools == tools for playable in tasks)
    return type("World", (ToolWorld,), {"tasks": tasks} | {tool.name: _method(tool) for tool in tools})


def _method(tool: Tool) -> Callable[..., str]:
    def method(self: ToolWorld, **arguments: Any) -> str:
        call = Call(tool=tool.name, arguments=arguments)
        return self._play(Message(role="assistant", tool_calls=(call,)))

    kinds = {param.name: _ANNOTATIONS[param.type] for param in tool.parameters}
    keyword = inspect.Parameter.KEYWORD_ONLY
    described = "\n".join(f"        {param.name}: {param.description}" for param in tool.parameters)
    method.__name__ = method.__qualname__ = tool.name
    method.__doc__ = f"{tool.description}\n\n    Args:\n{described}" if described else tool.description
    method.__annotations__ = {**kinds, "return": str}
    method.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(inspect.Parameter(name, keyword, annotation=kind) for name, kind in kinds.items()),
        ],
        return_annotation=str,
    )
    return method


def rewards(
    completions: Sequence[Sequence[dict[str, Any]]], environments: Sequence[ToolWorld], **columns: Any
) -> list[float | None]:
    """TRL's reward function: each world's verdict on its episode."""
    return [world._finish(messages[-1]) for world, messages in zip(environments, completions, strict=True)]
