"""What an answer costs: a dated table of prices as data, and exact arithmetic on it.

Prices are `Decimal` US dollars per million tokens (Mtok). Costs are exact and then rounded *up*
to a nano-dollar, so that no sum of them is ever below the bill. `tools/prices.py` writes the
table, `prices.json`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from ray_judge.errors import ConfigError
from ray_judge.escalation.books.accounts import to_usd
from ray_judge.records import Usage

_OWN = re.compile(r"(^|/)(ft:[^:/]+):.*|-v\d+:\d+$")
"""What follows a model's name: whose tuning it is, or Bedrock's version."""
_DATE = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8})$")
_MESSAGE_TOKENS = 16
"""More than any chat format adds around one message (role, separators, name)."""
_REQUEST_TOKENS = 32
"""More than any chat format adds to a request as a whole."""


class LongContext(NamedTuple):
    """Above `threshold_tokens` of input, the whole request costs more by these factors."""

    threshold_tokens: int
    input_factor: Decimal
    output_factor: Decimal


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, and what multiplies them, where the provider sells that tier."""

    input: Decimal
    cached_input: Decimal
    output: Decimal
    cache_write: Decimal | None = None  # None: writing to the prompt cache costs nothing extra
    batch_factor: Decimal | None = None
    flex_factor: Decimal | None = None
    priority_factor: Decimal | None = None
    batch_cache_discount: bool = True  # whether cached input is discounted in batches too
    long_context: LongContext | None = None


def price_of(model: str, override: Mapping[str, Any] | None = None) -> Price:
    """The price of a model; `override` (the config's `strong.price`) wins over the table.

    A dated name (`gpt-4.1-2025-04-14`) has its family's price unless it is listed itself, a
    gateway's name (`openai/gpt-4.1`) the gateway's, else its maker's. A fine-tuned model (`ft:…`)
    costs more than what it was tuned from, and is listed by itself. Raises `ConfigError` for an
    unknown model.
    """
    if override is not None:
        rates = {key.removesuffix("_usd_per_mtok"): str(rate) for key, rate in override.items()}
        return _price(rates)
    table = price_table()
    for name in spellings(model):
        if name in table:
            return _price(table[name])
    close = difflib.get_close_matches(model.lower(), table, n=3)
    raise ConfigError(
        "no price is known for this model, and a cap needs one: set strong.price to "
        "{input_usd_per_mtok: ..., cached_input_usd_per_mtok: ..., output_usd_per_mtok: ...}"
        + (f", or did you mean {' or '.join(close)}?" if close else ""),
        model=model,
    )


def spellings(model: str) -> Iterator[str]:
    """Give the names under which a model may be listed, the most exact first."""
    name = _OWN.sub(r"\1\2", model.lower())
    while name:
        yield name
        yield _DATE.sub("", name)
        name = name.partition("/")[2]


def cost(price: Price, usage: Usage) -> Decimal:
    """USD that an answer costs, rounded up to 1e-9. The tier that `usage` names is billed.

    Output includes reasoning tokens already. A tier without a known factor is billed at the
    standard price, `priority` at its own.
    """
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    written = min(usage.cache_write_tokens, usage.input_tokens - cached)
    discounted = price.batch_cache_discount or usage.tier != "batch"
    micros = (
        Fraction(price.input) * (usage.input_tokens - cached - written)
        + Fraction(price.cached_input if discounted else price.input) * cached
        + Fraction(price.input if price.cache_write is None else price.cache_write) * written
    )
    factor, output_factor = _factors(price, usage.input_tokens, usage.tier)
    return _usd(micros * factor + Fraction(price.output) * usage.output_tokens * output_factor)


def cache_saving(price: Price, tier: str, read: int, written: int) -> Decimal:
    """USD that a prompt cache saved on so many input tokens in a tier; below 0: what it cost."""
    discounted = price.batch_cache_discount or tier != "batch"
    saved = Fraction(price.input - price.cached_input) * read if discounted else Fraction(0)
    extra = Fraction((price.cache_write or price.input) - price.input) * written
    return _usd((saved - extra) * _factors(price, 0, tier)[0])


def max_cost(
    price: Price, *, input_tokens: int, output_tokens: int, tiers: Collection[str]
) -> Decimal:
    """The most that a request can cost in USD: what a lease must hold for it.

    `input_tokens` and `output_tokens` are upper bounds. All of the input counts as what is dearest,
    which may be what the prompt cache gave, or what was written to it; so does the dearest of the
    tiers in which the request may be served.
    """
    dearest = Fraction(max(price.input, price.cached_input, price.cache_write or 0))
    totals = []
    for tier in tiers:
        factor, output_factor = _factors(price, input_tokens, tier)
        output = Fraction(price.output) * output_tokens
        totals.append(dearest * input_tokens * factor + output * output_factor)
    return _usd(max(totals))


def input_token_bound(messages: Sequence[Mapping[str, Any]], extra: Any = None) -> int:
    """More input tokens than any byte-level BPE tokenizer can make of these messages.

    Every token of such a tokenizer stands for at least one byte of UTF-8; the margins cover the
    special tokens of the chat format. `extra` is anything else that the provider puts in front
    of the model, such as a response schema.
    """
    size = sum(_bytes(message) + _MESSAGE_TOKENS for message in messages)
    return size + (0 if extra is None else _bytes(extra)) + _REQUEST_TOKENS


def input_token_estimate(messages: Sequence[Mapping[str, Any]], extra: Any = None) -> int:
    """About as many tokens as the provider will count: for rate limits and plans, not for the cap.

    Four bytes of text a token, as English comes to, three tokens around each message and three
    before the answer (OpenAI cookbook, "How to count tokens with tiktoken"); a response schema
    counts as its compact JSON.
    """
    schema = "" if extra is None else json.dumps(extra, separators=(",", ":"))
    texts = [str(message["content"]) for message in messages]
    return sum(text_token_estimate(text) + 3 for text in texts) + 3 + text_token_estimate(schema)


def text_token_estimate(text: str) -> int:
    """About as many tokens as a text comes to: four bytes each."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def _bytes(value: Any) -> int:
    """Bytes of all text in a message or schema, keys included."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(_bytes(key) + _bytes(item) + 4 for key, item in value.items())
    if isinstance(value, Sequence):
        return sum(_bytes(item) + 2 for item in value)
    return len(json.dumps(value))


def _factors(price: Price, input_tokens: int, tier: str) -> tuple[Fraction, Fraction]:
    """What multiplies the prices of input and output in a request of this size in this tier."""
    factors = {
        "batch": price.batch_factor,
        "flex": price.flex_factor,
        "priority": price.priority_factor,
        "fast": price.priority_factor,
    }
    factor, long = Fraction(factors.get(tier) or 1), price.long_context
    if long is None or input_tokens <= long.threshold_tokens:
        return factor, factor
    return factor * Fraction(long.input_factor), factor * Fraction(long.output_factor)


def _usd(micros: Fraction) -> Decimal:
    return to_usd(math.ceil(micros * 1000))


@cache
def price_table() -> dict[str, Mapping[str, Any]]:
    """The shipped table: every listed name, with the fields of its `Price` as JSON has them."""
    text = resources.files("ray_judge.escalation").joinpath("prices.json").read_text("utf-8")
    return {name: entry for *names, entry in json.loads(text)["prices"] for name in names}


def _price(entry: Mapping[str, Any]) -> Price:
    numbers = {key: Decimal(text) for key, text in entry.items() if isinstance(text, str)}
    fields: dict[str, Any] = {**entry, **numbers}
    fields.setdefault("cached_input", fields["input"])
    if "long_context" in fields:
        threshold, *factors = fields["long_context"]
        fields["long_context"] = LongContext(threshold, *map(Decimal, factors))
    return Price(**fields)
