"""Strong models that reason, on defaults: verdicts, the plan's dollars, and what a cache saved."""

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_judge.escalation.pricing import cost, price_of
from ray_judge.records import Usage
from tests.fault.plain import Said, completion, error, plain_server

from .conftest import describe, pairs


class Reasoner:
    """Thinks for 200 to 2,000 tokens, refuses what such models refuse, and caches beginnings."""

    def __init__(self) -> None:
        self.usages: list[Usage] = []
        self.seen: set[str] = set()

    def reply(self, body: dict[str, Any], number: int) -> Said:
        for name in ("temperature", "max_tokens"):
            if name in body:
                said = f"Unsupported parameter: '{name}'"
                return error(400, said, param=name, code="unsupported_parameter")
        begin, rest = (message["content"] for message in body["messages"])
        tokens, cached = (len(begin) + len(rest)) * 2 // 7, len(begin) // 5
        thought = random.Random(rest).randint(200, 2000)
        written = min(thought + 9, body["max_completion_tokens"])
        usage = Usage(tokens, written, cached if begin in self.seen else 0)
        self.seen.add(begin)
        self.usages.append(usage)
        whole = written == thought + 9
        document = completion('{"verdict": "A"}' if whole else "")
        document["choices"][0]["finish_reason"] = "stop" if whole else "length"
        document["usage"] = {
            "prompt_tokens": tokens, "completion_tokens": written,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": min(thought, written)},
        }  # fmt: skip
        return Said(document)


@pytest.mark.parametrize(
    "strong", [{"model": "gpt-5-mini"}, {"model": "deepseek-v4-pro", "reasoning_effort": "high"}]
)
def test_a_model_that_reasons_on_defaults(
    tmp_path: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch, strong: dict[str, str]
) -> None:
    """All verdicts; a plan says that nothing is measured, and after the run what it costs."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-plain")
    judge = Reasoner()
    with plain_server(judge.reply) as server:
        run = describe(
            tmp_path, server, pairs(400), **{f"strong__{k}": v for k, v in strong.items()}
        )  # type: ignore[arg-type]
        before = json.loads(run.command("plan", "--json"))
        assert "That is not measured" in run.command("plan") and not server.requests
        assert run.score() == 0, run.said
        assert run.outcomes() == {"not_needed": 200, "resolved": 200}
        wanted = {"model", "messages", "response_format", "max_completion_tokens"}
        assert {frozenset(body) for body in server.requests} == {
            frozenset(wanted | strong.keys() - {"model"})
        }
        price = price_of(strong["model"])
        spent = sum((cost(price, usage) for usage in judge.usages), Decimal(0))
        assert run.check_costs() == spent
        uncached = [Usage(usage.input_tokens, usage.output_tokens) for usage in judge.usages]
        saved = sum((cost(price, usage) for usage in uncached), Decimal(0)) - spent
        summary = run.summary()
        assert (
            summary["cached_input_tokens"] == sum(u.cached_input_tokens for u in judge.usages) > 0
        )
        assert summary["cache_saved_usd"] == pytest.approx(float(saved), abs=1e-6)
        assert "saved by it" in (run.output / "report.html").read_text()

        (line,) = (one for one in before["policies"] if one["policy"] == "0.5")
        assert line["dollars"]["online"] < spent / 5 and line["most_dollars"] > spent
        after = json.loads(run.command("plan", "--json"))
        (line,) = (one for one in after["policies"] if one["policy"] == "0.5")
        assert after["answers_on_file"] == 200
        assert line["dollars"]["online"] == line["most_dollars"]
        assert line["dollars"]["online"] == pytest.approx(float(spent), rel=0.1)
        assert "200 answers on file" in run.command("plan")
