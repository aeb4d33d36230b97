"""The strong judge's questions: which rows ask what, under which key, for how much at most.

The body is the very one that is sent, under the strict schema (OpenAI "Structured outputs",
platform.openai.com/docs/guides/structured-outputs, 2026-11). The key, under which the journal
keeps the answer, is the SHA-256 of the body's canonical JSON without its limits: a higher limit
asks nothing new. Where a server refuses `response_format` the same question is asked in words,
under the same key. What all questions have in common comes first, in the system message, and the
row's texts behind it: providers charge less for a beginning that they have seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from ray_judge.config import RunConfig, StrongConfig
from ray_judge.errors import InputChangedError
from ray_judge.escalation import pricing
from ray_judge.escalation.pricing import Price, input_token_bound, input_token_estimate
from ray_judge.failures import LIMITS
from ray_judge.judging.formats.families import (
    GENERIC_RUBRIC,
    PAIRWISE_SYSTEM,
    POINTWISE_SYSTEM,
    describe,
)
from ray_judge.judging.formats.reasoning import answer_begins
from ray_judge.records import Chunk, Example, Verdict
from ray_judge.run.columns import Columns
from ray_judge.run.plan import read_examples, read_rows

TIERS = {"online": "default", "batch": "batch", "flex": "flex"}
"""`strong.mode` → the service tier that is expected to be billed."""
OPENAI, OPENROUTER = "api.openai.com", "openrouter.ai"
_max_cost = lru_cache(maxsize=2**16)(pricing.max_cost)
QUOTED_LINE = re.compile(r"^\s*>.*$", re.MULTILINE)


class Unparseable(Exception):
    """The answer's text is not a verdict; the message says why. Never crosses a process."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the strong judge."""

    key: str
    body: Mapping[str, Any] | None
    """None where it was dropped to save memory; `QuestionMaker.bodies` makes it again."""
    input_bound: int
    tokens: int  # of the input, about
    max_cost_usd: Decimal  # in the dearest of `billable_tiers`
    row: tuple[str, int, int] | None = None
    """Chunk, row in its shard, number of the question within its row."""


class QuestionMaker:
    """Makes the questions of one run's strong judge, and reads the verdicts in its answers."""

    def __init__(self, config: RunConfig, columns: Columns | None = None) -> None:
        """Without `columns` it makes questions about examples only, not about rows."""
        self.config, self.strong = config, config.strong
        strong = self.strong
        self.price = price_of_strong(strong)
        self._columns = columns
        self._low, self._high = config.judges[0].score_range()
        self._verdicts: list[str] = []
        if config.task == "pairwise":
            self._verdicts = ["A", "B", "tie"] if strong.ties else ["A", "B"]
            system, self._field = PAIRWISE_SYSTEM, "verdict"
            value: dict[str, Any] = {"type": "string", "enum": self._verdicts}
            names = ", ".join(f'"{verdict}"' for verdict in self._verdicts)
            ask = f"Which answer is better by the criteria? Verdicts: {names}."
        else:
            system, self._field = POINTWISE_SYSTEM, "score"
            value = {"type": "integer", "minimum": self._low, "maximum": self._high}
            ends = f"from {self._low} (worst) to {self._high} (best)"
            ask = f"How good is the answer by the criteria, as a whole number {ends}?"
        ask = f'{ask} Reply with a JSON object that has the one field "{self._field}".'
        criteria = f"[Criteria]\n{config.rubric() or GENERIC_RUBRIC}"
        self._system = f"{system}\n\n{criteria}\n\n{ask}"
        self._without_criteria = f"{system}\n\n{ask}"
        fields = {"properties": {self._field: value}, "required": [self._field]}
        schema = {"type": "object", **fields, "additionalProperties": False}
        strict = {"name": self._field, "strict": True, "schema": schema}
        self._format = {"type": "json_schema", "json_schema": strict}

    def of_rows(self, chunk: Chunk, rows: Sequence[int]) -> dict[int, list[Question]]:
        """Row → its questions; a row without text has none. Reads the slice of the shard once.

        `rows`: positions in the shard. Raises InputChangedError where the shard has too few.
        """
        assert self._columns is not None
        if not rows:
            return {}
        first, last, texts = min(rows), max(rows), list(dict.fromkeys(self._columns.text.values()))
        table = read_rows(chunk.shard, first, last + 1 - first, texts)
        if first + len(table) <= last:
            raise InputChangedError("this shard has fewer rows than before", file=chunk.shard)
        wanted = table.take([row - first for row in rows])
        made: dict[int, list[Question]] = {}
        for row, example in zip(rows, read_examples(wanted, self._columns), strict=True):
            asked = [] if isinstance(example, str) else self.of_example(example)
            made[row] = [replace(q, row=(chunk.name, row, n)) for n, q in enumerate(asked)]
        return made

    def of_example(self, example: Example) -> list[Question]:
        """The samples in the input's order first, then those in the other order, if it is asked."""
        orders = [example, example.swapped()] if self.strong.swap else [example]
        return [question for order in orders for question in self._samples(order)]

    def bodies(self, questions: Sequence[Question], chunks: Mapping[str, Chunk]) -> list[Question]:
        """Make the bodies of questions about rows again; `chunks`: by name.

        Raises InputChangedError where a row asks something else now.
        """
        places = [question.row or ("", 0, 0) for question in questions]
        rows: dict[str, set[int]] = {}
        for name, row, _ in places:
            rows.setdefault(name, set()).add(row)
        made = {name: self.of_rows(chunks[name], sorted(asked)) for name, asked in rows.items()}
        again = []
        for question, (name, row, number) in zip(questions, places, strict=True):
            found = made[name][row][number : number + 1]
            if [other.key for other in found] != [question.key]:
                shard = chunks[name].shard
                raise InputChangedError("this row changed since the run began", file=shard, row=row)
            again += found
        return again

    def online(self) -> QuestionMaker:
        """What makes the same questions for a run that is not in batches: at the full price."""
        strong = self.strong.model_copy(update={"mode": "online"})
        config = self.config.model_copy(update={"strong": strong})
        return type(self)(config, self._columns)

    def answer_texts(self) -> list[str]:
        """The answers that the schema allows, as a terse model writes them (scores: the ends)."""
        values: Sequence[str | float] = self._verdicts or (self._low, self._high)
        return [json.dumps({self._field: value}, separators=(",", ":")) for value in values]

    def read(self, text: str | None) -> Verdict:
        """Read the verdict out of an answer's text, whatever stands around it.

        The one object with the field counts, behind the reasoning, outside of quoted lines; two
        that differ are no verdict. Raises Unparseable, never guesses.
        """
        if not text or not text.strip():
            raise Unparseable("the answer is empty")
        begin = answer_begins(text)
        if begin is None:
            raise Unparseable(f"the answer is reasoning without an end: {text[:80]!r}")
        said = text[begin:]
        found = list(_objects(QUOTED_LINE.sub("", said)))
        objects = [one for one in found if not isinstance(one, str)]
        if not objects:
            raise Unparseable(f"the answer is not JSON: {said.strip()[:80]!r}")
        values = [one[self._field] for one in objects if self._field in one]
        if not values:
            raise Unparseable(f'the answer has no field "{self._field}": {said.strip()[:80]!r}')
        verdicts = {self._verdict(value) for value in values}
        begun = re.compile(rf'{{\s*"{self._field}".*}}', re.DOTALL)
        broken = any(begun.match(one) for one in found if isinstance(one, str))
        if len(verdicts) > 1 or broken:
            raise Unparseable(f"the answer has several verdicts: {said.strip()[:80]!r}")
        return verdicts.pop()

    def _verdict(self, value: Any) -> Verdict:
        """Read a field's value: how it is written, its case of letters for one, says nothing."""
        said = value.strip() if isinstance(value, str) else value
        if self._verdicts:
            for verdict in self._verdicts:
                if isinstance(said, str) and said.lower() == verdict.lower():
                    return verdict
            raise Unparseable(f"{repr(value)[:80]} is not one of {', '.join(self._verdicts)}")
        with suppress(ValueError, TypeError, OverflowError):
            number = math.nan if isinstance(said, bool) else float(said)
            if self._low <= number <= self._high:
                return number
        wanted = f"a score from {self._low:g} to {self._high:g}"
        raise Unparseable(f"{repr(value)[:80]} is not {wanted}")

    def _samples(self, example: Example) -> list[Question]:
        body = self._body(example)
        # Nobody knows what a server makes of `extra_body`: tools, say, are put into the prompt.
        extra = [self._format, self.strong.extra_body] if self.strong.extra_body else self._format
        bound = input_token_bound(body["messages"], extra)
        tokens = input_token_estimate(body["messages"], self._format)
        most, tiers = self.strong.max_output_tokens, billable_tiers(self.strong)
        cost = _max_cost(self.price, input_tokens=bound, output_tokens=most, tiers=tiers)
        keys = [canonical_key(body, sample) for sample in range(self.strong.samples)]
        return [Question(key, body, bound, tokens, cost) for key in keys]

    def _body(self, example: Example) -> dict[str, Any]:
        strong = self.strong
        system = self._without_criteria if example.rubric else self._system
        texts = {"system": system, "user": describe(example, None)}
        set_here = {"temperature": strong.temperature, "reasoning_effort": strong.reasoning_effort}
        return {
            **strong.extra_body,
            "model": strong.model,
            "messages": [{"role": role, "content": content} for role, content in texts.items()],
            "response_format": self._format,
            strong.max_tokens_field: strong.max_output_tokens,
            **{name: value for name, value in set_here.items() if value is not None},
        }


def _objects(text: str) -> Iterator[dict[str, Any] | str]:
    """The JSON objects in a text that stand in no other one, nor in quotation marks.

    Where a brace begins none, what stands behind it is given as text.
    """
    at = text.find("{")
    while at >= 0:
        end = at + 1
        if text[at - 1 : at] not in QUOTES:
            try:
                found, end = READER.raw_decode(text, at)
            except (ValueError, RecursionError):
                found = text[at:]
            yield found
        at = text.find("{", end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key occurs twice: the object has no one meaning")
    return document


QUOTES = tuple("\"'“„«")
READER = json.JSONDecoder(object_pairs_hook=_once)


def canonical_key(body: Mapping[str, Any], sample: int = 0) -> str:
    """SHA-256 (hex) of the canonical JSON of a body without its limits, and of `sample` above 0."""
    asked = {name: value for name, value in body.items() if name not in LIMITS}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    numbered = f"{text}\n{sample}" if sample else text
    return hashlib.sha256(numbered.encode("utf-8", "surrogatepass")).hexdigest()


def in_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for a server that does not know `response_format`."""
    return {name: value for name, value in body.items() if name != "response_format"}


def asked_tier(strong: StrongConfig) -> str | None:
    """Which `service_tier` is asked for; None sends nothing.

    OpenAI serves a request that names none as its project is set, which may be `priority`: so it
    is told `default`. Other servers may not know the parameter.
    """
    if strong.mode == "flex":
        return "flex"
    return "default" if _is_at(OPENAI, strong) else None


def says_what_it_bills(strong: StrongConfig) -> bool:
    """Whether the `usage.cost` of answers is what they cost, in dollars (OpenRouter, "Usage
    accounting", 2026-11). Other servers may mean something else by it, unless they are asked for it
    in OpenRouter's way.
    """
    asked = strong.extra_body.get("usage")
    return _is_at(OPENROUTER, strong) or (isinstance(asked, dict) and asked.get("include") is True)


def _is_at(place: str, strong: StrongConfig) -> bool:
    address = strong.base_url or os.environ.get("OPENAI_BASE_URL") or f"https://{OPENAI}"
    host = urlsplit(address).hostname or ""
    return host == place or host.endswith("." + place)


def billable_tiers(strong: StrongConfig) -> tuple[str, ...]:
    """In which tiers a request may be served and billed; its lease covers the dearest.

    A batch is always served as a batch; flex where there is no room for it at the standard price;
    and who is not told a tier may be a gateway whose account has `priority`.
    """
    if strong.mode == "batch":
        return ("batch",)
    asked = asked_tier(strong)
    return ("default", asked or "priority")


def price_of_strong(strong: StrongConfig) -> Price:
    """The price of the run's strong judge. Raises ConfigError where none is known."""
    own = strong.price.model_dump(exclude_none=True) if strong.price else None
    return pricing.price_of(strong.model, own)
