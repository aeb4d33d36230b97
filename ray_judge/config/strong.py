"""`strong`: the API judge, its limits, prices and cap."""

from __future__ import annotations

import json
import os
import re
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ray_judge.config.tree import Address, Place, Positive, Share, Tree, Usd, Variable
from ray_judge.errors import ConfigError

HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
OWN = frozenset(
    """
    model messages response_format temperature reasoning_effort max_tokens max_completion_tokens
    service_tier n best_of stream max_output_tokens
    """.split()
)
"""Of a request's body: what ray_judge sets itself, or what would make it another kind of answer."""
OF_THE_BODY = ("content-length", "content-encoding", "transfer-encoding")
REASONS = re.compile(r"(?i)(?:.*/)?(?:o\d|gpt-[5-9]|gpt-oss)")
"""Models that reason without being told to (OpenAI, "Reasoning models", 2026-11)."""
PLAIN_LIMIT, REASONING_LIMIT = 300, 4000


def _shown(value: SecretStr) -> str:
    text = value.get_secret_value()
    return text if VARIABLE.fullmatch(text) else "…"


Hidden = Annotated[SecretStr, PlainSerializer(_shown, when_used="json")]
"""Text that no document shows, unless it is the name of an environment variable, `${NAME}`."""


class PriceConfig(Tree):
    """Prices for a model that the built-in table does not list, US dollars per million tokens."""

    input_usd_per_mtok: Usd
    output_usd_per_mtok: Usd
    cached_input_usd_per_mtok: Usd | None = None
    batch_factor: Usd | None = None
    """What multiplies them in a batch, such as 0.5; null: nothing does."""
    flex_factor: Usd | None = None


class BatchConfig(Tree):
    """`mode: batch`: the provider's limits, and how long a run waits for it."""

    max_requests: Annotated[int, Field(gt=0, le=50_000)] = 50_000
    max_bytes: Annotated[int, Field(gt=0, le=200_000_000)] = 200_000_000
    enqueued_tokens: Positive | None = None
    """The account's limit on prompt tokens in batches that have not ended; null: not known."""
    poll_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    wait_s: float = Field(default=86_400, ge=0, allow_inf_nan=False)
    """How long a run waits for its batches before it pauses (exit 4); 0: submit and leave."""
    patience_s: float = Field(default=60, ge=0, allow_inf_nan=False)
    """How long the provider's list may lack a batch whose creation was not answered."""


class StrongConfig(Tree):
    """The strong judge: any OpenAI-compatible chat API, under a cap."""

    model: str
    base_url: Address | None = None
    api_key_env: Variable | None = "OPENAI_API_KEY"
    """Null: no key is sent."""
    headers: dict[str, Hidden] = Field(default_factory=dict)
    """Sent with every request; `${NAME}` in a value is that environment variable. Part of the
    address, like `query`: no part of the question, and shown nowhere."""
    query: dict[str, Hidden] = Field(default_factory=dict)
    """Behind the address of every request, such as `{api-version: 2024-10-21}`."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """What else is in a request's body: part of the question."""
    mode: Literal["online", "batch", "flex"] = "online"
    """batch: within a day, at half the price; flex: at half the price when there is room."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    concurrency: Positive = 64
    swap: bool = False
    requests_per_minute: Positive = 5000
    tokens_per_minute: Positive = 2_000_000
    max_cost_usd: Usd
    max_cost_usd_per_month: Usd | None = None
    books: Place | None = None
    """URI of a ledger and a journal that several runs share; null: in the run directory."""
    price: PriceConfig | None = None
    rubric: str | None = None
    """Criteria for the strong judge; null uses the judge's."""
    ties: bool = True
    scores: tuple[float, float] | None = None
    """Of a pointwise run: the local judge's range, and no other."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Not sent when null (reasoning models refuse it)."""
    reasoning_effort: str | None = None
    """Sent as it is (`low`, `high`, whatever the model knows); null: not sent."""
    max_output_tokens: Positive = PLAIN_LIMIT
    """Null: 300, or 4000 for a model that reasons: by `reasoning_effort`, or by its name."""
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    samples: Positive = 1
    """How often each question is asked (in each order); the verdict is the majority's."""
    abstain_below: Annotated[float | None, Field(gt=0, le=1)] = None
    """A verdict with a smaller share of the samples is left to a person (review.parquet)."""
    reasks: int = Field(default=1, ge=0, le=5)
    """How often an answer that cannot be used is asked again, each time paid for."""
    tolerate_failed: Share = Decimal("0.05")
    """A larger share of the asked rows without a verdict (and more than 20) is exit 1, not 0."""
    timeout_s: float = Field(default=120, gt=0, le=3_500)
    """For one request; with mode: flex, 900 unless given (OpenAI's advice). Under an hour: what was
    in flight so long ago counts as over, for the month's cap and for who may ask again."""
    give_up_after_s: float = Field(default=1800, gt=0)
    """How long the provider may be down, or another run hold the books, before the run pauses."""

    @model_validator(mode="after")
    def _has_votes_to_count(self) -> StrongConfig:
        if self.abstain_below is not None and self.samples < 2:
            raise ValueError("abstain_below needs votes: set strong.samples to 2 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all alike: set a higher temperature")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fits_mode_and_model(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        # A flex answer may take 900 s (developers.openai.com, "Flex processing", 2026-11).
        given = {"timeout_s": 900.0, **given} if given.get("mode") == "flex" else {**given}
        if given.get("max_output_tokens") is None:
            effort, named = given.get("reasoning_effort"), REASONS.match(str(given.get("model")))
            reasons = named if effort is None else effort != "none"
            given["max_output_tokens"] = REASONING_LIMIT if reasons else PLAIN_LIMIT
        return given

    @field_validator("extra_body")
    @classmethod
    def _is_extra(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(OWN.intersection(value)):
            raise ValueError(f"ray_judge itself says {', '.join(taken)} (see the keys of strong)")
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("NaN and infinity are no JSON") from None
        return value

    @field_validator("headers", "query", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """In YAML a version such as 2024-10-21 is a date."""
        if not isinstance(value, dict):
            return value
        return {k: str(v) if type(v) in (int, date) else v for k, v in value.items()}

    @field_validator("headers", "query")
    @classmethod
    def _can_be_sent(cls, value: dict[str, SecretStr], info: ValidationInfo) -> Any:
        for name, text in value.items():
            if info.field_name == "headers" and not HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if info.field_name == "headers" and name.lower() in OF_THE_BODY:
                raise ValueError(f"ray_judge itself says {name}")
            if "${" in VARIABLE.sub("", text.get_secret_value()):
                raise ValueError(f"{name}: an environment variable is named as in ${{MY_KEY}}")
        return value


def api_key(strong: StrongConfig) -> str:
    """Read the key from the environment. Raises ConfigError when it is missing or unusable."""
    if strong.api_key_env is None:
        return "none"
    key = os.environ.get(strong.api_key_env, "")
    if not key:
        raise ConfigError(
            f"no API key: set the environment variable {strong.api_key_env}, or name another "
            "one in strong.api_key_env (null for a server without keys)"
        )
    if key != "".join(key.split()) or not key.isascii():
        raise ConfigError(f"the API key in {strong.api_key_env} has white space or other text")
    return key


def with_variables(strong: StrongConfig) -> StrongConfig:
    """The same with headers and query filled in from the environment.

    Raises ConfigError, naming the key, for a variable that is not set or cannot be sent.
    """
    filled = {
        group: {name: _filled(f"strong.{group}.{name}", text) for name, text in values.items()}
        for group, values in (("headers", strong.headers), ("query", strong.query))
    }
    return strong.model_copy(update=filled)


def _filled(key: str, value: SecretStr) -> SecretStr:
    def found(named: re.Match[str]) -> str:
        if named[1] not in os.environ:
            raise ConfigError(f"{key}: the environment variable {named[1]} is not set")
        return os.environ[named[1]]

    text = VARIABLE.sub(found, value.get_secret_value())
    if not text or text != text.strip() or not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{key}: its value is empty, or has line ends or other text than ASCII")
    return SecretStr(text)
