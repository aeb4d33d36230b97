"""The cap at every value: never a cent more, and what can be spent is spent."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from ray_judge.escalation.pricing import input_token_bound, max_cost, price_of
from ray_judge.escalation.question import StrongQuestion
from ray_judge.records import Example
from tests.provider import RunningServer, running_server

from .one_process import ask, clean, configuration

pytestmark = pytest.mark.timeout(120)
STEPS = 20
QUESTIONS = 60
ACTORS = 4
TEXTS = [f"Write down the number {n}. " + "Why? " * (n % 9) for n in range(QUESTIONS)]


@pytest.fixture(scope="module")
def process() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def price_of_all(process: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Decimal:
    """What all questions cost when nobody counts."""
    server, folder = clean(process), tmp_path_factory.mktemp("all")
    assert ask(configuration(server, "5"), folder, server, TEXTS).outcomes == {
        "resolved": QUESTIONS
    }
    return Decimal(server.stats()["total_usd"])


def dearest(server: RunningServer) -> Decimal:
    """The most that one question can cost: what its slot in a lease holds."""
    config = configuration(server, "1")
    question = StrongQuestion(config)
    bodies = [question.body(Example(text, ("yes", "no"))) for text in TEXTS]
    return max(
        max_cost(
            price_of("gpt-4.1"),
            input_tokens=input_token_bound(body["messages"], body["response_format"]),
            output_tokens=config.strong.max_output_tokens,
            tier="default",
        )
        for body in bodies
    )


@pytest.mark.parametrize("step", range(STEPS))
def test_the_cap_at_every_value(
    tmp_path: Path, process: RunningServer, price_of_all: Decimal, step: int
) -> None:
    """From nothing to more than enough; the provider's own total is the judge."""
    server = clean(process)
    cap = (price_of_all * step / (STEPS - 3)).quantize(Decimal("1e-9"))
    night = ask(configuration(server, cap), tmp_path, server, TEXTS, actors=ACTORS)
    assert not night.errors
    stats = server.stats()
    total, one = Decimal(stats["total_usd"]), dearest(server)
    resolved = night.outcomes["resolved"]
    assert total <= cap
    assert sum(night.outcomes.values()) == QUESTIONS
    assert (stats["billed"], stats["billed_twice"]) == (resolved, 0)
    assert night.state["spent_usd"] == total and night.state["open_usd"] == 0
    # Promised is: within one lease per actor. It is within one question at its dearest.
    assert resolved == QUESTIONS or cap - total < one
