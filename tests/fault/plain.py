"""A plain OpenAI-compatible server: it answers as a test says, and counts its own bill.

The simulated provider proves what we thought of; this one sends what real servers and gateways are
reported to send.
"""

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PRICES = Decimal("0.000002"), Decimal("0.000008")
"""Dollars per token, in and out: gpt-4.1's."""


@dataclass
class Said:
    """One answer; `text` in place of a document. It is billed at once, and sent after `wait_s`."""

    document: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    wait_s: float = 0.0


def completion(
    content: Any = '{"verdict": "A"}', tokens: tuple[int, int] = (200, 8), **more: Any
) -> dict[str, Any]:
    """A good answer, but for what is given; `id=...` and the like change the document."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return {
        "id": f"chatcmpl-{next(_numbers):032x}", "object": "chat.completion", "model": "m",
        "choices": [{**choice, "finish_reason": more.pop("finish_reason", "stop")}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
        **more,
    }  # fmt: skip


_numbers = iter(range(1 << 62))


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Said:
    return Said({"error": {"message": message, **more}}, status, headers or {})


@dataclass
class PlainServer:
    """What `one_process.ask` needs of a server, and what it saw."""

    base_url: str
    api_key: str = "sk-plain"
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request, by their names in small letters."""
    usd: Decimal = Decimal(0)
    billed: Counter[str] = field(default_factory=Counter)
    """How often each question was, by its text."""
    first_answer_at: float | None = None
    paths: set[str] = field(default_factory=set)

    def bill(self, body: dict[str, Any], document: Any) -> None:
        usage = document.get("usage") if isinstance(document, dict) else None
        if usage and document.get("choices") is not None:
            counts = usage["prompt_tokens"], usage["completion_tokens"]
            self.usd += sum((n * each for n, each in zip(counts, PRICES, strict=True)), Decimal(0))
            self.billed[json.dumps(body.get("messages", body.get("prompt")))] += 1


@contextmanager
def plain_server(
    reply: Callable[[dict[str, Any], int], Said], tls: ssl.SSLContext | None = None
) -> Iterator[PlainServer]:
    """`reply` gives the answer to a request's body; its number counts from 1."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            server.paths.add(self.path)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.requests.append(body)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                said = reply(body, len(server.requests))
                server.bill(body, said.document)
            time.sleep(said.wait_s)
            text = json.dumps(said.document) if said.text is None else said.text
            server.first_answer_at = server.first_answer_at or time.monotonic()
            self.send_response(said.status)
            for name, value in {**said.headers, "content-length": len(text.encode())}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Listener(("127.0.0.1", 0), Handler) as listener:
        scheme = "https" if tls else "http"
        server = PlainServer(f"{scheme}://127.0.0.1:{listener.server_port}/v1")
        if tls:
            listener.socket = tls.wrap_socket(listener.socket, server_side=True)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield server
        listener.shutdown()
