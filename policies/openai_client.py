"""A model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a hosted one), a message at a time.

What comes back is hostile: capped while it is read, checked field by field, never trusted to be an answer to
what was asked. A message of the model's that cannot be used is a `fault` that the model is told; an endpoint
that does not answer as one should raises `EndpointError`, which says nothing about the model.
"""

import difflib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from policies.chat_format import ToolCall, parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_RESPONSE_BYTES = 8 << 20
RETRIES = 5
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE_S = 60
"""Between two tries, whatever the endpoint asks for."""
CONNECT_S = 20.0
SAID = 300
"""Characters of an endpoint's own words that an error shows."""
_CONTEXT_SIGNS = ("context_length_exceeded", "maximum context length", "context window", "context size")


class EndpointError(OSError):
    """The endpoint cannot be reached, refuses, or answers with something else than a completion."""


class ContextFullError(Exception):
    """The conversation no longer fits into the model's context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """`url` ends where `/chat/completions` begins, as http://localhost:8000/v1."""

    url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """From `URL#MODEL`. Raises ValueError, one line."""
        url, _, model = text.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise ValueError(
                f"{text!r} is not URL#MODEL; give for example openai:http://localhost:8000/v1#Qwen/Qwen3-8B"
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"the URL of {model} has a user, a password or a query; give the key in {KEY_VARIABLE}"
            )
        return cls(url=url.rstrip("/"), model=model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One message of the model's.

    message: as it goes back into the conversation. fault: why it cannot be used; empty where it can.
    """

    content: str
    tool_calls: tuple[ToolCall, ...]
    message: dict[str, Any]
    cut: bool
    """Its tokens ran out before its end."""
    fault: str
    prompt_tokens: int
    completion_tokens: int


class _Function(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(BaseModel):
    id: str | None = None
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(strict=True)

    prompt_tokens: int = Field(default=0, ge=0, lt=1 << 53)
    completion_tokens: int = Field(default=0, ge=0, lt=1 << 53)


class _Answer(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class EndpointClient:
    """Asks one endpoint; any number of threads may. The key, from `OPENAI_API_KEY`, is stored nowhere."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        timeout_s: float = 600.0,
        retries: int = RETRIES,
    ) -> None:
        self.endpoint = endpoint
        self._fields: dict[str, Any] = {"model": endpoint.model, "temperature": temperature}
        if max_tokens is not None:
            self._fields["max_completion_tokens"] = max_tokens
        self._timeout_s = timeout_s
        self._retries = retries
        self._threads = threading.local()

    def check(self) -> None:
        """Asks for the endpoint's models, so that a wrong address, key or name is found before anything else.

        Raises ValueError for a model that it does not list, EndpointError where it does not answer.
        """
        status, body, said = self._ask("GET", "models", None, retries=min(1, self._retries))
        if status in (401, 403):
            raise EndpointError(f"{self.endpoint.url}: refuses this key ({status}); set {KEY_VARIABLE}")
        rows = body.get("data") if isinstance(body, dict) else None
        if status == 404 or (status == 200 and not isinstance(rows, list)):
            return  # not every endpoint lists its models
        if status != 200 or not isinstance(rows, list):
            raise EndpointError(f"{self.endpoint.url}/models: answered {status}: {said}")
        names = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
        if names and self.endpoint.model not in names:
            near = difflib.get_close_matches(self.endpoint.model, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:5])}"
            raise ValueError(f"{self.endpoint.url} has no model {self.endpoint.model!r}; {hint}")

    def complete(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, seed: int
    ) -> Completion:
        """The model's next message.

        Args:
            messages: the conversation in the chat API's form.
            tools: name, description and JSON Schema of the parameters of each.

        Raises:
            ContextFullError: the conversation is longer than the model's context.
            EndpointError: no completion, after as many tries as make sense.
        """
        payload = {**self._fields, "messages": list(messages), "seed": seed & 0x7FFFFFFF}
        if tools:
            payload["tools"] = [{"type": "function", "function": tool} for tool in tools]
        status, body, said = self._ask("POST", "chat/completions", payload, retries=self._retries)
        if status in (400, 413, 422) and any(sign in said.lower() for sign in _CONTEXT_SIGNS):
            raise ContextFullError(said)
        if status != 200:
            raise EndpointError(f"{self.endpoint.url}: answered {status}: {said}")
        try:
            return _completion(_Answer.model_validate(body))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            raise EndpointError(
                f"{self.endpoint.url}: not a chat completion: {where}: {first['msg']}"
            ) from None

    def _ask(
        self, method: str, path: str, payload: dict[str, Any] | None, *, retries: int
    ) -> tuple[int, Any, str]:
        """Status, JSON body (None where it is none) and the body's first words. Raises EndpointError."""
        deadline = time.monotonic() + 2 * self._timeout_s
        try:
            with self._session(retries).request(
                method,
                f"{self.endpoint.url}/{path}",
                json=payload,
                timeout=(CONNECT_S, self._timeout_s),
                stream=True,
                allow_redirects=False,
            ) as response:
                raw = _read(response, deadline)
                status = response.status_code
        except requests.RequestException as error:
            raise EndpointError(f"{self.endpoint.url}: {_reason(error)}") from None
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        return status, body, _shown(raw)

    def _session(self, retries: int) -> requests.Session:
        """This thread's, which keeps its connection."""
        sessions: dict[int, requests.Session] = self._threads.__dict__.setdefault("sessions", {})
        if retries not in sessions:
            session = sessions[retries] = requests.Session()
            retry = Retry(
                total=retries,
                read=min(1, retries),
                backoff_factor=0.5,
                backoff_jitter=0.5,
                backoff_max=LONGEST_PAUSE_S,
                retry_after_max=LONGEST_PAUSE_S,
                status_forcelist=RETRIED,
                allowed_methods=None,
                raise_on_status=False,
            )
            session.mount("http://", HTTPAdapter(max_retries=retry))
            session.mount("https://", HTTPAdapter(max_retries=retry))
            session.auth = _bearer
        return sessions[retries]


def _bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
    if key := os.environ.get(KEY_VARIABLE):
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, at most `MAX_RESPONSE_BYTES` of it and for a limited time. Raises EndpointError."""
    raw = bytearray()
    for chunk in response.iter_content(1 << 16):
        raw += chunk
        if len(raw) > MAX_RESPONSE_BYTES:
            raise EndpointError(f"{response.url}: answered with more than {MAX_RESPONSE_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise EndpointError(f"{response.url}: took too long to answer")
    return bytes(raw)


def _reason(error: requests.RequestException) -> str:
    """What lies at the bottom of a chain of wrapped errors, in one line."""
    cause: Any = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause
    return " ".join(str(cause).split())[:SAID]


def _shown(raw: bytes) -> str:
    text = raw[: 4 * SAID].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SAID]


def _completion(answer: _Answer) -> Completion:
    choice = answer.choices[0]
    content = _sound(choice.message.content or "")
    calls = choice.message.tool_calls or []
    parsed: list[ToolCall] = []
    fault = ""
    for call in calls:
        name, given = _sound(call.function.name), call.function.arguments
        try:
            arguments = parse_json(given if isinstance(given, str) and given else json.dumps(given or {}))
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            parsed.append(ToolCall(name=name, arguments=arguments))
        else:
            fault = fault or f"the arguments of the call to {name[:80]} are not a JSON object"
    usage = answer.usage or _Usage()
    return Completion(
        content=content,
        tool_calls=() if fault else tuple(parsed),
        message=_sent_back(content, choice.message, () if fault else parsed, unusable=calls if fault else ()),
        cut=choice.finish_reason == "length",
        fault=fault,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _sent_back(
    content: str, message: _Message, calls: Sequence[ToolCall], *, unusable: Sequence[_Call]
) -> dict[str, Any]:
    """The assistant's message in the chat API's form; calls that cannot be used are shown to it as text."""
    said = [f"{_sound(call.function.name)}({_sound(str(call.function.arguments))})" for call in unusable]
    back: dict[str, Any] = {"role": "assistant", "content": "\n".join([content, *said]).strip()}
    if message.reasoning_content:
        back["reasoning_content"] = _sound(message.reasoning_content)
    if calls:
        ids = [call.id or f"call_{place}" for place, call in enumerate(message.tool_calls or [])]
        if len(set(ids)) < len(ids):
            ids = [f"call_{place}" for place in range(len(ids))]
        back["tool_calls"] = [
            {
                "id": _sound(name),
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for name, call in zip(ids, calls, strict=True)
        ]
    return back


def _sound(text: str) -> str:
    """Without half characters (lone surrogates), which no file and no database takes."""
    return text.encode("utf-8", "replace").decode()
