"""Prices and costs: exact, never below the bill."""

from __future__ import annotations

import json
from decimal import Decimal as D
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
        ("GPT-4.1-2025-04-14", "gpt-4.1"), ("gpt-4-1106-preview", "gpt-4-turbo"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("azure/gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("some-proxy/ft:gpt-4.1-mini-2025-04-14:acme::abc", "ft:gpt-4.1-mini"),
        ("ft:gpt-4o-2024-08-06:acme:judge:abc", "ft:gpt-4o"),
    ],
)  # fmt: skip
def test_a_model_has_many_names(name: str, listed: str) -> None:
    assert price_of(name) == price_of(listed)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("gpt-4.1", "2 0.5 8"),
        ("gpt-4o-2024-05-13", "5 5 15"),  # its family became cheaper
        ("ft:gpt-4.1:acme::abc", "3 0.75 12"),  # dearer than what it was tuned from
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


def test_an_override_and_what_is_none() -> None:
    given = {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": "0.3", "batch_factor": D("0.5")}
    price = price_of("my-llama", given)
    assert (price.input, price.cached_input, price.output) == (D("0.1"), D("0.1"), D("0.3"))
    assert price.batch_factor == D("0.5")
    for bad in (-1, float("nan"), float("inf"), "cheap", None):
        with pytest.raises(ValidationError):
            PriceConfig.model_validate({"input_usd_per_mtok": bad, "output_usd_per_mtok": 1})


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        ("gpt-4.1", Usage(1_000_000, 0), "2"),
        ("gpt-4.1", Usage(1000, 100, cached_input_tokens=400), "0.0022"),
        ("gpt-4.1", Usage(1000, 100, reasoning_tokens=90), "0.0028"),
        ("gpt-4.1", Usage(1000, 100, tier="priority"), "0.0049"),
        ("gpt-4.1", Usage(1000, 100, tier="batch"), "0.0014"),
        ("gpt-5", Usage(1000, 100, tier="flex"), "0.001125"),
        # The batch table of this family lists no price for cached input.
        ("gpt-4.1", Usage(1000, 0, 1000, tier="batch"), "0.001"),
        ("gpt-5", Usage(1000, 0, 1000, tier="batch"), "0.0000625"),
        ("gpt-6-sol", Usage(1000, 0, cache_write_tokens=1000), "0.0025"),
        ("gpt-6-sol", Usage(272_000, 1000), "0.554"),
        ("gpt-6-sol", Usage(272_001, 1000), "1.103004"),  # a long context
        ("tiny", Usage(1, 0), "0.000000001"),  # rounded up to a nano-dollar
        ("tiny", Usage(0, 0), "0"),
    ],
)
def test_costs_by_hand(model: str, usage: Usage, usd: str) -> None:
    tiny = {"input_usd_per_mtok": "0.0001", "output_usd_per_mtok": 0}
    assert cost(price_of(model, tiny if model == "tiny" else None), usage) == D(usd)


def test_flex_may_be_served_at_the_standard_price_but_a_batch_never() -> None:
    sizes = {"input_tokens": 1000, "output_tokens": 100}
    tiers = ("flex", "default", "batch")
    flex, full, batch = (max_cost(price_of("gpt-5"), **sizes, tier=tier) for tier in tiers)
    assert flex == full == batch * 2
    sizes = {"input_tokens": 272_001, "output_tokens": 1000}
    assert max_cost(price_of("gpt-6-sol"), **sizes, tier="default") == D("1.375005")


MODELS = ["gpt-4.1", "gpt-5", "gpt-6-sol", "o3", "gpt-4", "claude-sonnet-4-5", "qwen/qwen3-max"]
TOKENS = st.integers(0, 400_000)


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 1000))
def test_the_lease_covers_every_bill(
    model: str, tokens: int, cached: int, written: int, output: int, slack: int
) -> None:
    price = price_of(model)
    bounds = {"input_tokens": tokens + slack, "output_tokens": output + slack}
    for pair in ("default default", "flex flex", "flex default", "batch batch"):
        asked, served = pair.split()
        usage = Usage(tokens, output, min(cached, tokens), min(written, tokens), 0, tier=served)
        assert cost(price, usage) <= max_cost(price, **bounds, tier=asked)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_bound_is_at_least_the_bytes(texts: list[str]) -> None:
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    messages = [{"role": "user", "content": text} for text in texts]
    assert input_token_bound(messages) > size + 4 * len(texts)
    assert input_token_bound(messages, {"type": "json_schema"}) > input_token_bound(messages)
    assert input_token_estimate(messages) <= input_token_bound(messages)
