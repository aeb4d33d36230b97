"""What every way of failing means for a question, for the run, and for the money. Pure.

Errors are classified by HTTP status and the API's error code
(platform.openai.com/docs/guides/error-codes, 2026-11), never by the text of a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from ray_judge.config import StrongConfig
from ray_judge.errors import EscalationError, PausedError, ProviderDown, RayJudgeError

BILLING_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FILTER_CODES = {"content_filter", "content_policy_violation"}
STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "not_found_error": 404,
    **dict.fromkeys(BILLING_CODES, 429),
}
"""The status that an error in an answer of 200 would have had, by its code or type."""
SECRET = re.compile(r"\b(?:sk|key|rk|pk)-[\w*-]{6,}|(?<=Bearer )\S+")
WORDS = 300
"""Characters of a server's own words that are told."""
TRIES = 8
"""How often the server may fail at one question before its row is given up as `failed`."""
DENIALS = 8
"""So many questions in a row that a server that answers others does not let through end the run."""
BUSY_TRIES = 5
"""How often a question may meet a rate limit while others are answered: it may be too large."""
LOST_TRIES = 3
"""How often a question's answer may be lost after it was sent: each of those counts in full."""


class Kind(StrEnum):
    """How a request failed."""

    RATE_LIMIT = "rate_limit"  # 429: wait as told
    TRANSIENT = "transient"  # the server did not begin (503, 409), or was never reached
    BROKEN = "broken"  # the server, or a gateway, failed while it may have been at work (5xx, 408)
    AMBIGUOUS = "ambiguous"  # the request was sent, and no whole answer came back
    ROW = "row"  # this question will never be answered (too long, invalid)
    REFUSED = "refused"  # the provider's filter does not let this question through
    NO_SCHEMA = "no_schema"  # the server does not take `response_format`: ask in words
    BILLING = "billing"  # quota or billing: the run pauses
    RUN = "run"  # no question of this run can be answered (key, permission, model)


class Fault(StrEnum):
    """Where the cause of a failure lies, and so what it befalls."""

    QUESTION = "question"  # this question ends; others may fare better
    RUN = "run"  # every question of the run would fare alike
    PROVIDER = "provider"  # it passes by itself


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a kind of failure."""

    fault: Fault
    billed: bool = False  # an answer may have been computed: the request counts at its maximum
    again: bool = False  # the same question may be sent again
    tries: int | None = None
    """How many such failures end the question; None: none does. The provider is unwell where it
    is set, and merely busy at a rate limit."""


MEANING: Mapping[Kind, Meaning] = {
    Kind.RATE_LIMIT: Meaning(Fault.PROVIDER, again=True),
    Kind.TRANSIENT: Meaning(Fault.PROVIDER, again=True, tries=TRIES),
    Kind.BROKEN: Meaning(Fault.PROVIDER, billed=True, again=True, tries=TRIES),
    Kind.AMBIGUOUS: Meaning(Fault.PROVIDER, billed=True, again=True, tries=LOST_TRIES),
    Kind.ROW: Meaning(Fault.QUESTION),
    Kind.REFUSED: Meaning(Fault.QUESTION),
    Kind.NO_SCHEMA: Meaning(Fault.RUN, again=True),
    Kind.BILLING: Meaning(Fault.RUN),
    Kind.RUN: Meaning(Fault.RUN),
}


@dataclass(eq=False)
class RequestFailed(Exception):
    """One request failed. It never crosses a process."""

    kind: Kind
    reason: str  # a sentence without secrets
    status: int | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None  # of the configuration, where it can be named

    def __str__(self) -> str:
        return self.reason

    @property
    def meaning(self) -> Meaning:
        return MEANING[self.kind]

    @property
    def denied(self) -> bool:
        """Whether the server does not let the request through: the key, the model or its text."""
        return self.kind is Kind.RUN and self.status in (401, 403, 404)

    @property
    def unreachable(self) -> bool:
        """Whether the server never saw the request; this says nothing about the question."""
        return self.kind is Kind.TRANSIENT and self.status is None


BY_STATUS = {
    **dict.fromkeys((401, 403, 404), Kind.RUN),
    **dict.fromkeys((409, 503), Kind.TRANSIENT),  # locked or overloaded: it did not begin
    402: Kind.BILLING,
    408: Kind.BROKEN,
    429: Kind.RATE_LIMIT,
}
KEY_OF = {
    "temperature": "strong.temperature",
    "max_tokens": "strong.max_tokens_field",
    "max_completion_tokens": "strong.max_tokens_field",
    "model": "strong.model",
    "service_tier": "strong.mode",
}
"""Parameter of a request → the key that sets it: where it is refused, every question is."""
UNSUPPORTED = {"unsupported_value", "unsupported_parameter", "unknown_parameter"}


def failure_of(status: int, error: Any, headers: Mapping[str, str]) -> RequestFailed:
    """The failure that an `error` object tells of, in an answer of this HTTP status.

    A gateway puts its provider's error into an answer of 200, with that error's own status as its
    code. The reason has the server's own words, up to `WORDS` characters, without keys.
    """
    error = error if isinstance(error, dict) else {"message": error}
    code, kind, param, said = map(error.get, ("code", "type", "param", "message"))
    inside = int(code) if str(code).isdigit() else None
    names = [text for text in (code, kind) if isinstance(text, str) and not text.isdigit()]
    if status < 400:
        status = inside or STATUS_OF.get(str(code), STATUS_OF.get(str(kind), 500))
    words = " ".join(SECRET.sub("…", said if isinstance(said, str) else "").split())[:WORDS]
    reason = " ".join([f"HTTP {status}", *names[:1]]) + (f": {words}" if words else "")
    name = names[0] if names else None
    meaning = classify(status, *(x if isinstance(x, str) else None for x in (code, kind, param)))
    key = KEY_OF.get(str(param).partition(".")[0])
    return RequestFailed(meaning, reason, status, name, headers, key)


def classify(status: int, code: str | None, kind: str | None, param: str | None) -> Kind:
    """What an error answer means, by its status and the fields of its `error` object."""
    if code in BILLING_CODES or kind in BILLING_CODES:
        return Kind.BILLING
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status >= 500:
        return Kind.BROKEN
    name = (param or "").partition(".")[0]
    if status in (400, 422) and name == "response_format":
        return Kind.NO_SCHEMA
    if status in (400, 422) and (name in KEY_OF or code in UNSUPPORTED):
        return Kind.RUN
    return Kind.REFUSED if code in FILTER_CODES else Kind.ROW


def run_error(failure: RequestFailed, strong: StrongConfig) -> RayJudgeError:
    """The error that ends or pauses a run whose requests fail like this one."""
    if failure.kind is Kind.BILLING:
        return PausedError(f"the provider wants money first ({failure.reason}): mend it, run again")
    if failure.meaning.fault is Fault.PROVIDER:
        return ProviderDown(
            f"the strong judge's server did not do its work ({failure.reason}) for "
            "strong.give_up_after_s seconds: everything is kept, run again later"
        )
    key = f"the key in {strong.api_key_env}, " if strong.api_key_env else ""
    batch = ", strong.batch" if strong.mode == "batch" else ""
    check = failure.key or f"{key}strong.model{batch} and strong.base_url"
    path = urlsplit(strong.base_url or "").path.rstrip("/")
    if failure.status == 404 and path.endswith("/completions"):
        check = "strong.base_url: it is to end before /chat/completions"
    elif failure.status == 404 and strong.base_url and not re.search(r"/v\d[^/]*$", path):
        check += ", which most servers want to end in /v1"
    return EscalationError(f"the strong judge cannot be asked: {failure.reason}. Check {check}")
