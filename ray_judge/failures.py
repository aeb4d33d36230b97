"""What every way of failing means for a question, for the run, and for the money. Pure.

Errors are classified by HTTP status and the API's error code
(platform.openai.com/docs/guides/error-codes, 2026-11), by the text of a message only where servers
give no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from ray_judge.config import StrongConfig, hide_secrets
from ray_judge.errors import EscalationError, PausedError, ProviderDown, RayJudgeError, brief

BILLING_CODES = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active",
    "exceeded_current_quota_error",
}  # fmt: skip
MONEY = re.compile(
    r"credit balance|quota|insufficient (?:funds|balance|credits?)|billing", re.IGNORECASE
)
"""Words of a 400 or 403 for want of money, which some servers give no code; a 429's quota is its
rate."""
FILTER_CODES = {"content_filter", "content_policy_violation"}
TOO_LONG = "context_length_exceeded"
STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "not_found_error": 404,
    **dict.fromkeys(FILTER_CODES, 400),
    **dict.fromkeys(BILLING_CODES, 429),
}
"""The status that an error in an answer of 200 would have had, by its code or type."""
SECRET = re.compile(r"\b(?:sk|key|rk|pk)-[\w*-]{6,}|(?<=Bearer )\S+")
LIMITED = re.compile(r"(?i)limit:? ([\d,]*\d),? requested:? ([\d,]*\d)(?!\.?\w)")
"""In the words of a 429: where more is requested than the limit, no wait makes it small enough."""
TAGS = re.compile(r"(?s)<style.*?</style>|<[^>]*>")
TRIES = 8
"""How often the server may fail at one question before its row is given up as `failed`."""
DENIALS = 8
"""So many questions in a row that a server that answers others does not let through end the run."""
LOST_TRIES = 3
"""How often a question's answer may be lost after it was sent: each of those counts in full."""


class Kind(StrEnum):
    """How a request failed, or an answer that was billed has no verdict."""

    RATE_LIMIT = "rate_limit"
    TRANSIENT = "transient"
    BROKEN = "broken"
    AMBIGUOUS = "ambiguous"
    ROW = "row"
    REFUSED = "refused"
    FILTERED = "filtered"
    CUT = "cut"
    UNUSABLE = "unusable"
    NO_SCHEMA = "no_schema"
    PARAMETER = "parameter"
    DENIED = "denied"
    BILLING = "billing"


class Fault(StrEnum):
    """Where the cause of a failure lies, and so what it befalls."""

    QUESTION = "the row"  # this question ends; others may fare better
    RUN = "the run"  # every question would fare alike
    PROVIDER = "the provider"  # it passes by itself


class Bill(StrEnum):
    """What a failed request counts as."""

    NOTHING = "nothing"
    MOST = "its lease"  # an answer may have been computed, and billed
    USAGE = "its usage"


class Signal(StrEnum):
    """What the governor learns from an answer about the provider's state."""

    OK = "it is well"
    RATE_LIMITED = "it wants less"  # 429 for the rate or for capacity
    UNAVAILABLE = "it is unwell"  # 5xx, a refused or broken connection, a time-out


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a kind of failure. `said`: how servers say it."""

    said: str
    fault: Fault
    signal: Signal = Signal.OK
    bill: Bill = Bill.NOTHING
    again: str = ""
    """How often the same question is sent again in this session; empty: never."""
    tries: int | None = None
    """How many such failures end the question; None: none does, or the configuration says it."""


_UNWELL = (Fault.PROVIDER, Signal.UNAVAILABLE)
_LATER = f"(after a verdict: the row's, unless {DENIALS} in a row are such)"
_TRIES = f"up to {TRIES} times in all"
MEANING: Mapping[Kind, Meaning] = {
    Kind.RATE_LIMIT: Meaning(
        "429", Fault.PROVIDER, Signal.RATE_LIMITED,
        again="when it may, unless it is so rarely others' answer that the text must be too large",
    ),
    Kind.TRANSIENT: Meaning(
        "503, 409, 424, 425, no connection; a line of a batch that did not run", *_UNWELL,
        again=f"{_TRIES}; without a connection as long as the run waits", tries=TRIES,
    ),
    Kind.BROKEN: Meaning("other 5xx, 408, 499", *_UNWELL, Bill.MOST, again=_TRIES, tries=TRIES),
    Kind.AMBIGUOUS: Meaning(
        "no whole answer; an answer that is no completion", *_UNWELL, Bill.MOST,
        again=f"up to {LOST_TRIES} times in all", tries=LOST_TRIES,
    ),
    Kind.ROW: Meaning("400, 413, 422 and other 4xx, such as a text that is too long",
                      Fault.QUESTION),
    Kind.REFUSED: Meaning("an error of the content filter", Fault.QUESTION),
    Kind.FILTERED: Meaning("an answer that the content filter stopped", Fault.QUESTION,
                           bill=Bill.USAGE),
    Kind.CUT: Meaning("an answer that was cut at its limit, without a verdict", Fault.QUESTION,
                      bill=Bill.USAGE),
    Kind.UNUSABLE: Meaning("a refusal in words, no verdict, two verdicts", Fault.QUESTION,
                           bill=Bill.USAGE, again="`strong.reasks` times, over all sessions"),
    Kind.NO_SCHEMA: Meaning("400, 422 about `response_format`", Fault.RUN, again="in words"),
    Kind.PARAMETER: Meaning(f"400, 422 that names another parameter {_LATER}", Fault.RUN),
    Kind.DENIED: Meaning(f"3xx, 401, 403, 404 {_LATER}", Fault.RUN),
    Kind.BILLING: Meaning("402, an exhausted quota or account: the run pauses", Fault.RUN),
}  # fmt: skip
"""The table of failures: README's is made from it (`tests/unit/test_failures.py`)."""
OF_A_ROW = {Kind.DENIED: Kind.REFUSED, Kind.PARAMETER: Kind.ROW}
"""What these are once the server has let other questions through: the text may be the cause."""


@dataclass(eq=False)
class RequestFailed(Exception):
    """One request failed. It never crosses a process."""

    kind: Kind
    reason: str  # a sentence without secrets
    status: int | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None  # of the configuration, where it can be named

    @property
    def surely_of_row(self) -> bool:
        """Whether it says nothing of other questions, however many fail like it."""
        return self.code in {TOO_LONG, *FILTER_CODES}

    def __str__(self) -> str:
        return self.reason

    @property
    def meaning(self) -> Meaning:
        return MEANING[self.kind]

    @property
    def unreachable(self) -> bool:
        """Whether the server never saw the request; this says nothing about the question."""
        return self.kind is Kind.TRANSIENT and self.status is None


BY_STATUS = {
    **dict.fromkeys((401, 403, 404), Kind.DENIED),
    # Locked, overloaded, or something before it failed: it did not begin.
    **dict.fromkeys((409, 424, 425, 503), Kind.TRANSIENT),
    **dict.fromkeys((408, 499), Kind.BROKEN),
    402: Kind.BILLING,
    429: Kind.RATE_LIMIT,
}
KEY_OF = {
    "temperature": "strong.temperature",
    "reasoning_effort": "strong.reasoning_effort",
    "max_tokens": "strong.max_tokens_field strong.max_output_tokens",
    "max_completion_tokens": "strong.max_tokens_field strong.max_output_tokens",
    "model": "strong.model",
    "service_tier": "strong.mode",
}
"""Parameter of a request → the keys that set it: where it is refused, every question is."""
SCHEMA = "response_format"
LIMITS = ("max_completion_tokens", "max_tokens")
"""A server that knows them may still find them too large beside one row's text."""
UNSUPPORTED = {"unsupported_value", "unsupported_parameter", "unknown_parameter", "extra_forbidden"}


def failure_of(
    status: int, error: Any, headers: Mapping[str, str], keys: Mapping[str, str] = KEY_OF
) -> RequestFailed:
    """The failure that an `error` object tells of, in an answer of this HTTP status.

    A gateway puts its provider's error into an answer of 200, with that error's own status as its
    code. The reason has the server's own words, up to `WORDS` characters, without keys. `keys`:
    parameter of the request → the key that sets it.
    """
    if isinstance(error, list) and error:  # as Gemini has it
        error = error[0]
    error = error if isinstance(error, dict) else {"message": error}
    error = error["error"] if isinstance(error.get("error"), dict) else error
    said, param, code = _said(error)
    kind = error.get("type")
    inside = int(code) if str(code).isdigit() else None
    names = [text for text in (code, kind) if isinstance(text, str) and not text.isdigit()]
    moved = headers.get("location", "").partition("?")[0] if 300 <= status < 400 else ""
    if moved:
        said = f"the answers are at {moved}"
    elif status < 400:
        status = inside or STATUS_OF.get(str(code), STATUS_OF.get(str(kind), 500))
    words = in_short(said)
    reason = " ".join([f"HTTP {status}", *names[:1]]) + (f": {words}" if words else "")
    name = TOO_LONG if param == "input_tokens" else names[0] if names else None  # as vLLM says it
    code, kind = (x if isinstance(x, str) else None for x in (code, kind))
    # `response_format.json_schema`, `body.max_tokens`
    named = next((part for part in re.findall(r"\w+", param) if part in {*keys, SCHEMA}), param)
    meaning = classify(status, code, kind, named, keys)
    if status in (400, 403) and meaning in (Kind.ROW, Kind.DENIED) and MONEY.search(words):
        meaning = Kind.BILLING
    numbers = [int(one.replace(",", "")) for found in LIMITED.findall(words) for one in found]
    if meaning is Kind.RATE_LIMIT and numbers and numbers[1] > numbers[0]:
        meaning, name = Kind.ROW, TOO_LONG
    return RequestFailed(meaning, reason, status, name, headers, keys.get(named))


def _said(error: Mapping[str, Any]) -> tuple[str, str, Any]:
    """The words of an error, the parameter that it names, and its code; also as FastAPI has them:
    `detail: [{"loc": ["body", "max_tokens"], "msg": ..., "type": "extra_forbidden"}]`.
    """
    said, param, code = (
        error.get("message") or error.get("detail"),
        error.get("param"),
        error.get("code"),
    )
    if isinstance(said, dict):
        said = said.get("detail") or said
    if isinstance(said, list) and said and isinstance(said[0], dict) and said[0].get("loc"):
        param, code = ".".join(map(str, said[0]["loc"])), said[0].get("type")
        said = f"{param}: {said[0].get('msg')}"
    rest = {k: v for k, v in error.items() if v and k not in ("code", "type", "param")}
    said = said or (json.dumps(rest) if rest else "")  # in a form of the server's own
    words = said if isinstance(said, str) else str(said)
    return words, param if isinstance(param, str) else "", code


def in_short(said: str) -> str:
    """A server's own words without keys, on one line; of a page, its text."""
    text = TAGS.sub(" ", said) if said.lstrip().startswith("<") else said
    return hide_secrets(brief(SECRET.sub("…", text)))


def classify(
    status: int,
    code: str | None,
    kind: str | None,
    param: str | None,
    keys: Mapping[str, str] = KEY_OF,
) -> Kind:
    """What an error answer means, by its status and the fields of its `error` object."""
    if code in BILLING_CODES or kind in BILLING_CODES:
        return Kind.BILLING
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status < 400:
        return Kind.DENIED
    if status >= 500:
        return Kind.BROKEN
    if status in (400, 422) and param == SCHEMA:
        return Kind.NO_SCHEMA
    if status in (400, 422) and (param in {*keys} - {*LIMITS} or code in UNSUPPORTED):
        return Kind.PARAMETER
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
    check = f"{key}strong.model{batch} and strong.base_url"
    if failure.key and failure.kind is not Kind.DENIED:  # with what it is now
        names = [name.removeprefix("strong.") for name in failure.key.split()]
        check = " and ".join(f"strong.{name} ({getattr(strong, name)})" for name in names)
    check = check_of(failure, check, "strong.base_url", strong.base_url)
    said = failure.reason.rstrip(".")
    return EscalationError(f"the strong judge cannot be asked: {said}. Check {check}")


def check_of(failure: RequestFailed, check: str, key: str, address: str | None) -> str:
    """What to check, given what may be wrong by itself, and an address that may be (at a 404)."""
    path = urlsplit(address or "").path.rstrip("/")
    if failure.status in range(300, 400):
        return key
    if failure.status != 404 or address is None:
        return check
    if called := re.search(r"(/chat)?/completions$", path):
        return f"{key}: it is to end before {called[0]}"
    if re.search(r"/v\d[^/]*$", path):
        return check
    return f"{check}, which most servers want to end in /v1"
