"""The cap at every value: never a cent more, and what can be spent is spent."""

from decimal import Decimal
from pathlib import Path

import pytest

from ray_judge.escalation.questions import QuestionMaker
from ray_judge.records import Example
from tests.provider import RunningServer

from .one_process import ask, configuration

STEPS = 20
SAMPLE = range(0, STEPS, 4)
QUESTIONS = 60
TEXTS = [f"Write down the number {n}. " + "Why? " * (n % 9) for n in range(QUESTIONS)]


@pytest.fixture(scope="module")
def price_of_all(provider: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Decimal:
    server, folder = provider, tmp_path_factory.mktemp("all")
    server.clean()
    phase = ask(configuration(folder, server, "5"), server, TEXTS)
    assert phase.outcomes == {"resolved": QUESTIONS}
    return Decimal(server.stats()["total_usd"])


def long_unless_sampled(step: int) -> object:
    return step if step in SAMPLE else pytest.param(step, marks=pytest.mark.long)


@pytest.mark.parametrize("step", [*map(long_unless_sampled, range(STEPS))])
def test_the_cap_at_every_value(
    tmp_path: Path, server: RunningServer, price_of_all: Decimal, step: int
) -> None:
    """From nothing to more than enough; the provider's own total is the judge."""
    cap = (price_of_all * step / (STEPS - 3)).quantize(Decimal("1e-9"))
    config = configuration(tmp_path, server, cap)
    phase = ask(config, server, TEXTS, askers=4)
    assert phase.error is None
    stats, resolved = server.stats(), phase.outcomes["resolved"]
    total = Decimal(stats["total_usd"])
    assert total <= cap
    assert phase.outcomes["denied_budget"] == QUESTIONS - resolved
    assert (stats["billed"], stats["billed_twice"]) == (resolved, 0)
    if step:
        assert phase.state["spent_usd"] == total and phase.state["open_usd"] == 0
    # Promised is: within one lease per asker. It is within one question at its dearest.
    maker = QuestionMaker(config)
    asked = [maker.of_example(Example(text, ("yes", "no")))[0] for text in TEXTS]
    assert resolved == QUESTIONS or cap - total < max(q.max_cost_usd for q in asked)
