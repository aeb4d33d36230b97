"""Who answers: a file of verdicts, a simulated strong judge, or a hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ray_judge.demo.server.config import HashAnswers, LookupAnswers, ServerConfig, StrongAnswers
from ray_judge.demo.server.lookup import LookupIndex, Row
from ray_judge.demo.server.requests import draw, user_text

_FLIPPED = {"A": "B", "B": "A", "tie": "tie"}
_VERDICTS = ("A", "B", "tie")


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge thinks: a verdict over the pair as shown, and a score in [0, 1]."""

    verdict: str
    unit_score: float
    score: float | None = None
    """The score of the file on its own scale, or None."""


class AnswerPolicy(Protocol):
    """Forms an opinion on a request; a fixed function of the request."""

    unknown: int
    """How many requests were not found in the file, and got a hash answer instead."""

    def opinion(self, body: dict[str, Any], canonical: str) -> Opinion:
        """Judge what the body asks about."""
        ...


class HashPolicy:
    """Pseudo-random answers: two in five A, two in five B, one in five a tie."""

    def __init__(self) -> None:
        self.unknown = 0

    def opinion(self, body: dict[str, Any], canonical: str) -> Opinion:
        """The opinion that the digest of the request stands for."""
        number = int(canonical[:12], 16)
        verdict = ("A", "A", "B", "B", "tie")[number % 5]
        return Opinion(verdict, (number // 5 % 1001) / 1000)


class LookupPolicy:
    """Answers with the verdict of the row whose texts the prompt holds."""

    def __init__(self, settings: LookupAnswers) -> None:
        self._index = LookupIndex(settings)
        self._fallback = HashPolicy()
        self._strong = settings if isinstance(settings, StrongAnswers) else None
        self.unknown = 0

    def opinion(self, body: dict[str, Any], canonical: str) -> Opinion:
        """The row's verdict in the order shown; a hash answer if no row fits."""
        match = self._index.find(user_text(body))
        if match is None:
            self.unknown += 1
            return self._fallback.opinion(body, canonical)
        row = match.row
        verdict = row.verdict or "tie"
        score = row.score
        if self._strong is not None:
            verdict = self._told(row, verdict, self._strong)
        if match.swapped:
            verdict = _FLIPPED[verdict]
        unit = score if score is not None else {"A": 1.0, "tie": 0.5, "B": 0.0}[verdict]
        return Opinion(verdict, min(1.0, max(0.0, unit)), score)

    @staticmethod
    def _told(row: Row, truth: str, strong: StrongAnswers) -> str:
        """The truth, or another verdict for the share of questions the judge gets wrong."""
        key = row.question_key()
        if draw(strong.seed, "right", key) < strong.accuracy:
            return truth
        wrong = [verdict for verdict in _VERDICTS if verdict != truth]
        return wrong[int(draw(strong.seed, "wrong", key) * len(wrong))]


def make_policy(config: ServerConfig) -> AnswerPolicy:
    """The policy of the configuration; reads the lookup file."""
    if isinstance(config.answers, HashAnswers):
        return HashPolicy()
    return LookupPolicy(config.answers)
