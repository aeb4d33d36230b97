"""`engine: http` against servers as they are: what an answer means for its row, or the run."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tenacity

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError, PausedError
from ray_judge.judging.engines import http as module
from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.engines.http import HttpReader
from ray_judge.judging.formats import format_for
from ray_judge.records import Example
from tests.fault.plain import PlainServer, Said, error, plain_server

from . import tiny

Reply = Callable[[dict[str, Any], int], Said]
ROWS = tiny.examples(20, "pairwise", longest=20)
FLAGGED = Example("FLAGGED", ("a", "b"))


def shown(**logprobs: float | None) -> Said:
    """A good answer; in both of the API's forms, since a client reads only its own."""
    chat = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    told = {"top_logprobs": [logprobs], "content": [{"top_logprobs": chat}]}
    choice = {"text": "A", "message": {"content": "A"}, "finish_reason": "length"}
    return Said({"choices": [{**choice, "logprobs": told}]})


GOOD = shown(A=math.log(0.7), B=math.log(0.2))


@pytest.fixture(autouse=True)
def _does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", module.RETRY.copy(wait=tenacity.wait_none()))


@contextmanager
def reader(
    reply: Reply, address: str = "{}", **changes: Any
) -> Iterator[tuple[HttpReader, PlainServer]]:
    with plain_server(reply) as server:
        place = server.base_url.removeprefix("http://")
        api = {"base_url": address.format(f"http://{place}", place=place), **changes}
        judge = JudgeConfig(engine="http", model="m", http=api)
        made = HttpReader(judge, tiny.letters(chat=api.get("api") == "chat"))
        with made._client:
            yield made, server


MESSAGE = "top_logprobs must be between 0 and 5"
HTML = Said(None, 200, {}, "<html><title>Welcome</title></html>")


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (error(400, MESSAGE, param="top_logprobs"), ConfigError, "between 0 and 5.*top_logprobs"),
        (error(400, MESSAGE, param=None), ConfigError, r"Check judge\.http\.top_logprobs"),
        (Said({"object": "error", "message": "Cannot request more than 5 logprobs."}, 400),
         ConfigError, r"more than 5 logprobs\. Check judge\.http\.top_logprobs"),
        (Said({"detail": "Invalid top_logprobs and logprobs value"}, 422),
         ConfigError, r"Invalid top_logprobs.*Check judge\.http\.top_logprobs"),
        (error(400, "unknown field continue_final_message"), ConfigError, r"judge\.http\.api"),
        (error(400, "not 0", param="temperature", code="unsupported_value"),
         ConfigError, r"HTTP 400 unsupported_value: not 0\. Check judge\.model"),
        (error(404, "the model m does not exist", param="model"), ConfigError, r"judge\.model"),
        (error(401, "bad key sk-abcdefghijk"), ConfigError, "HTTP 401: bad key …"),
        (Said(None, 404, {}, "Not Found"), ConfigError, "HTTP 404: Not Found.*base_url"),
        (Said({"error": {"message": "no such model", "code": 404}}), ConfigError, "no such model"),
        (HTML, ConfigError, "no completion: Welcome.*base_url"),
        (Said({"choices": [{"text": "A"}]}), ConfigError, "no log-probabilities"),
        (shown(A=None), ConfigError, "no log-probabilities"),
        (shown(A=0.7, B=0.3), ConfigError, "sent 0.7 as the logarithm"),
        (Said(None, 308, {"location": "https://x/v1?key=1"}), ConfigError,
         r"HTTP 308: the answers are at https://x/v1\. Check judge\.http\.base_url"),
        (error(402, "top up first"), PausedError, "top up first"),
    ],
)  # fmt: skip
def test_a_refusal_of_all_rows_costs_one_request(
    said: Said, kind: type[Exception], words: str, api: str
) -> None:
    with reader(lambda body, number: said, api=api) as (judge, server):
        for _ in range(2):  # a second chunk of the same process
            with pytest.raises(kind, match=words):
                judge.read(ROWS)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (error(500, "out of order"), "HTTP 500: out of order, again and again"),
        (error(429, "slow down"), r"slow down, again and again\. Check judge\.http\.concurrency"),
        (Said({"choices": None, "error": {"message": "broken", "code": 502}}), "HTTP 502: broken"),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_asked_some_times(said: Said, words: str) -> None:
    with reader(lambda body, number: said) as (judge, server):
        with pytest.raises(EngineError, match=words):
            judge.read(ROWS)
        assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("http://127.0.0.1:9/v1", "Connection refused"),
        ("http://no-such-host.invalid/v1", "ConnectError"),
        ("https://{place}", "SSL"),
    ],
)
def test_a_server_that_is_not_there(address: str, cause: str) -> None:
    said = f"cannot be reached .*{cause}.*base_url"
    with (
        reader(lambda body, number: GOOD, address) as (judge, _),
        pytest.raises(EngineError, match=said),
    ):
        judge.read(ROWS)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (error(400, "it is too long", param="messages"), "HTTP 400: it is too long"),
        (error(400, "this model's context has 9 tokens", param="max_tokens"), "9 tokens"),
        (error(403, "input was flagged"), "HTTP 403: input was flagged"),
        (Said({"choices": []}), "no choice"),
        (shown(A=None), "no log-probabilities"),
    ],
)
def test_what_concerns_one_row_is_its_own(said: Said, words: str) -> None:
    with reader(lambda body, number: said if "FLAGGED" in body["prompt"] else GOOD) as (judge, _):
        found = judge.read([ROWS[0], FLAGGED, *ROWS])
    assert words in found[1]
    assert all(isinstance(one, Reading) for n, one in enumerate(found) if n != 1)


def test_the_first_row_may_be_too_long() -> None:
    long = error(400, "the prompt is too long")
    with reader(lambda body, number: long if number == 1 else GOOD) as (judge, _):
        first, *others = judge.read(ROWS)
    assert "too long" in first and all(isinstance(one, Reading) for one in others)


def test_a_key_that_is_revoked_ends_the_run() -> None:
    def reply(body: dict[str, Any], number: int) -> Said:
        return GOOD if number == 1 else error(403, "this key was revoked")

    with reader(reply) as (judge, _), pytest.raises(ConfigError, match="this key was revoked"):
        judge.read(ROWS)


def test_a_null_logprob_is_a_token_that_is_not_shown() -> None:
    with reader(lambda body, number: shown(A=math.log(0.7), B=None, C=math.log(0.1))) as (judge, _):
        (found,) = judge.read(ROWS[:1])
    assert isinstance(found, Reading) and found.would_write == "A"
    assert found.logprobs["A"] == [pytest.approx(math.log(0.7))]
    assert found.logprobs["B"] == [-math.inf] and found.unseen > 0.09


TRACE = "One could say [[B]].\nVerdict: B\nBut no."
ANSWER = "Short.\nVerdict: A"
WHOLE = f"<think>\n{TRACE}\n</think>\n\n{ANSWER}"
REASONS = {"decode": "full", "thinking": True, "max_output_tokens": 300}


def written(content: str | None, **message: Any) -> Said:
    ended = "stop" if content else "length"
    return Said({"choices": [{"message": {"content": content, **message}, "finish_reason": ended}]})


@contextmanager
def reasoner(reply: Reply, **changes: Any) -> Iterator[tuple[HttpReader, PlainServer]]:
    with plain_server(reply) as server:
        http = {"base_url": server.base_url, "api": "chat", "concurrency": 1}
        judge = JudgeConfig(engine="http", model="m", http=http, **{**REASONS, **changes})
        made = HttpReader(judge, format_for(judge, "pairwise"))
        with made._client:
            yield made, server


@pytest.mark.parametrize(
    "said",
    [
        written(ANSWER, reasoning_content=TRACE),
        written(f"\n\n{ANSWER}", reasoning=TRACE),
        written(WHOLE),
        written(WHOLE.removeprefix("<think>\n"), reasoning=None),
    ],
)
def test_a_judge_that_reasons(said: Said) -> None:
    """The verdict is read behind the trace, wherever a server puts that, and goes on from it."""

    def reply(body: dict[str, Any], number: int) -> Said:
        return said if number == 1 else GOOD

    with reasoner(reply, chat_template_kwargs={"effort": 3}) as (judge, server):
        (found,) = judge.read(ROWS[:1])
    asked, then = server.requests
    options = {"enable_thinking": True, "thinking": True, "effort": 3}
    assert asked["chat_template_kwargs"] == then["chat_template_kwargs"] == options
    assert asked["max_tokens"] == 300 and isinstance(found, Reading)
    begun = then["messages"][-1]["content"]
    assert begun.removeprefix("<think>\n") == WHOLE.removeprefix("<think>\n")[: -len(" A")]


@pytest.mark.parametrize("said", [written(None, reasoning=f"{TRACE} Verdict: A"), written("Hm")])
def test_a_trace_that_a_server_cut(said: Said) -> None:
    with reasoner(lambda body, number: said) as (judge, server):
        (found,) = judge.read(ROWS[:1])
    assert "reasoning without an end" in found and len(server.requests) == 1


def test_votes_need_no_log_probabilities() -> None:
    def reply(body: dict[str, Any], number: int) -> Said:
        return written(f"<think>x</think>Verdict: {'AABC'[body['seed']]}")

    votes = {"confidence": "votes", "samples": 4, "temperature": 0.7}
    with reasoner(reply, **votes) as (judge, server):
        (found,) = judge.read(ROWS[:1])
    assert isinstance(found, Reading)
    shares = {name: math.exp(value) for name, (value,) in found.logprobs.items()}
    assert shares == pytest.approx({"A": 0.5, "B": 0.25, "tie": 0.25})
    assert [body["seed"] for body in server.requests] == [0, 1, 2, 3]
    assert {body["temperature"] for body in server.requests} == {0.7}


def test_thinking_is_switched_off_by_the_template() -> None:
    with reasoner(lambda body, number: GOOD, decode="verdict", thinking=False) as (judge, server):
        judge.read(ROWS[:1])
    (asked,) = server.requests
    assert asked["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert asked["messages"][-1]["content"] == "Verdict:"


def test_an_address_with_a_query() -> None:
    with reader(lambda body, number: GOOD, "{}/?api-version=7") as (judge, server):
        judge.read(ROWS[:1])
        assert server.paths == {"/v1/completions?api-version=7"}
