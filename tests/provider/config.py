"""Settings of the provider: one frozen model, loadable from JSON, strict about keys."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tests.provider.faults import ALL_KINDS

Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Unknown keys are refused, so that a misspelt setting cannot pass silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Latency(Settings):
    """Time between the arrival of a request and its answer: uniform in [min_ms, max_ms].

    It depends on the request and its attempt number, not on the order of arrival.
    """

    min_ms: float = Field(default=0.0, ge=0)
    max_ms: float = Field(default=0.0, ge=0)


class Limits(Settings):
    """Per-minute limits, enforced over every second; null: no limit and no header for it."""

    rpm: int | None = Field(default=None, gt=0)
    """Requests per minute."""
    tpm: int | None = Field(default=None, gt=0)
    """Tokens per minute; a request takes its prompt tokens plus `max_completion_tokens`."""


class FaultRule(Settings):
    """When one kind of fault strikes; the first rule that fires wins."""

    kind: str = Field(pattern=f"^({'|'.join(sorted(ALL_KINDS))})$")
    probability: float = Field(default=1.0, ge=0, le=1)
    """Drawn from the fault seed, the canonical request and its attempt number, so that two runs
    with the same requests meet the same faults whatever the order."""
    requests: tuple[int, ...] = ()
    """Strike only these 1-based requests, as admitted by the rate limits; empty: any."""
    attempts: tuple[int, ...] = ()
    """Strike only at these 1-based attempts of the same canonical request; empty: at any."""
    contains: str = ""
    """Strike only requests whose messages contain this text."""
    max_times: int | None = Field(default=None, ge=0)
    scope: Literal["chat", "batch"] = "chat"
    """`batch`: lines of a batch, where `requests` are line numbers, HTTP errors become lines of
    the error file, and the faults of a connection (all but `duplicate`) have no effect."""
    retry_after_s: float = Field(default=1.0, ge=0)
    """Seconds told by a `rate_limit` or `unavailable` fault."""
    extra_ms: float = Field(default=2000.0, ge=0)
    """How much later a `late` answer comes."""


class CallFault(Settings):
    """A fault of a file upload or a batch creation, by the 1-based number of that call."""

    kind: Literal["reset_before", "reset_after", "error_before", "error_after"]
    """`before`: nothing was recorded; `after`: the file or batch exists, the answer was lost.
    `reset_*` resets the connection, `error_*` answers 500."""
    calls: tuple[int, ...]


class BatchSettings(Settings):
    """Limits and scripted faults of batches."""

    expire_after_share: float | None = Field(default=None, ge=0, le=1)
    """Expire when this share of the lines is answered; null: run to the end."""
    drop_lines: tuple[int, ...] = ()
    """1-based lines that are billed and then stand in neither file."""
    fail_batches: tuple[int, ...] = ()
    """1-based numbers of batches that fail as a whole in validation."""
    enqueued_token_limit: int | None = Field(default=None, gt=0)
    """Prompt tokens per model in batches that have not ended; null: no limit."""
    enqueued_rejection: Literal["failed", "429"] = "failed"
    """`failed`: the batch fails with code token_limit_exceeded; `429`: creation is refused."""
    upload_faults: tuple[CallFault, ...] = ()
    create_faults: tuple[CallFault, ...] = ()


class ServerConfig(Settings):
    """Everything the provider does; every field has a working default."""

    api_key: str = Field(default="sim-key", exclude=True, repr=False)
    """The one key that is accepted as `Authorization: Bearer ...`; never logged."""
    truth: Path | None = None
    """JSON list of rows with `instruction`, `response_a`, `response_b` and `verdict` ("A", "B" or
    "tie"), which are found by their exact texts. Null: a verdict by the hash of the request."""
    latency: Latency = Latency()
    limits: Limits = Limits()
    faults: tuple[FaultRule, ...] = ()
    fault_seed: int = 0
    refuse_parameters: tuple[str, ...] = ()
    """Body parameters that are answered with 400 unsupported_parameter."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Hidden reasoning tokens of every answer, counted (and billed) as completion tokens."""
    cached_tokens: int = Field(default=0, ge=0)
    """Prompt tokens of every request reported as cached, at most all of them."""
    permit_flex: bool = True
    """False: service_tier "flex" is answered, and billed, as "default"."""
    quota_usd: Money | None = None
    """Once this much is billed every request answers insufficient_quota; null: no quota."""
    busy_after: int | None = Field(default=None, ge=0)
    """Once so many requests were admitted, nothing but 429 is answered for `busy_s` seconds."""
    busy_s: float = Field(default=5.0, ge=0)
    batches: BatchSettings = BatchSettings()

    def patched(self, patch: dict[str, Any]) -> ServerConfig:
        """This configuration with some settings replaced: objects merge, lists are replaced."""
        merged = {**self.model_dump(mode="json"), "api_key": self.api_key}
        for name, value in patch.items():
            before = merged.get(name)
            if isinstance(value, dict) and isinstance(before, dict):
                merged[name] = before | value
            else:
                merged[name] = value
        return type(self).model_validate_json(json.dumps(merged))
