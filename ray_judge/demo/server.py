"""The demo's strong judge: a simulated OpenAI-compatible server in a thread of this process.

No model runs in it. It knows the answer to each question of the demo beforehand, by the question's
key, and counts tokens so that the run has something to pay.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ray_judge.escalation.questions import canonical_key

ACCURACY = 0.97
"""Share of the pairs that the simulated judge gets right."""
ANSWER_TOKENS = 4
"""Tokens of `{"verdict":"A"}`."""
VERDICTS = ("A", "B", "tie")


@dataclass(frozen=True, slots=True)
class StrongAnswer:
    """What the simulated judge thinks about one pair, and what asking it takes."""

    verdict: str
    prompt_tokens: int

    @property
    def content(self) -> str:  # the demo allows no ties, so a tie is written as A
        return json.dumps({"verdict": "B" if self.verdict == "B" else "A"}, separators=(",", ":"))


def strong_verdict(instruction: str, responses: tuple[str, str], label: str) -> str:
    """Give the label, or another verdict for the pairs, chosen by their texts, told wrong."""
    texts = [text.strip() for text in (instruction, *responses)]
    pair = hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
    if _draw("right", pair) < ACCURACY:
        return label
    wrong = [verdict for verdict in VERDICTS if verdict != label]
    return wrong[int(_draw("wrong", pair) * len(wrong))]


def _draw(purpose: str, pair: str) -> float:
    """A uniform number in [0, 1) that is a fixed function of its arguments."""
    digest = hashlib.sha256(f"0\x1f{purpose}\x1f{pair}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of a request: one per four bytes of texts and schema, and three per message."""
    texts = "".join(message["content"] for message in body["messages"])
    schema = json.dumps(body["response_format"], sort_keys=True, separators=(",", ":"))
    count = sum(-(-len(text.encode()) // 4) for text in (texts, schema))
    return count + 3 * len(body["messages"])


class DemoServer(ThreadingHTTPServer):
    """Listens on loopback; `answers` (key of a question → its answer) is filled before the run."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, StrongAnswer] = {}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open between questions
    disable_nagle_algorithm = True
    server: DemoServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = canonical_key(body)
        answer = self.server.answers.get(key)
        if self.path != "/v1/chat/completions" or answer is None:
            why = "this server answers the questions of one demo and no others"
            self._send(404, {"error": {"message": why, "type": "invalid_request_error"}})
            return
        message = {"role": "assistant", "content": answer.content}
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": ANSWER_TOKENS}
        completion = {
            "id": f"chatcmpl-demo-{key[:24]}",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }
        self._send(200, completion)

    def _send(self, status: int, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def running_server() -> Iterator[DemoServer]:
    """A server for the length of a `with` block."""
    with DemoServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
