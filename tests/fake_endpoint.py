"""An OpenAI-compatible endpoint in this process: what it answers is a function of what it is asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    body: Any
    """As JSON, or bytes as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class FakeEndpoint:
    """url: what a client is given. asked: the payloads, in order. keys: the Authorization header of each."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def completion(content: str | None = None, *calls: tuple[str, Any], finish: str = "stop") -> Answer:
    """A chat completion with a message; each call is (name, arguments), these as text or as an object."""
    tool_calls = [
        {
            "id": f"id-{place}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for place, (name, given) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": tool_calls or None}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return Answer(body={"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


@contextmanager
def fake_endpoint(
    answer: Callable[[dict[str, Any]], Answer], *, models: Answer | None = None
) -> Iterator[FakeEndpoint]:
    """Serves until the block ends. `models` answers the question which models there are."""
    listed = models or Answer(body={"data": [{"id": "some/model"}]})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(listed)

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append(payload)
            endpoint.keys.append(self.headers.get("Authorization"))
            self._send(answer(payload))

        def _send(self, what: Answer) -> None:
            raw = what.body if isinstance(what.body, bytes) else json.dumps(what.body).encode()
            self.send_response(what.status)
            for name, value in what.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = FakeEndpoint(url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
