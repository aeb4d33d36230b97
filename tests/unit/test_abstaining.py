"""`strong.abstain_below`: what it may be, and how sure the answers are that come with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import differences, parse
from ray_judge.errors import EscalationError
from ray_judge.records import Outcome
from tests.provider import RunningServer

from .test_asker import Till, ask_all
from .test_config import document, refusal

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("value", [0, -0.1, 1.01, ".nan", "often"])
def test_abstain_below_is_a_probability(value: Any) -> None:
    value = float(value[1:]) if value == ".nan" else value
    assert "strong.abstain_below" in refusal(strong__abstain_below=value)
    if isinstance(value, float | int):
        assert "a probability above 0 and at most 1" in refusal(strong__abstain_below=value)


def test_a_run_without_abstain_below_is_described_as_before_there_was_one() -> None:
    """Its digest is part of every draw: audits of runs under way must not be drawn anew."""
    plain, unsure = parse(document()), parse(document(strong__abstain_below=1))
    assert "abstain_below" not in plain.document()["strong"]
    assert parse(document(strong__abstain_below=None)).digest() == plain.digest()
    assert plain.digest() != unsure.digest()
    assert differences(plain.document(), unsure.document()) == ["strong.abstain_below: None → 1.0"]
    assert parse(unsure.document()) == unsure


@pytest.mark.parametrize("tokens", ["words", "straddling", "characters"])
def test_answers_come_with_their_probability(
    server: RunningServer, tmp_path: Path, tokens: str
) -> None:
    certainty = {"sure": [0.9, 0.9], "unsure": [0.4, 0.4], "unsure_containing": "hard"}
    server.configure(certainty={**certainty, "tokens": tokens})
    night = ask_all(server, Till(), tmp_path, ["hard one", "easy one"], abstain_below=0.5)
    assert night.outcomes == [Outcome.RESOLVED] * 2  # who abstains is decided with the row
    probs = sorted(answer.verdict_prob or 0.0 for answer in night.journal.rows)
    assert probs == pytest.approx([0.4, 0.9], abs=1e-3)
    for answer in night.journal.rows:
        assert answer.tie_prob is not None and answer.verdict_prob is not None
        if answer.verdict == "tie":
            assert answer.tie_prob == answer.verdict_prob
        else:
            assert answer.tie_prob + answer.verdict_prob <= 1


@pytest.mark.parametrize("how", ["fault", "setting", "words"])
def test_answers_without_log_probabilities_are_answers(
    server: RunningServer, tmp_path: Path, how: str
) -> None:
    """In words the same is asked, and told, as under a schema."""
    server.configure(
        faults=[{"kind": "no_logprobs", "max_times": 9}] if how == "fault" else [],
        certainty={"given": how != "setting", "sure": [0.9, 0.9]},
        refuse_response_format=how == "words",
    )
    night = ask_all(server, Till(), tmp_path, ["q"], abstain_below=0.5)
    assert night.outcomes == [Outcome.RESOLVED]
    (answer,) = night.journal.answers.values()
    wanted = pytest.approx(0.9, abs=1e-3) if how == "words" else None
    assert answer.verdict_prob == wanted and answer.verdict is not None


@pytest.mark.parametrize("status", [400, 403])
def test_a_model_that_cannot_be_asked_for_them_ends_the_run_unbilled(
    server: RunningServer, tmp_path: Path, status: int
) -> None:
    """Some models refuse the parameter by its name, others with a 403 that names nothing."""
    if status == 400:
        server.configure(refuse_parameters=["logprobs"])
    else:
        server.configure(faults=[{"kind": "permission_denied", "max_times": 9}])
    night = ask_all(server, Till(), tmp_path, ["q"], abstain_below=0.5)
    (error,) = night.outcomes
    assert isinstance(error, EscalationError)
    assert f"HTTP {status}" in str(error) and "strong.abstain_below" in str(error)
    assert server.stats()["billed"] == 0 and not night.journal.rows
