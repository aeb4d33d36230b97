"""Requests to the strong judge's server over HTTP; nothing of the SDK leaves this module.

The SDK's own retries are off: whoever calls decides what is tried again, by `failures.MEANING`.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai

from ray_judge.config import StrongConfig
from ray_judge.escalation.answers import Reply, read_json, read_reply
from ray_judge.escalation.questions import in_words
from ray_judge.failures import Kind, RequestFailed, failure_of

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
OPENAI = "api.openai.com"
IDS_KEPT = 4096
SHORTEST_ID = 8
"""Characters of an id, behind its prefix, by which answers are told apart."""
BATCH_TIMEOUT_S = 600.0
"""The least time for one call about a batch: its files have up to 200 MB."""
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}
"""Transport errors (httpx, by class name, since the SDK may bring either of two httpx) after
which the server cannot have seen the request."""


class StrongClient:
    """Sends requests to one OpenAI-compatible server."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        self._client = _open(strong, key, strong.timeout_s)
        self._timeout_s, self._seen = strong.timeout_s, SeenIds()
        self.in_words = self._told_no_schema = self._knows_schema = False
        self._tier = _tier(strong, self._client.base_url.host)

    async def close(self) -> None:
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Send one request, once; it is over within `strong.timeout_s`. Raises RequestFailed."""
        sent = in_words(body) if self.in_words else dict(body)
        if self._tier:
            sent["service_tier"] = self._tier  # how it is served is no part of what is asked
        create = self._client.chat.completions.with_raw_response.create
        try:
            with _translated():
                async with asyncio.timeout(self._timeout_s):
                    # `extra_body` goes out as it is. The SDK walks through anything else type by
                    # type, which took a third of this process's time, for plain JSON.
                    raw = await create(model=sent["model"], messages=[], extra_body=sent)
        except RequestFailed as failure:
            self._doubt_schema(failure, "response_format" in sent)
            raise
        self._knows_schema |= "response_format" in sent
        text = raw.http_response.text
        reply = read_reply(read_json(text), dict(raw.headers))
        ours, repeated = self._seen.look(reply.response_id, body, text)
        # What comes next on this connection would be the answer before it, again and again.
        if repeated and (connection := raw.http_response.extensions.get("network_stream")):
            await connection.aclose()
        if not ours:
            raise RequestFailed(Kind.AMBIGUOUS, "an answer to another question came once more")
        return reply

    def _doubt_schema(self, failure: RequestFailed, asked_by_schema: bool) -> None:
        """Ask in words where the server does not take the schema, or may not, as some do not say.

        Where it refuses the question in words as well, the fault is the question's.
        """
        if failure.kind not in (Kind.NO_SCHEMA, Kind.ROW) or failure.status not in (400, 422):
            return
        if not asked_by_schema:
            self.in_words = self._told_no_schema
            self._knows_schema = not self._told_no_schema
            failure.kind = Kind.ROW
        elif failure.kind is Kind.NO_SCHEMA or not self._knows_schema:
            self._told_no_schema |= failure.kind is Kind.NO_SCHEMA
            self.in_words, failure.kind = True, Kind.NO_SCHEMA


class SeenIds:
    """Which question each answer was for, by the id that the server gave it.

    HTTP/1.1 tells answers apart by their order on a connection alone. An answer that a broken
    proxy writes twice is taken for the next question's, and that one's for the next. So the same
    answer under the same id is not another question's. Ids say nothing where they are short (some
    servers draw them from a thousand), once one of them came with two answers, or with the same
    one again when that connection was closed; a cache that gives the same question its answer again
    is believed.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._doubted: set[str] = set()
        self._unique = True

    def look(self, name: str | None, body: Mapping[str, Any], text: str) -> tuple[bool, bool]:
        """Whether this can be the answer to this request, and whether it came before.

        `name`: the answer's id; `text`: the whole of it.
        """
        if name is None or len(name.rpartition("-")[2]) < SHORTEST_ID or not self._unique:
            return True, False
        question, answer = hash(json.dumps(body["messages"])), hash(text)
        repeated = name in self._answers
        asked, answered = self._answers.setdefault(name, (question, answer))
        self._unique = answer == answered and not (asked != question and name in self._doubted)
        if asked != question:
            self._doubted.add(name)
        if len(self._answers) > IDS_KEPT:
            self._answers.popitem(last=False)
        return asked == question or not self._unique, repeated and self._unique


class BatchClient:
    """Files and batches of one OpenAI-compatible server. Every call raises RequestFailed."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        self._client = _open(strong, key, max(strong.timeout_s, BATCH_TIMEOUT_S))
        self._files = self._client.files.with_raw_response
        self._batches = self._client.batches.with_raw_response

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, name: str, content: bytes) -> str:
        """Store an input file; give its id."""
        made = await _document(self._files.create(file=(name, content), purpose="batch"))
        return str(made["id"])

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Begin a batch over the requests of an input file."""
        return await _document(
            self._batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata=dict(metadata),
            )
        )

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        return await _document(self._batches.retrieve(batch_id))

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Up to 100 batches of the account, newest first, behind `after`; whether more follow."""
        more: dict[str, Any] = {"after": after} if after else {}
        found = await _document(self._batches.list(limit=100, **more))
        return list(found["data"]), bool(found.get("has_more"))

    async def download(self, file_id: str) -> bytes:
        with _translated():
            return (await self._client.files.content(file_id)).content

    async def delete(self, file_id: str) -> None:
        """Remove a file, so that no batch can begin from it any more."""
        await _document(self._files.delete(file_id))


def _open(strong: StrongConfig, key: str, timeout_s: float) -> openai.AsyncOpenAI:
    # A server on this machine is never behind the proxy that the environment names.
    address = urlsplit(strong.base_url or "")
    local = address.hostname in LOOPBACK
    quarter = timeout_s / 4  # for pool, connection and TLS each: so a limit strikes behind them
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=address._replace(query="", fragment="").geturl() or None,
        default_query=dict(parse_qsl(address.query)),
        timeout=openai.Timeout(timeout_s, connect=quarter, pool=quarter),
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if local else None,
    )


def _tier(strong: StrongConfig, host: str) -> str | None:
    """Which `service_tier` is asked for; None sends nothing.

    OpenAI serves a request that names none as its project is set, which may be `priority`, dearer
    than the lease: so it is told `default`. Other servers may not know the parameter.
    """
    if strong.mode == "flex":
        return "flex"
    return "default" if host == OPENAI or host.endswith("." + OPENAI) else None


async def _document(sent: Awaitable[Any]) -> dict[str, Any]:
    with _translated():
        answer = await sent
    document = read_json(answer.http_response.text)
    if not isinstance(document, dict) or ("id" not in document and "data" not in document):
        raise RequestFailed(Kind.AMBIGUOUS, "the answer is not an object of the API")
    return document


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the SDK's errors into RequestFailed, by their types and fields."""
    try:
        yield
    except openai.APIStatusError as error:
        told = error.body if isinstance(error.body, dict) else {"message": error.response.text}
        raise failure_of(error.status_code, told, dict(error.response.headers)) from None
    except (openai.OpenAIError, TimeoutError) as error:
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        name = type(cause or error).__name__
        if name in NEVER_SENT:
            reason = f"the server cannot be reached ({name})"
            raise RequestFailed(Kind.TRANSIENT, reason) from None
        reason = f"no whole answer came back ({name})"
        raise RequestFailed(Kind.AMBIGUOUS, reason) from None
