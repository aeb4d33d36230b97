"""The scripted failures that the provider knows, in one table.

Five groups matter to a client:

* `HTTP_ERRORS`: an error status instead of an answer; nothing was computed, nothing is billed;
* `ERRORS_INSIDE`: the same inside an answer of 200, as gateways send it;
* `UNBILLED_TRANSPORT`: the connection fails before the answer was computed; not billed;
* `BILLED_TRANSPORT`: the answer was computed and billed, but it does not arrive whole or in time;
* `MODEL_FAULTS`: a complete, billed HTTP 200 whose content is not a usable verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class HttpError:
    """One provider error: its HTTP status and the fields of the `error` object."""

    status: int
    code: str | None
    type: str
    message: str
    param: str | None = None

    def body(self) -> dict[str, object]:
        fields = {"message": self.message, "type": self.type}
        return {"error": {**fields, "param": self.param, "code": self.code}}


class ApiFailure(Exception):
    """A request is answered with an error."""

    def __init__(self, error: HttpError, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.error, self.headers = error, headers or {}


class AnswerLost(Exception):
    """A request is answered with a TCP reset."""


_QUOTA = "insufficient_quota"
_INVALID = "invalid_request_error"
_ABROAD = "unsupported_country_region_territory"
_FULL = "resource_unavailable"
_BUSY = "service_unavailable"
_LENGTH = "context_length_exceeded"
RATE_LIMIT: Final = HttpError(429, "rate_limit_exceeded", "requests", "Rate limit reached.")
HTTP_ERRORS: Final[dict[str, HttpError]] = {
    "rate_limit": RATE_LIMIT,
    "rate_limit_no_header": RATE_LIMIT,
    _QUOTA: HttpError(429, _QUOTA, _QUOTA, "You exceeded your current quota."),
    "billing_hard_limit": HttpError(400, "billing_hard_limit_reached", _INVALID, "Hard limit."),
    "flex_unavailable": HttpError(429, _FULL, _FULL, "No flex capacity at the moment."),
    "server_error": HttpError(500, None, "server_error", "The server had an error."),
    "unavailable": HttpError(503, _BUSY, f"{_BUSY}_error", "The engine is overloaded."),
    "request_timeout": HttpError(408, None, "server_error", "Request timed out."),
    "invalid_api_key": HttpError(401, "invalid_api_key", _INVALID, "Incorrect API key provided."),
    "permission_denied": HttpError(403, _ABROAD, "request_forbidden", "Not permitted."),
    "model_not_found": HttpError(404, "model_not_found", _INVALID, "No such model.", "model"),
    _LENGTH: HttpError(400, _LENGTH, _INVALID, "The context length was exceeded.", "messages"),
    "content_filter_400": HttpError(400, "content_filter", _INVALID, "Not permitted.", "prompt"),
    "invalid_request": HttpError(400, None, _INVALID, "Invalid value.", "messages"),
}
"""Errors answered at once. `rate_limit` carries Retry-After, `rate_limit_no_header` does not.
`flex_unavailable` only strikes requests that ask for the flex tier."""

ERRORS_INSIDE: Final[dict[str, dict[str, object]]] = {
    "rate_limit_inside": {"code": 429},
    "overloaded_inside": {"code": 503},
    "moderated_inside": {"code": 403, "metadata": {"reasons": ["x"]}},
    "error_inside": {"code": None},
    "error_inside_billed": {"code": 502},
}
"""`error_inside_billed` was computed and is billed, all others were not."""

UNBILLED_TRANSPORT: Final = frozenset({"hang", "reset_before", "bad_gateway_html"})
"""`hang` never answers until the client leaves; `reset_before` sends a TCP reset;
`bad_gateway_html` is HTTP 502 with an HTML body, as a proxy on the way writes it."""

BILLED_TRANSPORT: Final = frozenset(
    "hang_billed reset_after truncated_body broken_body server_error_billed error_inside_billed "
    "late duplicate".split()
)
"""`truncated_body`: Content-Length fits but the JSON text is cut in half. `broken_body`: the
connection closes in the middle of the body. `server_error_billed`: HTTP 500 after the bill.
`late`: the whole answer comes `extra_ms` later. `duplicate`: the same answer is written twice
(on the wire for chat, as two lines of the output file for a batch), billed once."""

MODEL_FAULTS: Final = frozenset(
    "refusal content_filter cut malformed_json wrong_verdict fenced_json empty_content "
    "missing_usage usage_of_zero overbilled short_id other_verdict".split()
)
"""`refusal` sets message.refusal; `content_filter` and `cut` set finish_reason (content_filter,
length); `wrong_verdict` is JSON outside the schema; `fenced_json` is a right answer in a Markdown
fence with words around it; `missing_usage` is a right answer without its usage object,
`usage_of_zero` one whose counts are 0; `overbilled` names, and bills, three times the output tokens
that its request permits; `short_id` has an id that others have, too;
`other_verdict` says B for A and A for B, as a model that changes its mind."""

ALL_KINDS: Final = (
    frozenset(HTTP_ERRORS)
    | frozenset(ERRORS_INSIDE)
    | UNBILLED_TRANSPORT
    | BILLED_TRANSPORT
    | MODEL_FAULTS
)


def error_inside(kind: str) -> dict[str, object]:
    """The answer of 200 that such an error comes in."""
    error = {"message": "Provider returned error", **ERRORS_INSIDE[kind]}
    return {"id": None, "choices": None, "usage": None, "error": error}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiFailure:
    return ApiFailure(HttpError(400, code, _INVALID, message, param))


def not_found(what: str) -> ApiFailure:
    return ApiFailure(HttpError(404, None, _INVALID, f"No such {what}.", "id"))
