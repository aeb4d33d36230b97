"""How probable a verdict was, by the log-probabilities that came with its answer. Pure.

A chat completion lists, per token, the likeliest tokens in its place (`choices[0].logprobs`). The
verdict is a value inside JSON text, which tokens cut as they like: one may open the value together
with what stands before it (`":"A`), and a value may take several (`"`, `t`, `ie`). So each listed
token is read as the text that it would have made of the value so far:

    it tells a verdict     its probability is that verdict's, now and for good
    it is the token taken  the next position says how its probability divides
    neither                left out: an opening that all share, other white space, no verdict

What the list does not show is nobody's: a short list cannot make an answer sure. For the rest the
verdicts' probabilities are normalised: at one position it makes no difference whether the server
masked, under the schema, what is no verdict.

Text is handled as bytes, one character each (Latin-1): a token may be part of a character.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SAID, OTHER = "said", "other"
"""What the tokens of a score tell: the score that was said, or another."""
_SPACE = " \t\r\n"
_ENDS = frozenset(_SPACE + ",}")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_SLACK = 1e-3
"""How far above 0 rounding may have put a log-probability."""


class Reading(Protocol):
    """What the text of a value, as far as it goes, tells of the verdict.

    `said`: the value as the answer has it, whole.
    """

    def tells(self, value: str, said: str) -> str | None:
        """Name the verdict; None where the text is none, or may still become several."""

    def decided(self, value: str) -> bool:
        """Whether nothing that may follow changes the verdict."""


@dataclass(frozen=True, slots=True)
class Words:
    """Verdicts in words: JSON strings."""

    verdicts: Sequence[str]

    def tells(self, value: str, said: str = "") -> str | None:
        """See `Reading.tells`; names are those of `verdicts`."""
        left = [v for v in self.verdicts if _one_begins_the_other(json.dumps(v), value)]
        return left[0] if len(left) == 1 else None

    def decided(self, value: str) -> bool:
        """See `Reading.decided`."""
        return self.tells(value) is not None


@dataclass(frozen=True, slots=True)
class Numbers:
    """Scores from `low` to `high`.

    A number ends where something else begins, so `1` may still become `10` or `1.5`. A listed
    token that leaves a whole number other than the one said tells another, even where it might
    have gone on to what was said: tokenizers that have `10` do not write it as `1`, `0`.
    """

    low: float
    high: float

    def tells(self, value: str, said: str) -> str | None:
        """See `Reading.tells`; `SAID` or `OTHER`."""
        number = _NUMBER.match(value)
        if number is None:
            return None
        score, rest = float(number[0]), value[number.end() :]
        if rest[:1] in _ENDS:
            told = SAID if score == float(said) else OTHER
            return told if self.low <= score <= self.high else None
        if value == said:
            return SAID
        on_the_way = bool(rest) and said.startswith(value)
        may_go_on = not rest or rest[0] in ".eE"
        return OTHER if may_go_on and not on_the_way and score <= self.high else None

    def decided(self, value: str) -> bool:
        """See `Reading.decided`."""
        number = _NUMBER.match(value)
        return number is not None and value[number.end() : number.end() + 1] in _ENDS


def verdict_probs(
    text: str, logprobs: Any, field: str, reading: Reading
) -> dict[str, float] | None:
    """Probability of each verdict that `reading` names, in [0, 1]; together at most 1.

    `text`: the answer's content, JSON with the verdict in `field`. `logprobs`: the list
    `choices[0].logprobs.content` as the server sent it. None where it sent none, or such as do
    not belong to the text: nothing is guessed.
    """
    document = text.encode("utf-8", "surrogatepass").decode("latin-1")
    tokens = _tokens(logprobs)
    span = value_span(document, field)
    if not tokens or span is None:
        return None
    joined = "".join(tokens)
    if not joined.startswith(document) and joined.count(document) != 1:
        return None
    said = document[slice(*span)]
    name = reading.tells(said + "}", said)
    if name is None:
        return None
    found = {name: 1.0}
    for place in reversed(list(_places(tokens, joined.index(document) + span[0], reading))):
        listed = _listed(logprobs[place.number], place.taken)
        shares = None if listed is None else _shares(listed, place, found, reading, said)
        if shares is None:
            return None
        found = shares
    return {verdict: min(1.0, prob) for verdict, prob in found.items()}


def value_span(document: str, field: str) -> tuple[int, int] | None:
    """Where a field's value stands in the text of a JSON object, perhaps fenced; None: nowhere."""
    decoder = json.JSONDecoder()
    try:
        at = document.index("{") + 1
        while True:
            key, at = decoder.raw_decode(document, _skip(document, at))
            at = _skip(document, at)
            if document[at] != ":":
                return None
            begin = _skip(document, at + 1)
            _, end = decoder.raw_decode(document, begin)
            if key == field:
                return begin, end
            at = _skip(document, end)
            if document[at] != ",":
                return None
            at += 1
    except (ValueError, IndexError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class _Place:
    """A token position: `before` is the value's text so far, `opening` what comes before it."""

    number: int
    taken: str
    before: str
    opening: str

    def value(self, token: str) -> str | None:
        """The value's text if this token stood here; None where it ends before, or leads away."""
        at = 0
        for character in self.opening:
            if character not in _SPACE:  # white space there is the server's taste
                at = _skip(token, at)
                if token[at : at + 1] != character:
                    return None
                at += 1
        return self.before + token[_skip(token, at) if self.opening else at :]


def _places(tokens: Sequence[str], begin: int, reading: Reading) -> Iterator[_Place]:
    """The positions, in order, from the value's first character until the verdict is decided."""
    at, before = 0, ""
    for number, token in enumerate(tokens):
        start, at = at, at + len(token)
        if at <= begin:
            continue
        opening = token[: max(0, begin - start)]
        yield _Place(number, token, before, opening)
        before += token[len(opening) :]
        if reading.decided(before):
            return


def _shares(
    listed: Mapping[str, float],
    place: _Place,
    after: Mapping[str, float],
    reading: Reading,
    said: str,
) -> dict[str, float] | None:
    """Probabilities of the verdicts at a position. `after`: the same behind the token taken."""
    shares: dict[str, float] = {}
    counted = max(0.0, 1.0 - math.fsum(listed.values()))  # what is not shown
    for token, prob in listed.items():
        value = place.value(token)
        if token == place.taken:
            parts = {verdict: prob * share for verdict, share in after.items()}
        elif value is not None and (verdict := reading.tells(value, said)) is not None:
            parts = {verdict: prob}
        else:
            continue
        counted += prob
        for verdict, part in parts.items():
            shares[verdict] = shares.get(verdict, 0.0) + part
    if counted <= 0:
        return None
    return {verdict: share / counted for verdict, share in shares.items()}


def _listed(entry: Mapping[str, Any], taken: str) -> dict[str, float] | None:
    """Token text → probability, the token taken included; None where a figure makes no sense."""
    listed: dict[str, float] = {}
    others = entry.get("top_logprobs") or []
    if not isinstance(others, list):
        return None
    for other in others:
        text, prob = _token(other), _prob(other)
        if text is None or prob is None:
            return None
        listed[text] = listed.get(text, 0.0) + prob
    if taken not in listed:
        prob = _prob(entry)
        if prob is None:
            return None
        listed[taken] = prob
    return listed


def _tokens(logprobs: Any) -> list[str] | None:
    if not isinstance(logprobs, list):
        return None
    tokens = [_token(entry) for entry in logprobs]
    return None if None in tokens else [token for token in tokens if token is not None]


def _token(entry: Any) -> str | None:
    """A token's bytes: as listed, since its text cannot show a part of a character."""
    if not isinstance(entry, dict):
        return None
    raw, text = entry.get("bytes"), entry.get("token")
    if isinstance(raw, list):
        try:
            return bytes(raw).decode("latin-1")
        except (TypeError, ValueError, OverflowError):
            return None
    if not isinstance(text, str):
        return None
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _prob(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _SLACK:
        return None
    return math.exp(max(-1e4, min(0.0, value)))  # which is 0, as -9999 and −∞ are


def _one_begins_the_other(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


def _skip(text: str, at: int) -> int:
    """The first place from `at` on that is not white space."""
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at
