"""One HTTP request to the strong judge, and what every way of failing means.

The SDK's own retries are off: `asker.RETRY` and `batch_provider.RETRY` are the only policies.
Errors are classified by exception type, HTTP status and the API's error code
(platform.openai.com/docs/guides/error-codes, 2026-11), never by the text of a message. Nothing of
the SDK leaves this module.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from ray_judge.config import StrongConfig
from ray_judge.escalation.question import in_words
from ray_judge.records import Usage

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What a failed request means for the row, for the run, and for the money."""

    RATE_LIMIT = "rate_limit"
    """429: wait as told; not billed."""
    TRANSIENT = "transient"
    """The server did not begin (503, 409), or was never reached: not billed."""
    BROKEN = "broken"
    """The server, or a gateway before it, failed while it may have been at work (500, 502, 504,
    408, ...): the answer may have been computed, so it counts as billed."""
    AMBIGUOUS = "ambiguous"
    """Sent, and no whole answer came back: it may have been billed, so it counts as billed."""
    ROW = "row"
    """This question will never be answered (too long, invalid); not billed."""
    REFUSED = "refused"
    """The provider's filter does not let this question through; not billed."""
    NO_SCHEMA = "no_schema"
    """The server does not take `response_format`: ask in words; not billed."""
    BILLING = "billing"
    """Quota or billing: the run pauses."""
    RUN = "run"
    """No question of this run can be answered (key, permission, model)."""


BILLING_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FILTER_CODES = {"content_filter", "content_policy_violation"}
SCHEMA_PARAMS = {"response_format", "response_format.type", "response_format.json_schema"}
LOGPROB_PARAMS = {"logprobs", "top_logprobs"}
NOT_BEGUN = {409, 503}
"""The server says that it is locked or overloaded: it refused the request at its door."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
OPENAI = "api.openai.com"
BATCH_TIMEOUT_S = 600.0
"""The least time for one call about a batch: its files have up to 200 MB."""
_T = TypeVar("_T")
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}
"""Transport errors (httpx, by class name, since the SDK may bring either of two httpx) after
which the server cannot have seen the request."""


class RequestFailed(Exception):
    """One request failed. Lives inside one actor; never crosses a process."""

    def __init__(
        self,
        kind: Kind,
        reason: str,
        *,
        status: int | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the class, a sentence without secrets, and the answer's headers for the governor."""
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer that the server computed, and so billed, whatever it says."""

    text: str | None
    refusal: str | None
    finish_reason: str | None
    usage: Usage | None
    model: str | None
    response_id: str | None
    headers: Mapping[str, str] = field(default_factory=dict)
    logprobs: Any = None
    """`choices[0].logprobs.content` as it was sent; see `verdict_prob.py`."""


class StrongClient:
    """Sends requests to one OpenAI-compatible server."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        """Open a client; the connection is made at the first request."""
        direct: dict[str, Any] = {"http_client": openai.DefaultAsyncHttpxClient(trust_env=False)}
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=strong.base_url,
            timeout=strong.timeout_s,
            max_retries=0,
            # A server on this machine is never behind the proxy that the environment names.
            **(direct if _is_here(strong) else {}),
        )
        self._in_words = False
        self._tier = _tier(strong, self._client.base_url.host)
        self._seen = SeenIds()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Send one request, once. Raises RequestFailed."""
        sent = in_words(body) if self._in_words else dict(body)
        if self._tier:
            sent["service_tier"] = self._tier  # how it is served is no part of what is asked
        try:
            # `extra_body` goes out as it is. The SDK walks through anything else type by type,
            # which took a third of this process's time, for a body that is plain JSON already.
            raw = await self._client.chat.completions.with_raw_response.create(
                model=sent["model"], messages=[], extra_body=sent
            )
        except openai.APIStatusError as error:
            failure = _from_status(error)
            if failure.kind is Kind.NO_SCHEMA:
                if "response_format" not in sent:  # asked in words, and still not content
                    failure.kind = Kind.ROW
                self._in_words = True
            raise failure from None
        except openai.APIConnectionError as error:
            raise _from_connection(error) from None
        except openai.OpenAIError as error:
            raise RequestFailed(
                Kind.AMBIGUOUS, f"no usable answer: {type(error).__name__}"
            ) from None
        reply = read_reply(raw.http_response.text, dict(raw.headers))
        if not self._seen.answers(reply.response_id, body):
            # What comes next on this connection would be the answer before it, again and again.
            if connection := raw.http_response.extensions.get("network_stream"):
                await connection.aclose()
            raise RequestFailed(
                Kind.AMBIGUOUS, "the answer to another question came, for the second time"
            )
        return reply


class SeenIds:
    """Which question each answer was for, by the id that the server gave it.

    HTTP/1.1 tells answers apart by nothing but their order on a connection. An answer that a
    broken proxy writes twice is taken for the next question's, and that one's for the next: the
    ids of chat completions are unique, so the second time an id shows that it is not ours. Servers
    that give every answer the same id, and caches that give the same question its answer again,
    are believed.
    """

    KEPT = 4096

    def __init__(self) -> None:
        """Begin with none."""
        self._questions: OrderedDict[str, int] = OrderedDict()

    def answers(self, response_id: str | None, body: Mapping[str, Any]) -> bool:
        """Whether an answer with this id can be the one to this request."""
        if response_id is None:
            return True
        question = hash(json.dumps(body["messages"]))
        before = self._questions.setdefault(response_id, question)
        if len(self._questions) > self.KEPT:
            self._questions.popitem(last=False)
        return before == question or len(self._questions) == 1


class BatchClient:
    """Files and batches of one OpenAI-compatible server. Every call raises RequestFailed."""

    def __init__(self, strong: StrongConfig, key: str) -> None:
        """Open a client; the connection is made at the first request."""
        direct: dict[str, Any] = {"http_client": openai.DefaultHttpxClient(trust_env=False)}
        self._client = openai.OpenAI(
            api_key=key,
            base_url=strong.base_url,
            timeout=max(strong.timeout_s, BATCH_TIMEOUT_S),
            max_retries=0,
            **(direct if _is_here(strong) else {}),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def upload(self, name: str, content: bytes) -> str:
        """Store an input file; give its id."""
        files = self._client.files.with_raw_response
        return str(_ask(lambda: files.create(file=(name, content), purpose="batch"))["id"])

    def create(self, file_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Begin a batch over the requests of an input file; give the batch object."""
        batches = self._client.batches.with_raw_response
        return _ask(
            lambda: batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata=dict(metadata),
            )
        )

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        """Look at a batch."""
        return _ask(lambda: self._client.batches.with_raw_response.retrieve(batch_id))

    def page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Up to 100 batches of the account, newest first, behind `after`; whether more follow."""
        more: dict[str, Any] = {"after": after} if after else {}
        found = _ask(lambda: self._client.batches.with_raw_response.list(limit=100, **more))
        return list(found["data"]), bool(found.get("has_more"))

    def download(self, file_id: str) -> bytes:
        """Read a whole output or error file."""
        return _call(lambda: self._client.files.content(file_id).content)

    def delete(self, file_id: str) -> None:
        """Remove a file, so that no batch can begin from it any more."""
        _ask(lambda: self._client.files.with_raw_response.delete(file_id))


def suspect_model(strong: StrongConfig) -> str:
    """How the model is named among what to check where no question of a run is answered."""
    if strong.abstain_below is None:
        return "strong.model"
    # Models that give none may answer 403, without a field that says why.
    return "strong.model (does it give log-probabilities, as strong.abstain_below needs?)"


def _is_here(strong: StrongConfig) -> bool:
    return urlsplit(strong.base_url or "").hostname in LOOPBACK


def _tier(strong: StrongConfig, host: str) -> str | None:
    """Which `service_tier` is asked for; None sends nothing.

    OpenAI serves a request that names none as its project is set, which may be `priority`, dearer
    than the lease: so it is told `default`. Other servers may not know the parameter.
    """
    if strong.mode == "flex":
        return "flex"
    return "default" if host == OPENAI or host.endswith("." + OPENAI) else None


def _call(send: Callable[[], _T]) -> _T:
    try:
        return send()
    except openai.APIStatusError as error:
        raise _from_status(error) from None
    except openai.APIConnectionError as error:
        raise _from_connection(error) from None
    except openai.OpenAIError as error:
        raise RequestFailed(Kind.AMBIGUOUS, f"no usable answer: {type(error).__name__}") from None


def _ask(send: Callable[[], Any]) -> dict[str, Any]:
    """Send, and read the answer as the JSON object that it should be."""
    try:
        document = json.loads(_call(send).http_response.text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or ("id" not in document and "data" not in document):
        raise RequestFailed(Kind.AMBIGUOUS, "the answer is not an object of the API")
    return document


def classify(status: int, code: str | None, kind: str | None, param: str | None) -> Kind:
    """What an error answer means, by its status and the fields of its `error` object."""
    if code in BILLING_CODES or kind in BILLING_CODES or status == 402:
        return Kind.BILLING
    if status == 429:
        return Kind.RATE_LIMIT
    if status in (401, 403, 404):
        return Kind.RUN
    if status in NOT_BEGUN:
        return Kind.TRANSIENT
    if status == 408 or status >= 500:
        return Kind.BROKEN
    if status in (400, 422) and param in SCHEMA_PARAMS:
        return Kind.NO_SCHEMA
    if status in (400, 422) and param in {"service_tier", *LOGPROB_PARAMS}:
        return Kind.RUN
    if code in FILTER_CODES:
        return Kind.REFUSED
    return Kind.ROW


def _from_status(error: openai.APIStatusError) -> RequestFailed:
    status, code, kind = error.status_code, error.code, error.type
    return RequestFailed(
        classify(status, code, kind, error.param),
        f"HTTP {status} {code or kind or ''}".strip(),
        status=status,
        code=code,
        headers=dict(error.response.headers),
    )


def _from_connection(error: openai.APIConnectionError) -> RequestFailed:
    cause = error.__cause__
    name = type(cause).__name__ if cause else type(error).__name__
    if name in NEVER_SENT:
        return RequestFailed(Kind.TRANSIENT, f"the server cannot be reached ({name})")
    return RequestFailed(Kind.AMBIGUOUS, f"no whole answer came back ({name})")


def read_reply(text: str, headers: Mapping[str, str]) -> Reply:
    """Read the body of a 200 answer; half a body is AMBIGUOUS: computed, billed, lost."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    return reply_of(document, headers)


def reply_of(document: Any, headers: Mapping[str, str]) -> Reply:
    """Read a chat completion that is JSON already. Raises RequestFailed, AMBIGUOUS."""
    try:
        choice = document["choices"][0]
        message = choice["message"]
        return Reply(
            text=_text(message.get("content")),
            refusal=_text(message.get("refusal")),
            finish_reason=_text(choice.get("finish_reason")),
            usage=_usage(document),
            model=_text(document.get("model")),
            response_id=_text(document.get("id")),
            headers=headers,
            logprobs=_logprobs(choice),
        )
    except (LookupError, TypeError, AttributeError):
        raise RequestFailed(Kind.AMBIGUOUS, "the answer is not a chat completion") from None


def _logprobs(choice: Mapping[str, Any]) -> Any:
    given = choice.get("logprobs")
    return given.get("content") if isinstance(given, dict) else None


def _text(value: Any) -> str | None:
    """Text that can be written down (JSON may hold half a surrogate pair), or None."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode()


def _usage(document: Mapping[str, Any]) -> Usage | None:
    """Tokens as the server counted them; None when it did not."""
    given = document.get("usage")
    if not isinstance(given, dict):
        return None
    try:
        details = given.get("prompt_tokens_details") or {}
        output = given.get("completion_tokens_details") or {}
        usage = Usage(
            input_tokens=int(given["prompt_tokens"]),
            output_tokens=int(given["completion_tokens"]),
            cached_input_tokens=int(details.get("cached_tokens") or 0),
            reasoning_tokens=int(output.get("reasoning_tokens") or 0),
            tier=_text(document.get("service_tier")) or "default",
        )
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    sound = 0 <= usage.cached_input_tokens <= usage.input_tokens and usage.output_tokens >= 0
    return usage if sound else None
