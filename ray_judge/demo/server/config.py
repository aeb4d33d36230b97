"""Settings of the simulated provider: one frozen model, loadable from JSON, strict about keys."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ray_judge.demo.server.fault_kinds import ALL_KINDS

Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    """Unknown keys are refused, so that a misspelt setting cannot pass silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Prices(_Strict):
    """Dollars per million tokens, as decimal strings; never floats, so totals are exact."""

    input: Money = Decimal("2.50")
    """Per million prompt tokens that were not cached."""
    cached_input: Money = Decimal("1.25")
    """Per million cached prompt tokens."""
    output: Money = Decimal("10.00")
    """Per million completion tokens, reasoning tokens included."""
    batch_factor: Money = Decimal("0.5")
    """Multiplies the whole price of a request that ran in a batch."""
    flex_factor: Money = Decimal("0.5")
    """Multiplies the whole price of a request answered with service_tier "flex"."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_floats(cls, value: object) -> object:
        if isinstance(value, float):  # pydantic turns a ValueError into a message, no TypeError
            raise ValueError('prices are decimal strings such as "2.50", not floats')  # noqa: TRY004
        return value


class Latency(_Strict):
    """Time between the arrival of a request and its answer: uniform in [min_ms, max_ms].

    The draw depends on the seed, the request and its attempt number, not on arrival order.
    """

    min_ms: float = Field(default=0.0, ge=0)
    max_ms: float = Field(default=0.0, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Latency:
        if self.max_ms < self.min_ms:
            raise ValueError("max_ms must be at least min_ms")
        return self


class Limits(_Strict):
    """Per-minute limits, enforced as token buckets with continuous refill."""

    rpm: int | None = Field(default=None, gt=0)
    """Requests per minute; null: no limit and no header for it."""
    tpm: int | None = Field(default=None, gt=0)
    """Tokens per minute; a request takes its prompt tokens plus `max_completion_tokens`."""
    burst_s: float = Field(default=1.0, gt=0)
    """Capacity of a bucket as seconds of its rate (at least one request). The default is the
    strict reading, a minute's limit quantised per second; 60 lets a whole minute's share burst."""
    rejected_count: bool = False
    """True: a rejected request takes from the request bucket too, as providers warn they do."""


class LookupAnswers(_Strict):
    """Verdicts from a file of rows, found by the texts that occur in the prompt."""

    kind: Literal["lookup"] = "lookup"
    path: Path
    """JSON (list of records), JSON Lines (.jsonl) or Parquet."""
    instruction: str = "instruction"
    """Column of the instruction; a file without it is matched by the responses alone."""
    response_a: str = "response_a"
    """Column of the response shown first. A prompt that shows the two in the other order gets
    the flipped verdict. For single-response scoring, name the response's column here."""
    response_b: str = "response_b"
    verdict: str = "verdict"
    """Column with "A", "B" or "tie"."""
    score: str = "score"
    """Column with a number, used when the request asks for a score."""
    sha256: str = "sha256"
    """Optional column: SHA-256 hex digest of the user message, used before the texts."""
    match_chars: int = Field(default=0, ge=0)
    """Match only the first so many characters of each text (for prompts that cut); 0: all."""


class HashAnswers(_Strict):
    """Pseudo-random answers, a function of the SHA-256 of the canonical request."""

    kind: Literal["hash"] = "hash"


class StrongAnswers(LookupAnswers):
    """A simulated strong judge: the row's verdict is the truth, told right with `accuracy`.

    Right or wrong is decided per question (the row), so both orders of a pair agree.
    """

    kind: Literal["simulated_strong"] = "simulated_strong"  # type: ignore[assignment]
    accuracy: float = Field(default=0.97, ge=0, le=1)
    seed: int = 0


Answers = Annotated[LookupAnswers | HashAnswers | StrongAnswers, Field(discriminator="kind")]


class Certainty(_Strict):
    """How sure the simulated judge is of what it says, where a request asks for `logprobs`."""

    sure: tuple[float, float] = (0.9, 0.999)
    """Lowest and highest probability of a verdict; drawn per request."""
    unsure: tuple[float, float] = (0.35, 0.6)
    """The same of the requests that the judge is unsure of: those that contain the text
    `unsure_containing`, and the share `unsure_share` of all others."""
    unsure_containing: str = ""
    unsure_share: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0
    tokens: Literal["words", "straddling", "characters"] = "words"
    """How answers are cut: with the verdict as a token of its own, joined to the quote before it,
    or letter by letter."""
    given: bool = True
    """False: `logprobs` are null, though the request asks for them."""

    @field_validator("sure", "unsure")
    @classmethod
    def _probabilities(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("two probabilities above 0, the lower one first")
        return value


class FaultRule(_Strict):
    """When one kind of fault strikes; the first rule that fires wins."""

    kind: str
    """A name from `fault_kinds.ALL_KINDS`."""
    probability: float = Field(default=0.0, ge=0, le=1)
    """Drawn from the fault seed, the canonical request and its attempt number, so that two runs
    with the same requests meet the same faults whatever the order."""
    requests: tuple[int, ...] = ()
    """1-based numbers of the requests, as admitted by the rate limits, that get this fault."""
    attempts: tuple[int, ...] = ()
    """Strike only at these 1-based attempts of the same canonical request; empty: at any. With
    neither `probability` nor `requests`, a rule that has `attempts`, `contains` or `max_times`
    strikes whenever these permit it."""
    contains: str = ""
    """Strike only requests whose messages contain this text."""
    max_times: int | None = Field(default=None, ge=0)
    """Strike at most so often."""
    scope: Literal["chat", "batch", "all"] = "chat"
    """`batch`: lines of a batch, where `requests` are line numbers, HTTP errors become lines of
    the error file, and the faults of a connection (all but `duplicate`) do not apply."""
    retry_after_s: float = Field(default=1.0, ge=0)
    """Seconds told by a `rate_limit` or `unavailable` fault."""
    retry_after_style: Literal["seconds", "date", "ms", "none"] = "seconds"
    """Header form: `Retry-After: 2`, `Retry-After: <HTTP date>` or `retry-after-ms: 1500`."""
    extra_ms: float = Field(default=2000.0, ge=0)
    """Additional latency of a `late` answer, in milliseconds."""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ALL_KINDS:
            raise ValueError(f"unknown fault {value!r}; known: {', '.join(sorted(ALL_KINDS))}")
        return value


class CallFault(_Strict):
    """A fault of a file upload or a batch creation, by the 1-based number of that call."""

    kind: Literal["reset_before", "reset_after", "error_before", "error_after", "rate_limit"]
    """`before`: nothing was recorded; `after`: the file or batch exists, the answer was lost.
    `reset_*` resets the connection, `error_*` answers 500, `rate_limit` 429 (not recorded)."""
    calls: tuple[int, ...]


class BatchSettings(_Strict):
    """Life cycle, limits and scripted faults of batches."""

    validating_s: float = Field(default=0.05, ge=0)
    """Seconds in status validating."""
    in_progress_s: float = Field(default=0.2, ge=0)
    """Seconds in status in_progress, over which the lines are answered evenly."""
    finalizing_s: float = Field(default=0.05, ge=0)
    """Seconds in status finalizing, and in cancelling."""
    manual: bool = False
    """True: time moves nothing; each POST /control/batches/{id}/advance moves one status on."""
    expire_after_share: float | None = Field(default=None, ge=0, le=1)
    """Expire when this share of the lines is answered; null: run to the end."""
    fail_lines: tuple[int, ...] = ()
    """1-based lines that end with HTTP 500 in the error file, not billed."""
    drop_lines: tuple[int, ...] = ()
    """1-based lines that are billed and then stand in neither file."""
    fail_batches: tuple[int, ...] = ()
    """1-based numbers of batches that fail as a whole in validation."""
    shuffle_output: bool = True
    """Output lines in a shuffled (seeded) order, since providers promise no order."""
    max_requests: int = Field(default=50_000, gt=0)
    max_bytes: int = Field(default=200 * 1024 * 1024, gt=0)
    enqueued_token_limit: int | None = Field(default=None, gt=0)
    """Prompt tokens per model in batches that have not ended; null: no limit."""
    enqueued_rejection: Literal["failed", "429"] = "failed"
    """`failed`: the batch fails with code token_limit_exceeded; `429`: creation is refused."""
    upload_faults: tuple[CallFault, ...] = ()
    create_faults: tuple[CallFault, ...] = ()


class ServerConfig(_Strict):
    """Everything the simulated provider does; every field has a working default."""

    api_key: SecretStr = SecretStr("sim-key")
    """The one key that is accepted as `Authorization: Bearer ...`; never logged."""
    models: tuple[str, ...] = ()
    """Known model names; others answer 404. Empty: every name is known."""
    model_snapshot: str | None = None
    """Name told in the `model` field of answers; null: the name that was asked for."""
    answers: Answers = HashAnswers()
    scores: tuple[float, float] = (1, 10)
    """Lowest and highest score told where the request's schema gives no bounds."""
    ties: bool = True
    """False: questions in words get "A" or "B" only (a schema's enum rules its own answers)."""
    certainty: Certainty = Certainty()
    prices: Prices = Prices()
    latency: Latency = Latency()
    limits: Limits = Limits()
    rate_headers: bool = True
    """Send the x-ratelimit-* headers of the limits that are set."""
    faults: tuple[FaultRule, ...] = ()
    fault_seed: int = 0
    refuse_response_format: bool = False
    """Answer 400 unsupported_parameter to `response_format`, as small servers do."""
    refuse_parameters: tuple[str, ...] = ()
    """Other body parameters that are answered with 400 unsupported_parameter."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Hidden reasoning tokens of every answer, counted (and billed) as completion tokens."""
    cached_tokens: int = Field(default=0, ge=0)
    """Prompt tokens of every request reported as cached, at most all of them."""
    permit_flex: bool = True
    """False: service_tier "flex" is answered, and billed, as "default"."""
    context_tokens: int | None = Field(default=None, gt=0)
    """Prompts plus max_completion_tokens above this answer context_length_exceeded."""
    quota_usd: Money | None = None
    """Once this much is billed every request answers insufficient_quota; null: no quota."""
    quota_exhausted: bool = False
    """Switch: every request answers insufficient_quota."""
    bill_abandoned: bool = True
    """Bill answers whose client left while they were computed, as providers do."""
    batches: BatchSettings = BatchSettings()

    @classmethod
    def load(cls, path: str | Path) -> ServerConfig:
        """Read a JSON file, or standard input for "-"."""
        text = sys.stdin.read() if str(path) == "-" else Path(path).read_text("utf-8")
        return cls.model_validate_json(text)

    def public(self) -> dict[str, Any]:
        """The settings as JSON values, with the key masked."""
        return self.model_dump(mode="json")

    def with_secret_json(self) -> str:
        """JSON text that `load` reads back whole; holds the key, so only for a pipe."""
        return json.dumps({**self.public(), "api_key": self.api_key.get_secret_value()})

    def patched(self, patch: dict[str, Any]) -> ServerConfig:
        """This configuration with some settings replaced: objects merge, lists are replaced."""
        merged = _merge(json.loads(self.with_secret_json()), patch)
        return type(self).model_validate_json(json.dumps(merged))


def _merge(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Merge nested objects; an `answers` object of another kind replaces the old one."""
    merged = dict(old)
    for key, value in patch.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if "kind" in value and value["kind"] != before.get("kind"):
                merged[key] = value
            else:
                merged[key] = _merge(before, value)
        else:
            merged[key] = value
    return merged
