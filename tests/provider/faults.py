"""The scripted failures that the provider knows, in one table.

Four groups matter to a client:

* `HTTP_ERRORS`: an error status instead of an answer; nothing was computed, nothing is billed;
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


_QUOTA = "insufficient_quota"
_INVALID = "invalid_request_error"
INSUFFICIENT_QUOTA: Final = HttpError(429, _QUOTA, _QUOTA, "You exceeded your current quota.")
INVALID_API_KEY: Final = HttpError(401, "invalid_api_key", _INVALID, "Incorrect API key provided.")
RATE_LIMIT: Final = HttpError(
    429, "rate_limit_exceeded", "requests", "Rate limit reached. Please try again later."
)
HTTP_ERRORS: Final[dict[str, HttpError]] = {
    "rate_limit": RATE_LIMIT,
    "rate_limit_no_header": RATE_LIMIT,
    _QUOTA: INSUFFICIENT_QUOTA,
    "billing_hard_limit": HttpError(
        400, "billing_hard_limit_reached", _INVALID, "Billing hard limit has been reached."
    ),
    "flex_unavailable": HttpError(
        429, "resource_unavailable", "resource_unavailable", "No flex capacity at the moment."
    ),
    "server_error": HttpError(500, None, "server_error", "The server had an error."),
    "unavailable": HttpError(
        503, "service_unavailable", "service_unavailable_error", "The engine is overloaded."
    ),
    "request_timeout": HttpError(408, None, "server_error", "Request timed out."),
    "invalid_api_key": INVALID_API_KEY,
    "permission_denied": HttpError(
        403, "unsupported_country_region_territory", "request_forbidden", "Not permitted."
    ),
    "model_not_found": HttpError(
        404, "model_not_found", _INVALID, "The model does not exist.", "model"
    ),
    "context_length_exceeded": HttpError(
        400, "context_length_exceeded", _INVALID, "The context length was exceeded.", "messages"
    ),
    "content_filter_400": HttpError(
        400, "content_filter", _INVALID, "The prompt triggered the content policy.", "prompt"
    ),
    "invalid_request": HttpError(400, None, _INVALID, "Invalid value.", "messages"),
}
"""Errors answered at once. `rate_limit` carries Retry-After, `rate_limit_no_header` does not.
`flex_unavailable` only strikes requests that ask for the flex tier."""

HTML_GATEWAY: Final = "bad_gateway_html"
"""HTTP 502 with an HTML body, as a proxy between client and provider writes it; not billed."""

UNBILLED_TRANSPORT: Final = frozenset({"hang", "reset_before", HTML_GATEWAY})
"""`hang` never answers until the client leaves; `reset_before` sends a TCP reset."""

BILLED_TRANSPORT: Final = frozenset(
    "hang_billed reset_after truncated_body broken_body server_error_billed late duplicate".split()
)
"""`truncated_body`: Content-Length fits but the JSON text is cut in half. `broken_body`: the
connection closes in the middle of the body. `server_error_billed`: HTTP 500 after the bill.
`late`: the whole answer comes `extra_ms` later. `duplicate`: the same answer is written twice
(on the wire for chat, as two lines of the output file for a batch), billed once."""

MODEL_FAULTS: Final = frozenset(
    "refusal content_filter cut malformed_json wrong_verdict fenced_json empty_content "
    "missing_usage other_verdict".split()
)
"""`refusal` sets message.refusal; `content_filter` and `cut` set finish_reason (content_filter,
length); `wrong_verdict` is JSON outside the schema; `fenced_json` is a right answer in a Markdown
fence with words around it; `missing_usage` is a right answer without its usage object;
`other_verdict` says B for A and A for B, as a model that changes its mind."""

ALL_KINDS: Final = frozenset(HTTP_ERRORS) | UNBILLED_TRANSPORT | BILLED_TRANSPORT | MODEL_FAULTS
