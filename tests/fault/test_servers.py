"""What real servers and gateways are reported to answer, and what becomes of it."""

import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.errors import EscalationError
from ray_judge.escalation.books.books import Books

from .one_process import PhaseB, ask, configuration
from .plain import PlainServer, Said, completion, error, plain_server
from .test_caps import STEPS, long_unless_sampled

Reply = Callable[[dict[str, Any], int], Said]
ROWS = [f"row {number}" for number in range(100)]


def good(body: dict[str, Any], number: int) -> Said:
    return Said(completion())


def run(
    folder: Path, reply: Reply, rows: list[str] = ROWS, cap: str = "5", **strong: Any
) -> tuple[PhaseB, PlainServer]:
    """Ask `rows`; what is on file is what the server billed, where it sent usage."""
    with plain_server(reply) as server:
        config = configuration(folder, server, cap, **{"temperature": None, **strong})  # type: ignore[arg-type]
        return ask(config, server, rows), server  # type: ignore[arg-type]


ODD_IDS: dict[str, Reply] = {
    "ids out of 999": lambda body, n: Said(completion(id=f"chatcmpl-{random.randrange(999)}")),
    "one long id": lambda body, n: Said(completion(f'{{"verdict": "{"AB"[n % 2]}"}}', id="i" * 40)),
    "one id, one answer": lambda body, n: Said(completion(id="chatcmpl-" + "i" * 40)),
    "no id, no model": lambda body, n: Said(completion(id=None, model=None)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_IDS)
def test_each_answer_is_read_and_each_row_asked_once(tmp_path: Path, name: str) -> None:
    phase, server = run(tmp_path, ODD_IDS[name])
    assert (phase.error, phase.outcomes) == (None, {"resolved": 100})
    doubted = len(server.requests) - 100
    assert doubted <= (2 if name.startswith("one") else 0)  # one of each asker's, counted in full
    assert doubted or phase.state["spent_usd"] == server.usd
    assert phase.state["spent_usd"] >= server.usd


REFUSED_SCHEMA: dict[str, Said] = {
    "without param": error(400, "this kind of response_format is not available",
                           type="invalid_request_error", param=None, code="invalid_request_error"),
    "as text": Said(status=422, text="cannot deserialize response_format.type"),
    "as vllm says it": Said({"object": "error", "message": "extra field", "code": 400,
                             "type": "BadRequestError", "param": None}, 400),
    "by param": error(400, "no", param="response_format.json_schema"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_SCHEMA)
def test_a_server_without_schemas_is_asked_in_words(tmp_path: Path, name: str) -> None:
    def reply(body: dict[str, Any], number: int) -> Said:
        return REFUSED_SCHEMA[name] if "response_format" in body else Said(completion())

    phase, server = run(tmp_path, reply)
    assert (phase.error, phase.outcomes) == (None, {"resolved": 100})
    assert len(server.requests) <= 102  # once more per asker
    assert phase.state["spent_usd"] == server.usd


@pytest.mark.parametrize(
    ("code", "ends"), [("context_length_exceeded", 0), ("content_filter", 0), ("strange", 2)]
)
def test_rows_that_fail_first_do_not_end_every_run(tmp_path: Path, code: str, ends: int) -> None:
    """Where it is not clear whose fault that is the next run begins with others."""
    rows = [*(f"FLAGGED {number}" for number in range(40)), *ROWS]
    bad = error(400, "no", code=code)
    for left in range(ends, -1, -1):
        phase, server = run(
            tmp_path, lambda body, n: bad if "FLAGGED" in str(body) else good(body, n), rows
        )
        assert isinstance(phase.error, EscalationError) is (left > 0)
        assert not left or len(server.requests) <= 16
    assert phase.outcomes["resolved"] == 100 and phase.outcomes["pending"] == 0


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_lets_nothing_through_ends_the_run(tmp_path: Path, status: int) -> None:
    """No row is to blame: all are asked when the key is good again."""
    phase, server = run(tmp_path, lambda body, n: good(body, n) if n < 40 else error(status, "no"))
    assert isinstance(phase.error, EscalationError) and len(server.requests) < 80
    phase, server = run(tmp_path, good)
    assert phase.outcomes == {"resolved": 100} and len(server.requests) == 61


@pytest.mark.parametrize("step", [*map(long_unless_sampled, range(STEPS))])
@pytest.mark.parametrize("tokens", [(200, 25 * 300), (6000, 8)])
def test_a_server_that_ignores_its_limits_costs_one_answer_more(
    tmp_path: Path, step: int, tokens: tuple[int, int]
) -> None:
    """Never more than the cap, from $0.05 to $5, and what the first answer cost beyond its lease.

    Of 25 times the output that was allowed, or of a prompt that the server adds.
    """
    cap = f"{0.05 + step * 4.95 / (STEPS - 1):.3f}"
    phase, server = run(tmp_path, lambda body, n: Said(completion(tokens=tokens)), cap=cap)
    config = configuration(tmp_path, server, cap)  # type: ignore[arg-type]
    excess = Books.of(config).excess().usd
    assert phase.error is None and phase.state["spent_usd"] == server.usd
    assert 0 < excess < server.usd / len(server.requests)
    assert server.usd <= Decimal(cap) + excess


def test_an_address_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    with plain_server(good) as other:
        moved = Said(None, 307, {"location": f"{other.base_url}/chat/completions?key=1"})
        with plain_server(lambda body, n: moved) as server:
            phase = ask(configuration(tmp_path, server, "5"), server, ROWS[:9])  # type: ignore[arg-type]
    said = f"HTTP 307: the answers are at {other.base_url}/chat/completions. Check strong.base_url"
    assert isinstance(phase.error, EscalationError) and str(phase.error).endswith(said)
    assert len(server.requests) == 1 and not other.requests


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/chat/completions", "it is to end before /chat/completions"),
        ("", "which most servers want to end in /v1"),
        ("/v1", "strong.model and strong.base_url"),
    ],
)
def test_an_address_that_leads_nowhere(tmp_path: Path, path: str, said: str) -> None:
    with plain_server(lambda body, n: Said({"detail": "Not Found"}, 404)) as server:
        server.base_url = server.base_url.removesuffix("/v1") + path
        phase = ask(configuration(tmp_path, server, "5"), server, ROWS[:9])  # type: ignore[arg-type]
    assert isinstance(phase.error, EscalationError) and str(phase.error).endswith(said)
    assert len(server.requests) == 1
