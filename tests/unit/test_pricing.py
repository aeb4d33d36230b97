"""Prices and costs: exact, never below the bill."""

from __future__ import annotations

from decimal import Decimal as D
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_judge.errors import ConfigError
from ray_judge.escalation.pricing import (
    cost,
    input_token_bound,
    input_token_estimate,
    max_cost,
    price_of,
)
from ray_judge.records import Usage

pytestmark = pytest.mark.timeout(60)


def test_known_prices_have_source_and_date() -> None:
    price = price_of("gpt-4.1")
    assert (price.input, price.cached_input, price.output) == (D(2), D("0.5"), D(8))
    assert price.source.startswith("https://")
    assert price.as_of.startswith("20")


@pytest.mark.parametrize(
    ("snapshot", "family"),
    [
        ("gpt-4.1-2025-04-14", "gpt-4.1"),
        ("gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4-1106-preview", "gpt-4-turbo"),
        ("gpt-5-2025-08-07", "gpt-5"),
    ],
)
def test_snapshots_have_their_familys_price(snapshot: str, family: str) -> None:
    assert price_of(snapshot) == price_of(family)


def test_a_snapshot_that_is_listed_has_its_own_price() -> None:
    assert price_of("gpt-4o-2024-05-13").input == D(5)
    assert price_of("gpt-4o-2024-08-06").input == D("2.5")


@pytest.mark.parametrize("model", ["my-llama", "gpt-4.1-turbo", "gpt-99", "", "gpt-4.1-2025"])
def test_an_unknown_model_names_the_way_out(model: str) -> None:
    with pytest.raises(ConfigError, match=r"strong\.price"):
        price_of(model)


def test_override() -> None:
    price = price_of("my-llama", {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": "0.3"})
    assert (price.input, price.cached_input, price.output) == (D("0.1"), D("0.1"), D("0.3"))


@pytest.mark.parametrize(
    "override",
    [
        {},
        {"input_usd_per_mtok": 1},
        {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1},
        {"input_usd_per_mtok": float("nan"), "output_usd_per_mtok": 1},
        {"input_usd_per_mtok": float("inf"), "output_usd_per_mtok": 1},
        {"input_usd_per_mtok": "cheap", "output_usd_per_mtok": 1},
        {"input_usd_per_mtok": True, "output_usd_per_mtok": 1},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "speed": 1},
    ],
)
def test_an_override_that_is_no_price_is_refused(override: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        price_of("m", override)


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


MODELS = ["gpt-4.1", "gpt-4o-mini", "gpt-5", "gpt-6-sol", "o3", "gpt-4"]
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
