"""The strong judge's question: what is sent, its canonical form, and how its answer is read. Pure.

The canonical request is the body under the strict schema (OpenAI "Structured outputs",
platform.openai.com/docs/guides/structured-outputs, 2026-11): model, messages, response format and
sampling parameters, as JSON with sorted keys. Its SHA-256 is the key of the journal. Where a
server refuses `response_format`, the same question is asked in words under the same key.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.escalation.verdict_prob import SAID, Numbers, Reading, Words, verdict_probs
from ray_judge.judging.formats.generic import PAIRWISE_SYSTEM, POINTWISE_SYSTEM, describe
from ray_judge.records import Answer, Example, Verdict

TOP_LOGPROBS = 20
"""Likeliest tokens listed per position: the most that the API gives (openai-python 3,
`CompletionCreateParams.top_logprobs`)."""
FENCE = re.compile(r"\A\s*```(?:json)?\s*(\{.*\})\s*```\s*\Z", re.DOTALL)


class Unparseable(Exception):
    """The answer's text is not a verdict; the message says why. Never crosses a process."""


class StrongQuestion:
    """Renders examples into chat requests for one run's strong judge, and reads the answers."""

    def __init__(self, config: RunConfig) -> None:
        """Fix everything that the questions of a run have in common."""
        strong = config.strong
        self._strong = strong
        self._pairwise = config.task == "pairwise"
        self._rubric = config.rubric()
        self._low, self._high = strong.scores
        if self._pairwise:
            self._verdicts = ["A", "B", "tie"] if strong.ties else ["A", "B"]
            self._system = PAIRWISE_SYSTEM
            field: dict[str, Any] = {"type": "string", "enum": self._verdicts}
            name = "verdict"
            values = ", ".join(f'"{verdict}"' for verdict in self._verdicts)
            self._ask = f"Which answer is better by the criteria? Verdicts: {values}."
        else:
            self._system = POINTWISE_SYSTEM
            field = {"type": "number", "minimum": self._low, "maximum": self._high}
            name = "score"
            self._ask = (
                "How good is the answer by the criteria, "
                f"from {self._low:g} (worst) to {self._high:g} (best)?"
            )
        self._field = name
        self._schema = {
            "type": "object",
            "properties": {name: field},
            "required": [name],
            "additionalProperties": False,
        }

    def keys(self, example: Example) -> list[str]:
        """Keys of what is asked about an example: one, or two when both orders are asked."""
        return [canonical_key(body) for body in self.bodies(example)]

    def bodies(self, example: Example) -> list[dict[str, Any]]:
        """Canonical requests about an example, in the input's order first."""
        orders = [example, example.swapped()] if self._strong.swap else [example]
        return [self.body(order) for order in orders]

    def body(self, example: Example) -> dict[str, Any]:
        """Build the canonical request for an example as it stands."""
        strong = self._strong
        body: dict[str, Any] = {
            "model": strong.model,
            "messages": [
                {"role": "system", "content": self._system},
                {
                    "role": "user",
                    "content": f"{describe(example, self._rubric)}\n\n{self._ask} "
                    f'Reply with a JSON object that has the one field "{self._field}".',
                },
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": self._field, "strict": True, "schema": self._schema},
            },
            strong.max_tokens_field: strong.max_output_tokens,
        }
        if strong.temperature is not None:
            body["temperature"] = strong.temperature
        if strong.abstain_below is not None:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body

    def answer_texts(self) -> list[str]:
        """The answers that the schema allows, as a terse model writes them (scores: the ends)."""
        values = self._verdicts if self._pairwise else [self._low, self._high]
        return [json.dumps({self._field: value}, separators=(",", ":")) for value in values]

    def read(self, text: str | None) -> Verdict:
        """Read the verdict out of an answer's text. Raises Unparseable, never guesses."""
        if not text or not text.strip():
            raise Unparseable("the answer is empty")
        fenced = FENCE.match(text)
        try:
            document = json.loads(fenced.group(1) if fenced else text, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raise Unparseable(f"the answer is not JSON: {text[:80]!r}") from None
        if not isinstance(document, dict) or self._field not in document:
            raise Unparseable(f'the answer has no field "{self._field}": {text[:80]!r}')
        value = document[self._field]
        if self._pairwise:
            if value not in self._verdicts:
                raise Unparseable(f"{repr(value)[:80]} is not one of {', '.join(self._verdicts)}")
            return str(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unparseable(f"{repr(value)[:80]} is not a score")
        if not self._low <= value <= self._high:
            raise Unparseable(f"{repr(value)[:80]} is not in {self._low:g} to {self._high:g}")
        return float(value)

    def probs(
        self, text: str, logprobs: Any, verdict: Verdict
    ) -> tuple[float | None, float | None]:
        """Probability of the verdict that `read` found in the text, and of a tie (pairs only).

        `logprobs`: as the server sent them. Both are None where they are not asked for, were not
        sent, or do not belong to the text.
        """
        if self._strong.abstain_below is None:
            return None, None
        reading: Reading = (
            Words(self._verdicts) if self._pairwise else Numbers(self._low, self._high)
        )
        found = verdict_probs(text, logprobs, self._field, reading)
        if found is None:
            return None, None
        if isinstance(verdict, str):
            return found.get(verdict, 0.0), found.get("tie", 0.0)
        return found.get(SAID, 0.0), None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that names a key twice has no one meaning."""
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key occurs twice")
    return document


def in_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the same request for a server that does not know `response_format`."""
    return {name: value for name, value in body.items() if name != "response_format"}


def canonical_key(body: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of a request body."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def combine(verdicts: list[Verdict]) -> Verdict:
    """One verdict from one order, or from both: the second is in swapped orientation.

    Two orders that disagree are a tie (config: `strong.swap`).
    """
    if len(verdicts) == 1:
        return verdicts[0]
    first, second = verdicts
    flipped = {"A": "B", "B": "A"}.get(str(second), second)
    return first if first == flipped else "tie"


def combine_probs(answers: Sequence[Answer], combined: Verdict) -> float | None:
    """Probability of the combined verdict: its mean over the orders; None where one has none.

    Orders that disagree are a tie, however sure each of them is of itself: so it is the
    probability that they give to a tie, which is small unless both were near one.
    """
    tie = combined == "tie"
    probs = [answer.tie_prob if tie else answer.verdict_prob for answer in answers]
    known = [prob for prob in probs if prob is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(probs) else None
