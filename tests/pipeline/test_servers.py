"""Whole runs against plain servers that answer as real ones and gateways are reported to.

What phase B makes of each answer is held by `tests/fault/test_servers.py`; this is what a user of
the command sees: exit code, sentence, rows, dollars by the server's own count, and how it goes on.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ray_judge.config import load
from ray_judge.escalation.books.books import Books
from tests.fault.plain import PlainServer, Said, completion, error, plain_server

from .conftest import Run, describe, pairs

Reply = Callable[[dict[str, Any], int], Said]
Served = Callable[..., AbstractContextManager[tuple[Run, PlainServer]]]


def number_of(body: dict[str, Any]) -> int:
    found = re.search(r"Write down the number (\d+)\.", body["messages"][-1]["content"])
    assert found
    return int(found[1])


@pytest.fixture
def served(tmp_path: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A run over so many rows, all of them asked, and the server that gives such replies."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-plain")

    @contextmanager
    def serve(reply: Reply, rows: int, **changes: Any) -> Iterator[tuple[Run, PlainServer]]:
        with plain_server(reply) as server:
            every = {"route__fraction": 1, "chunk_rows": 20, **changes}
            yield describe(tmp_path, server, pairs(rows), **every), server  # type: ignore[arg-type]

    return serve


def files(run: Run, folder: str) -> dict[str, tuple[int, str]]:
    return {name: how for name, how in run.everything().items() if name.startswith(folder)}


USAGE = {"prompt_tokens": 120, "completion_tokens": 0}
FILTERED = {"id": "r1", "choices": [{"index": 0, "finish_reason": "content_filter"}]}
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
TEXT = {"type": "text", "text": '{"verdict": "B"}'}
ODD: dict[int, tuple[Said | Callable[[int], Said], str, int]] = {
    20: (error(403, "input was flagged", code=403), "refused", 1),
    21: (Said({**FILTERED, "usage": USAGE}), "refused", 1),
    22: (Said({"id": "r1", "choices": [], "usage": USAGE}), "unparseable", 2),
    23: (error(429, "limit 30000, requested 37313", code="rate_limit_exceeded"), "failed", 20),
    24: (error(400, "max_tokens is too large for this text", param="max_tokens"), "failed", 1),
    25: (Said(completion('{"verdict": "A"} or {"verdict": "B"}')), "unparseable", 2),
    30: (Said(completion('<think>\n{"verdict": "A"}?\n</think>\n{"verdict": "B"}')), "resolved", 1),
    31: (Said(completion([THINKING, TEXT])), "resolved", 1),
    32: (Said(completion('Here:\n```json\n{"verdict": "B"}\n```\nB it is.')), "resolved", 1),
    33: (lambda n: Said({"choices": None, "error": {"message": "no", "code": 429}} if n == 1 else
         completion('{"verdict": "B"}')), "resolved", 2),
    34: (lambda n: error(429, "rate limit", {"retry-after": str(int(time.time()) + 1)}) if n == 1
         else Said(completion('{"verdict": "B"}')), "resolved", 2),
}  # fmt: skip
"""Row → its answers (by how often it was asked), what it comes to, and how often it is asked."""


def test_a_night_of_odd_answers(served: Served) -> None:
    """Each befalls its own row, the others are as they would be; a second `score` asks nobody."""
    asked: Counter[int] = Counter()
    rng = random.Random(0)

    def reply(body: dict[str, Any], number: int) -> Said:
        row = number_of(body)
        asked[row] += 1
        if row not in ODD:
            return Said(completion(id=f"chatcmpl-{rng.randrange(999)}"))
        odd = ODD[row][0]
        return odd(asked[row]) if callable(odd) else odd

    with served(reply, 100) as (run, server):
        assert run.score() == 0, run.said
        scored = run.scored().with_row_index("n").rows_by_key("n", named=True, unique=True)
        for row in range(100):
            _, outcome, times = ODD.get(row, (None, "resolved", 1))
            assert (scored[row]["outcome"], asked[row] <= times) == (outcome, True), row
            answered = outcome == "resolved"
            assert (scored[row]["final_source"] == "strong") is answered
            assert (scored[row]["strong_verdict"] == "B") is (answered and row in ODD)
        assert "input was flagged" in scored[20]["error"]
        assert "requested 37313" in scored[23]["error"]
        attempts = Books.of(load(run.yaml)).journal().frame
        lost = attempts.filter(pl.col("input_tokens").is_null(), pl.col("cost_usd") > 0)
        assert not lost.height, lost.to_dicts()
        assert run.check_costs() == server.usd
        before, requests = run.everything(), len(server.requests)
        assert run.score() == 0 and run.everything() == before and len(server.requests) == requests


def reasoning(body: dict[str, Any], number: int) -> Said:
    if body["max_completion_tokens"] >= 2500:
        return Said(completion(tokens=(200, 1800)))
    return Said(completion("", (200, 300), finish_reason="length"))


def refuses(param: str, said: str) -> Reply:
    refused = error(400, said, param=param, code="unsupported_value")
    return lambda body, number: refused if param in body else Said(completion())


@pytest.mark.parametrize(
    ("reply", "first", "most", "said", "mended"),
    [
        (refuses("temperature", "only 1 is supported"), {"strong__temperature": 0.2}, 1,
         ["only 1 is supported", "strong.temperature (0.2)"], "strong.temperature=null"),
        (refuses("max_tokens", "use another"), {"strong__max_tokens_field": "max_tokens"}, 1,
         ["use another", "strong.max_tokens_field (max_tokens)"],
         "strong.max_tokens_field=max_completion_tokens"),
        (refuses("tools", "unknown"), {"strong__extra_body": {"tools": []}}, 1,
         ["unknown", "Check strong.extra_body ({'tools': []})"], "strong.extra_body={}"),
        (reasoning, {}, 16, ["first 16 answers", "strong.max_output_tokens, 300: raise it"],
         "strong.max_output_tokens=2500"),
    ],
    ids=["temperature", "max_tokens", "extra_body", "reasoning"],
)  # fmt: skip
def test_what_goes_wrong_for_all_ends_the_run_and_the_mended_command_goes_on(
    served: Served, reply: Reply, first: dict[str, Any], most: int, said: list[str], mended: str
) -> None:
    """Exit 1 with one sentence, the dollars on file; nothing is judged again, nothing was final."""
    with served(reply, 100, **first) as (run, server):
        assert run.score() == 1 and len(server.requests) == most
        assert run.said.count("\n") == 1 and all(words in run.said for words in said), run.said
        assert not files(run, "scored") and not (run.output / "summary.json").exists()
        judged, in_vain = files(run, "judged"), server.usd
        assert run.score(mended) == 0, run.said
        assert run.outcomes() == {"resolved": 100} and len(server.requests) == most + 100
        assert files(run, "judged") == judged and len(judged) == 5
        assert run.check_costs() == server.usd and in_vain <= 16 * Decimal("0.0028")


ALWAYS = ["max_output_tokens=900", "reasks=3", "max_tokens_field=max_tokens", "timeout_s=9"]
UNTIL_ANSWERED = ["model=gpt-4o", "rubric=other", "temperature=1", "samples=3", "swap=true"]


@pytest.mark.parametrize("failed", [20, 21])
def test_too_many_failed_rows_and_changed_questions(served: Served, failed: int) -> None:
    """Everything is written; a re-run says the same and asks nobody, whatever is set."""
    worst = "this model takes {} tokens"

    def reply(body: dict[str, Any], number: int) -> Said:
        row = number_of(body)
        if row in range(10, 10 + failed):
            return error(400, worst.format(row) if row < 28 else "other", code="too_long")
        return Said(completion())

    with served(reply, 60) as (run, server):
        assert run.score() == failed - 20, run.said
        assert run.outcomes() == {"resolved": 60 - failed, "failed": failed}
        if failed == 20:  # so many may fail in any run
            return
        assert "21 of the 60 rows" in run.said
        assert worst.format(10) in run.said and "tolerate_failed" in run.said
        assert run.check_costs() == server.usd
        before, said = run.everything(), run.said
        for setting in ("concurrency=3", *ALWAYS):
            assert run.score(f"strong.{setting}") == 1 and run.said == said, run.said
        for setting in UNTIL_ANSWERED:
            assert run.score(f"strong.{setting}") == 2
            assert "39 verdicts of the strong judge are on file" in run.said
            assert f"strong.{setting.partition('=')[0]}: " in run.said
        assert run.score("strong.tolerate_failed=0.5") == 0
        assert run.everything() == before and len(server.requests) == 60


def test_what_is_asked_may_change_until_the_first_answer(served: Served) -> None:
    """Also several keys at once, and the run keeps to the last ones."""
    down = True

    def reply(body: dict[str, Any], number: int) -> Said:
        return error(401, "no such key") if down else Said(completion())

    with served(reply, 30) as (run, server):
        for settings in ([], UNTIL_ANSWERED, ["rubric=good", "samples=1"]):
            assert run.score(*(f"strong.{setting}" for setting in settings)) == 1
            assert "no such key" in run.said
        down = False
        assert run.score("strong.model=gpt-4o", "strong.rubric=good") == 0, run.said
        assert run.outcomes() == {"resolved": 30} and len(server.requests) == 33
        assert {body["model"] for body in server.requests[3:]} == {"gpt-4o"}
        assert run.score() == 2 and "strong.model: 'gpt-4o' → 'gpt-4.1'" in run.said


@pytest.mark.long
def test_a_refused_parameter_ends_a_long_run_at_once(served: Served, ray_session: str) -> None:
    """At most 16 requests, and 10 s from the first answer to the end of the process."""
    refused = refuses("temperature", "only 1 is supported")
    with served(refused, 200_000, strong__temperature=0, chunk_rows=1000) as (run, server):
        process = run.start(ray_session)
        assert process.wait(timeout=200) == 1 and server.first_answer_at is not None
        assert time.monotonic() - server.first_answer_at < 10
        assert len(server.requests) <= 16
