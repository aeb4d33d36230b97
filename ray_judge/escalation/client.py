"""Requests to the strong judge's server over HTTP; nothing of the SDK leaves this module.

The SDK's own retries are off: whoever calls decides what is tried again, by `failures.MEANING`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import getproxies, proxy_bypass

import openai

from ray_judge.config import StrongConfig
from ray_judge.escalation.answers import Reply, read_json, read_reply
from ray_judge.escalation.questions import asked_tier, in_words
from ray_judge.failures import KEY_OF, Kind, RequestFailed, failure_of, in_short

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
IDS_KEPT = 4096
SHORTEST_ID = 8
"""Characters of an id, behind its prefix, by which answers are told apart."""
BATCH_TIMEOUT_S = 600.0
"""The least time for one call about a batch: its files have up to 200 MB."""
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
"""Transport errors (httpx, by class name, since the SDK may bring either of two httpx) after
which the server cannot have seen the request."""
IN_C = re.compile(r"^\[.*?\] | \(_ssl\.c:\d+\)$")
"""What Python puts around OpenSSL's words."""
TLS_HINTS = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"), " (does it speak plain http://?)"
    ),
    "CERTIFICATE_VERIFY_FAILED": " (SSL_CERT_FILE names the certificates that are trusted)",
}


class StrongClient:
    """Sends requests to one OpenAI-compatible server."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        # Texts go to the address that was given, not to where it may lead.
        self._client = _open(strong, key, strong.timeout_s, follow_redirects=False)
        self._timeout_s, self._seen = strong.timeout_s, SeenIds()
        self.in_words = self._told_no_schema = self._knows_schema = False
        self._doubted: Any = None
        """What was asked by the schema, and refused, the last time."""
        self._tier = asked_tier(strong)
        self._keys = {**KEY_OF, **dict.fromkeys(strong.extra_body, "strong.extra_body")}
        self._secrets = _secrets(strong, key)

    async def close(self) -> None:
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Send one request, once; it is over within `strong.timeout_s`. Raises RequestFailed."""
        sent = in_words(body) if self.in_words else dict(body)
        if self._tier:
            sent["service_tier"] = self._tier  # how it is served is no part of what is asked
        create = self._client.chat.completions.with_raw_response.create
        try:
            with _translated(self._secrets, self._keys):
                async with asyncio.timeout(self._timeout_s):
                    # `extra_body` goes out as it is. The SDK walks through anything else type by
                    # type, which took a third of this process's time, for plain JSON.
                    raw = await create(model=sent["model"], messages=[], extra_body=sent)
            text = _without(self._secrets, raw.http_response.text)
            reply = _read(text, dict(raw.headers))
        except RequestFailed as failure:
            self._doubt_schema(failure, sent)
            raise
        if "response_format" in sent:
            self._knows_schema = True
        else:
            self._told_no_schema = True  # by being answered in words
        ours, repeated = self._seen.look(reply.response_id, body, text)
        # What comes next on this connection would be the answer before it, again and again.
        if repeated and (connection := raw.http_response.extensions.get("network_stream")):
            await connection.aclose()
        if not ours:
            raise RequestFailed(Kind.AMBIGUOUS, "an answer to another question came once more")
        return reply

    def _doubt_schema(self, failure: RequestFailed, sent: Mapping[str, Any]) -> None:
        """Ask in words where the server does not take the schema, or may not, as some do not say.

        Where it refuses the question in words as well, the fault is the question's.
        """
        if failure.kind not in (Kind.NO_SCHEMA, Kind.ROW) or failure.status not in (400, 422):
            return
        if "response_format" not in sent:
            if self._doubted == sent["messages"] and not self._told_no_schema:
                self.in_words = False  # nothing is known yet: the next one tells
            failure.kind = Kind.ROW
        elif failure.kind is Kind.NO_SCHEMA or not self._knows_schema:
            self._told_no_schema |= failure.kind is Kind.NO_SCHEMA
            self.in_words, self._doubted = True, sent["messages"]
            failure.kind = Kind.NO_SCHEMA


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
        own = (name or "").partition("-")[2] or name or ""
        if name is None or len(own) < SHORTEST_ID or not self._unique:
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
        self._secrets = _secrets(strong, key)
        self._files = self._client.files.with_raw_response
        self._batches = self._client.batches.with_raw_response

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, name: str, content: bytes) -> str:
        """Store an input file; give its id."""
        made = await self._document(self._files.create(file=(name, content), purpose="batch"))
        return str(made["id"])

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Begin a batch over the requests of an input file."""
        return await self._document(
            self._batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata=dict(metadata),
            )
        )

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        return await self._document(self._batches.retrieve(batch_id))

    async def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Up to 100 batches of the account, newest first, behind `after`; whether more follow."""
        more: dict[str, Any] = {"after": after} if after else {}
        found = await self._document(self._batches.list(limit=100, **more))
        return list(found["data"]), bool(found.get("has_more"))

    async def download(self, file_id: str) -> bytes:
        with _translated(self._secrets):
            return (await self._client.files.content(file_id)).content

    async def delete(self, file_id: str) -> None:
        """Remove a file, so that no batch can begin from it any more."""
        await self._document(self._files.delete(file_id))

    async def _document(self, sent: Awaitable[Any]) -> dict[str, Any]:
        with _translated(self._secrets):
            answer = await sent
        document = read_json(text := _without(self._secrets, answer.http_response.text))
        if not isinstance(document, dict) or ("id" not in document and "data" not in document):
            said = f"the answer is not an object of the API: {in_short(text) or 'it is empty'}"
            raise RequestFailed(Kind.AMBIGUOUS, said)
        return document


def _open(strong: StrongConfig, key: str, timeout_s: float, **options: Any) -> openai.AsyncOpenAI:
    # A server on this machine is never behind the proxy that the environment names.
    address = urlsplit(strong.base_url or "")
    host = address.hostname
    if host in LOOPBACK:
        options["mounts"] = {f"all://[{host}]" if ":" in str(host) else f"all://{host}": None}
    headers = {name: value.get_secret_value() for name, value in strong.headers.items()}
    query = {name: value.get_secret_value() for name, value in strong.query.items()}
    if strong.api_key_env is None and "authorization" not in map(str.lower, headers):
        options["event_hooks"] = {"request": [_take_key_away]}
    quarter = timeout_s / 4  # for pool, connection and TLS each: so a limit strikes behind them
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=address._replace(query="", fragment="").geturl() or None,
        default_query={**dict(parse_qsl(address.query)), **query},
        default_headers=headers,
        timeout=openai.Timeout(timeout_s, connect=quarter, pool=quarter),
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(**options),
    )


def _secrets(strong: StrongConfig, key: str) -> list[str]:
    """What no word of the server may show: some repeat what they were sent."""
    given = [*strong.headers.values(), *strong.query.values()]
    return [text for text in (key, *(one.get_secret_value() for one in given)) if len(text) > 5]


def _without(secrets: Collection[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


async def _take_key_away(request: Any) -> None:
    """The SDK knows no client without a key, and some servers do not bear a wrong one."""
    request.headers.pop("Authorization", None)


def _read(text: str, headers: Mapping[str, str]) -> Reply:
    """Read an answer; one that is no completion is quoted."""
    try:
        return read_reply(read_json(text), headers)
    except RequestFailed as failure:
        if failure.kind is Kind.AMBIGUOUS:
            failure.reason += f": {in_short(text) or 'it is empty'}"
        raise


@contextmanager
def _translated(secrets: Collection[str], keys: Mapping[str, str] = KEY_OF) -> Iterator[None]:
    """Turn the SDK's errors into RequestFailed, by their types and fields."""
    try:
        yield
    except openai.APIStatusError as error:
        text = _without(secrets, error.response.text)
        told = text if (document := read_json(text)) is None else document
        raise failure_of(error.status_code, told, dict(error.response.headers), keys) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        if type(cause).__name__ in NEVER_SENT:
            raise RequestFailed(Kind.TRANSIENT, unreachable(error.request.url, cause)) from None
        reason = f"no whole answer came back ({cause_in_words(cause)})"
        raise RequestFailed(Kind.AMBIGUOUS, reason) from None
    except (openai.OpenAIError, TimeoutError) as error:
        reason = f"no whole answer came back ({cause_in_words(error)})"
        raise RequestFailed(Kind.AMBIGUOUS, reason) from None


def unreachable(url: Any, error: BaseException) -> str:
    """Why there is no connection to a server, or to the proxy that the environment names."""
    proxies = {} if url.host in LOOPBACK or proxy_bypass(url.host) else getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    via = f" through the proxy {_place(proxy)}" if proxy else ""
    return f"{_place(str(url))} cannot be reached{via}: {cause_in_words(error)}"


def _place(url: str) -> str:
    address = urlsplit(url if "://" in url else f"http://{url}")
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"


def cause_in_words(error: BaseException) -> str:
    """What the system, or TLS, says of a connection: it stands in the innermost error."""
    inner: BaseException | None = error
    while inner is not None:
        last = inner
        several = inner.exceptions if isinstance(inner, BaseExceptionGroup) else ()
        inner = several[0] if several else inner.__cause__ or inner.__context__
    if isinstance(last, ssl.SSLError):
        return f"{IN_C.sub('', str(last))}{TLS_HINTS.get(last.reason or '', '')}"
    if isinstance(last, OSError) and last.errno:
        return os.strerror(last.errno) if last.errno > 0 else str(last.strerror)
    name = type(error).__name__
    return str(last) or ("it timed out, strong.timeout_s" if "Timeout" in name else name)
