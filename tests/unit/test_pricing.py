"""Prices and costs: exact, never below the bill."""

from __future__ import annotations

import json
from decimal import Decimal as D
from fractions import Fraction
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_judge.config.strong import PriceConfig
from ray_judge.errors import ConfigError
from ray_judge.escalation.pricing import (
    cost,
    input_token_bound,
    input_token_estimate,
    max_cost,
    price_of,
    price_table,
)
from ray_judge.records import Usage

pytestmark = pytest.mark.timeout(60)


def test_the_table_is_dated_and_every_line_is_a_price() -> None:
    head = json.loads(resources.files("ray_judge.escalation").joinpath("prices.json").read_text())
    assert head["source"].startswith("genai-prices ")
    assert head["as_of"] >= "2026-11-28"
    assert len(price_table()) > 2500
    for name in price_table():
        price = price_of(name)
        assert price.output >= 0
        assert 0 <= (price.batch_factor or 0) <= 1
        assert price.long_context is None or price.long_context.input_factor >= 1


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("GPT-4.1-2025-04-14", "gpt-4.1"),
        ("gpt-4-1106-preview", "gpt-4-turbo"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("vertex_ai/gemini-2.5-flash", "gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("azure/gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("some-proxy/ft:gpt-4.1-mini-2025-04-14:acme::abc", "ft:gpt-4.1-mini"),
        ("ft:gpt-4o-2024-08-06:acme:judge:abc", "ft:gpt-4o"),
    ],
)
def test_a_model_has_many_names(name: str, listed: str) -> None:
    assert price_of(name) == price_of(listed)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("gpt-4.1", "2 0.5 8"),
        ("openrouter/openai/gpt-4.1", "2 0.5 8"),
        ("gpt-4o-2024-05-13", "5 5 15"),  # its family became cheaper
        ("gpt-4o-2024-08-06", "2.5 1.25 10"),
        ("ft:gpt-4.1:acme::abc", "3 0.75 12"),  # dearer than what it was tuned from
        ("claude-sonnet-4-5", "3 0.3 15"),
        ("deepseek-chat", "0.27 0.07 1.1"),  # by day; less at night
        ("command-r", "0.15 0.15 0.6"),
        ("cohere/command-r", "0.5 0.5 1.5"),  # a gateway's name, and that one is dearer
        ("groq/openai/gpt-oss-120b", "0.15 0.075 0.6"),
        ("gpt-oss-120b", "0.35 0.35 0.75"),  # the dearest of many sellers
    ],
)
def test_rates(model: str, rates: str) -> None:
    price = price_of(model)
    assert [price.input, price.cached_input, price.output] == [D(rate) for rate in rates.split()]


@pytest.mark.parametrize(
    ("model", "nearest"),
    [("my-llama", ""), ("gpt-4.1-turbo", "gpt-4-turbo"), ("gpt-99", "gpt-5"), ("", ""),
     ("gpt-4.1-2025", "gpt-4.1"), ("ft:gpt-5:acme::abc", ""),
     ("sonar", "")],
)  # fmt: skip
def test_an_unknown_model_names_the_way_out(model: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"strong\.price.*{nearest}"):
        price_of(model)


def test_override() -> None:
    price = price_of("my-llama", {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": "0.3"})
    assert (price.input, price.cached_input, price.output) == (D("0.1"), D("0.1"), D("0.3"))
    assert price_of("m", {"input": 1, "output": 1, "batch_factor": D("0.5")}).batch_factor == D(
        ".5"
    )


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "cheap", None])
def test_an_override_that_is_no_price_is_refused(bad: object) -> None:
    with pytest.raises(ValidationError):
        PriceConfig.model_validate({"input_usd_per_mtok": bad, "output_usd_per_mtok": 1})


def test_costs_by_hand() -> None:
    price = price_of("gpt-4.1")
    assert cost(price, Usage(1_000_000, 0)) == D(2)
    assert cost(price, Usage(1000, 100, cached_input_tokens=400)) == D("0.0022")
    assert cost(price, Usage(1000, 100, reasoning_tokens=90)) == D("0.0028")
    assert cost(price, Usage(1000, 100, tier="priority")) == D("0.0049")
    assert cost(price, Usage(1000, 100, tier="batch")) == D("0.0014")
    assert cost(price_of("gpt-5"), Usage(1000, 100, tier="flex")) == D("0.001125")
    # The batch table of this family lists no price for cached input.
    assert cost(price, Usage(1000, 0, cached_input_tokens=1000, tier="batch")) == D("0.001")
    assert cost(price_of("gpt-5"), Usage(1000, 0, 1000, tier="batch")) == D("0.0000625")


def test_cache_writes_and_long_context() -> None:
    price = price_of("gpt-6-sol")
    assert cost(price, Usage(1000, 0, cache_write_tokens=1000)) == D("0.0025")
    assert cost(price, Usage(272_000, 1000)) == D("0.554")
    assert cost(price, Usage(272_001, 1000)) == D("1.103004")
    assert max_cost(price, input_tokens=272_001, output_tokens=1000, tier="default") == D(
        "1.375005"
    )


def test_rounding_is_up_to_a_nano_dollar() -> None:
    price = price_of("m", {"input_usd_per_mtok": "0.0001", "output_usd_per_mtok": 0})
    assert cost(price, Usage(1, 0)) == D("0.000000001")
    assert cost(price, Usage(0, 0)) == 0


def test_flex_may_be_served_at_the_standard_price_but_a_batch_never() -> None:
    price = price_of("gpt-5")
    sizes = {"input_tokens": 1000, "output_tokens": 100}
    assert max_cost(price, **sizes, tier="flex") == max_cost(price, **sizes, tier="default")
    assert max_cost(price, **sizes, tier="batch") * 2 == max_cost(price, **sizes, tier="default")


MODELS = ["gpt-4.1", "gpt-5", "gpt-6-sol", "o3", "gpt-4", "claude-sonnet-4-5", "qwen/qwen3-max"]
TOKENS = st.integers(0, 400_000)


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 1000))
def test_the_lease_covers_every_bill(
    model: str, tokens: int, cached: int, written: int, output: int, slack: int
) -> None:
    price = price_of(model)
    for asked, served in (
        ("default", "default"),
        ("flex", "flex"),
        ("flex", "default"),
        ("batch", "batch"),
    ):
        usage = Usage(tokens, output, min(cached, tokens), min(written, tokens), 0, tier=served)
        most = max_cost(
            price, input_tokens=tokens + slack, output_tokens=output + slack, tier=asked
        )
        assert cost(price, usage) <= most


@given(TOKENS, TOKENS, TOKENS)
def test_cost_is_exact_and_then_up(tokens: int, cached: int, output: int) -> None:
    price = price_of("gpt-4o-mini")
    cached = min(cached, tokens)
    exact = (
        Fraction(price.input) * (tokens - cached)
        + Fraction(price.cached_input) * cached
        + Fraction(price.output) * output
    ) / 10**6
    got = Fraction(cost(price, Usage(tokens, output, cached)))
    assert exact <= got < exact + Fraction(1, 10**9)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_bound_is_at_least_the_bytes(texts: list[str]) -> None:
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:  # lone surrogates: three bytes each when forced
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    messages = [{"role": "user", "content": text} for text in texts]
    assert input_token_bound(messages) > size + 4 * len(texts)
    assert input_token_bound(messages, {"type": "json_schema"}) > input_token_bound(messages)
    assert input_token_estimate(messages) <= input_token_bound(messages)
