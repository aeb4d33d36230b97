"""Write ray_judge/escalation/prices.json anew from the package genai-prices.

    pip install genai-prices && python tools/prices.py      from the project's root

genai-prices knows what many providers ask, by day, by hour, by size of the prompt and by tier. A
cap must hold whatever of it is billed, so where several rates may apply the table has the
dearest: of the hours of a day, of rates that are announced, and of all providers that sell a
model under a name which does not say who is asked. A maker's own name has the maker's price.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint

from ray_judge.escalation.pricing import spellings

Offer = dict[str, Any]
TABLE = Path("ray_judge/escalation/prices.json")
NOW = datetime.now(UTC)
MAKERS = (
    *("openai", "anthropic", "google", "deepseek", "mistral", "x-ai", "cohere", "meta"),
    *("moonshotai", "zai", "minimax", "arcee", "perplexity"),
)
"""They sell what they make; the first one of them has a plain name's price."""
OPEN_WEIGHTS = re.compile(r"gpt-oss")
"""Listed under its maker, who does not sell it: the dearest seller counts."""
PREFIXES = {
    "aws": ("bedrock",),
    "fireworks": ("fireworks_ai",),
    "google": ("gemini", "vertex_ai"),
    "mistral": ("mistralai",),
    "together": ("together_ai",),
    "x-ai": ("xai",),
}
"""What gateways write before a name, besides the provider's own word."""
NO_CHAT = re.compile(
    r"(^|[-/.])(ada|audio|babbage|banana|computer-use|curie|davinci|eleven|embed|image|live"
    r"|moderation|omni|online|realtime|robotics|search|sonar|transcribe|tts|voxtral|whisper"
    r"|turbo-instruct|text-davinci)($|[-/.:_\d])|deep-research"
)
"""Other things than chat, and models that bill each search besides the tokens."""
TUNED = {
    **{f"ft:gpt-3.5-turbo-{version}": ("3", "3", "6") for version in ("0125", "0613", "1106")},
    "ft:gpt-4.1": ("3", "0.75", "12"),
    "ft:gpt-4.1-mini": ("0.8", "0.2", "3.2"),
    "ft:gpt-4.1-nano": ("0.2", "0.05", "0.8"),
    "ft:o4-mini": ("4", "1", "16"),
}
"""Input, cached input, output of OpenAI's fine-tuned models that genai-prices does not know
(developers.openai.com/api/docs/pricing, 2026-11; a batch is half of it)."""


def main() -> None:
    """Write the table: one line for each price, with all names that have it."""
    table = resolve(*collect())
    lines: dict[str, list[str]] = defaultdict(list)
    for name, offer in sorted(table.items()):
        lines[json.dumps(offer, default=plain, separators=(",", ":"))].append(name)
    rows = [
        "[" + json.dumps(names, separators=(",", ":"))[1:-1] + f",{entry}]"
        for entry, names in sorted(lines.items(), key=lambda item: item[1])
    ]
    head = {
        "source": f"genai-prices {version('genai-prices')}, MIT; tools/prices.py",
        "as_of": NOW.date().isoformat(),
        "unit": "USD per million tokens",
    }
    body = json.dumps(head, indent=0)[:-2] + ',\n"prices": [\n' + ",\n".join(rows) + "\n]}\n"
    json.loads(body)
    TABLE.write_text(body)
    print(f"{TABLE}: {len(table)} names, {len(rows)} prices, {len(body) >> 10} KiB")


def collect() -> tuple[dict[str, dict[str, Offer]], dict[str, list[Offer]]]:
    """Give name → provider → offer, and prefix/name → offers."""
    named: dict[str, dict[str, Offer]] = defaultdict(dict)
    prefixed: dict[str, list[Offer]] = defaultdict(list)
    for provider in providers:
        for model in provider.models:
            offer = offer_of(model)
            if offer is None:
                continue
            for name in names_of(model):
                found = provider.find_model(name)
                if found not in (model, None):
                    continue  # genai-prices gives this name to a more special model
                named[name][provider.id] = offer
                for prefix in (provider.id, *PREFIXES.get(provider.id, ())):
                    prefixed[f"{prefix}/{name}"].append(offer)
    for name, (cost_in, cached, cost_out) in TUNED.items():
        rates = {"input": cost_in, "cached_input": cached, "output": cost_out}
        tuned: Offer = {key: Decimal(rate) for key, rate in rates.items()}
        named[name]["openai"] = tuned | {
            "batch_factor": Decimal("0.5"),
            "batch_cache_discount": False,
        }
    return named, prefixed


def resolve(
    named: dict[str, dict[str, Offer]], prefixed: dict[str, list[Offer]]
) -> dict[str, Offer]:
    """Choose each name's offer; leave out names that are found by a shorter spelling."""
    table: dict[str, Offer] = {}
    for name in sorted(named.keys() | prefixed.keys(), key=len):
        sellers = named.get(name, {})
        undated = list(spellings(name))[1]
        maker = next((sellers[maker] for maker in MAKERS if maker in sellers), None)
        if maker is None and undated != name and not named[undated].keys().isdisjoint(MAKERS):
            continue  # a reseller lists the date; the maker has one price for all dates
        if maker is None or OPEN_WEIGHTS.search(name):
            table[name] = dearest([*sellers.values(), *prefixed.get(name, ())])
        else:
            table[name] = maker
        shorter = next((other for other in spellings(name) if other in table and other != name), "")
        if shorter and table[shorter] == table[name]:
            del table[name]
    return table


def names_of(model: ModelInfo) -> set[str]:
    """Every literal name in a model's rule of matching."""

    def literals(clause: Any) -> Iterator[str]:
        for value in vars(clause).values():
            if isinstance(value, list):
                for part in value:
                    yield from literals(part)
            elif "regex" not in vars(clause):
                yield value

    words = (model.id, *literals(model.match))
    names = {next(spellings(word.lower().rstrip("-@/") or "-")) for word in words}
    return {name for name in names if len(name) > 1 and not NO_CHAT.search(name)}


def offer_of(model: ModelInfo) -> Offer | None:
    """The fields of a `Price`; None for what is not billed by tokens of text alone."""
    offers = [offer for price in applicable(model) if (offer := standard(price))]
    if not offers or NO_CHAT.search(model.id.lower()):
        return None
    offer = dearest(offers)
    today = model.get_prices(NOW)
    for name, contexts in {
        "batch_factor": [{"processing": "batch"}],
        "flex_factor": [{"service_tier": "flex"}],
        "priority_factor": [{"service_tier": "priority"}, {"service_tier": "fast"}],
    }.items():
        tiers = [model.get_prices(NOW, context) for context in contexts]
        factors = [factor(tier, today) for tier in tiers if tier != today]
        if factors:
            offer[name] = max(factors)
        if name == "batch_factor" and factors:
            cached = base(tiers[0].cache_read_mtok), base(today.cache_read_mtok)
            offer["batch_cache_discount"] = None not in cached and cached[0] < cached[1]
    return offer


def applicable(model: ModelInfo) -> Iterator[ModelPrice]:
    """Today's prices at any hour, and those that are announced."""
    if isinstance(model.prices, ModelPrice):
        yield model.prices
        return
    for price in reversed(model.prices):
        yield price.prices
        constraint = price.constraint
        started = isinstance(constraint, StartDateConstraint) and constraint.active(NOW)
        if constraint is None or started:
            return


def standard(price: ModelPrice) -> Offer | None:
    """The standard tier; None where a rate of tokens is missing, or requests are billed too."""
    outputs = [base(rate) for rate in (price.output_mtok, price.output_reasoning_mtok)]
    if price.input_mtok is None or outputs[0] is None or price.requests_kcount is not None:
        return None
    offer: Offer = {
        "input": base(price.input_mtok),
        "cached_input": base(price.cache_read_mtok),
        "cache_write": base(price.cache_write_mtok),
        "output": max(rate for rate in outputs if rate is not None),
    }
    tiers = [tier for rate in vars(price).values() for tier in getattr(rate, "tiers", ())]
    if tiers:
        inputs = [price.input_mtok, price.cache_read_mtok, price.cache_write_mtok]
        start = min(tier.start for tier in tiers)
        offer["long_context"] = [start, max(map(growth, inputs)), growth(price.output_mtok)]
    return {key: value for key, value in offer.items() if value is not None}


def dearest(offers: Sequence[Offer]) -> Offer:
    """At least as dear as each of the offers, in every tier and at every size."""
    if all(offer == offers[0] for offer in offers):
        return dict(offers[0])
    merged: Offer = {}
    for name in ("input", "cached_input", "cache_write", "output"):
        if any(name in offer for offer in offers):
            merged[name] = max(offer[name if name in offer else "input"] for offer in offers)
    for name in ("batch_factor", "flex_factor", "priority_factor"):
        if name == "priority_factor" or all(name in offer for offer in offers):
            factors = [offer[name] for offer in offers if name in offer]
            merged |= {name: max(factors)} if factors else {}
    if "batch_factor" in merged:
        merged["batch_cache_discount"] = all(offer["batch_cache_discount"] for offer in offers)
    longs = [offer["long_context"] for offer in offers if "long_context" in offer]
    if longs:
        starts, inputs, outputs = zip(*longs, strict=True)
        merged["long_context"] = [min(starts), max(inputs), max(outputs)]
    return merged


def base(rate: Any) -> Any:
    """The rate of a short prompt."""
    return getattr(rate, "base", rate)


def growth(rate: Any) -> Decimal:
    """By what a rate grows for the longest prompts."""
    tiers = getattr(rate, "tiers", ())
    return max([Decimal(1), *(ratio(tier.price, rate.base) for tier in tiers)])


def factor(tier: ModelPrice, today: ModelPrice) -> Decimal:
    """By what a tier multiplies the standard rates: the largest ratio."""
    pairs = [(tier.input_mtok, today.input_mtok), (tier.output_mtok, today.output_mtok)]
    return max(ratio(base(rate), base(of)) for rate, of in pairs)


def ratio(rate: Any, of: Any) -> Decimal:
    """Four digits, rounded up."""
    return (rate / of).quantize(Decimal("1e-4"), ROUND_CEILING) if of else Decimal(1)


def plain(value: Decimal) -> str:
    """A rate without trailing zeros or an exponent."""
    return f"{value.normalize():f}"


if __name__ == "__main__":
    main()
