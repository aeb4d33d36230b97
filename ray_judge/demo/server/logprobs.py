"""Log-probabilities of an answer's tokens, in the shape of the API.

The simulated judge is a distribution over whole answers: the one it gives, and the others that
the schema permits. Cut into tokens, that is a tree; a token's probability is the share of the
answers that go on with it among those that begin as the answer given does. So what a client works
out from the tokens can be held against the probability that was set.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ray_judge.demo.server.config import Certainty
from ray_judge.demo.server.requests import draw

_PIECES = {
    "words": re.compile(r'\{"|":"|":|"\}|[A-Za-z]+|\d{1,3}|.', re.DOTALL),
    "straddling": re.compile(
        r'\{"[a-z]+|":"?(?:[A-Za-z]|\d{1,3})|[A-Za-z]+|\d{1,3}|"\}|.', re.DOTALL
    ),
    "characters": re.compile(r".", re.DOTALL),
}
_STRAY = ("…", " ", "\n", "é")
"""Tokens that no answer has, with a small share of every position."""
_STRAY_SHARE = 1e-4
_ALTERNATIVES = ("A", "B", "tie")


def certainty_of(settings: Certainty, canonical: str, prompt: str) -> float:
    """Probability of the answer given: a fixed function of the request."""
    unsure = bool(settings.unsure_containing) and settings.unsure_containing in prompt
    unsure = unsure or draw("unsure", settings.seed, canonical) < settings.unsure_share
    low, high = settings.unsure if unsure else settings.sure
    return low + (high - low) * draw("certainty", settings.seed, canonical)


def logprobs_for(
    content: str,
    certainty: float,
    top: int,
    tokens: str,
    scores: tuple[float, float],
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `logprobs` object of a choice: every token of `content`, `top` likeliest ones beside.

    `certainty`: probability of the content as a whole; `tokens`: how text is cut; `fields`: the
    schema's properties, which say what else might have been answered.
    """
    weights = _weights(content, certainty, scores, fields or {})
    cut = {text: _PIECES[tokens].findall(text) for text in weights}
    told = cut[content]
    entries = []
    for place, token in enumerate(told):
        here: dict[str, float] = {}
        for text, weight in weights.items():
            pieces = cut[text]
            if pieces[:place] == told[:place] and place < len(pieces):
                here[pieces[place]] = here.get(pieces[place], 0.0) + weight
        whole = sum(here.values())
        shares = {piece: (1 - _STRAY_SHARE) * weight / whole for piece, weight in here.items()}
        shares |= {stray: _STRAY_SHARE / len(_STRAY) for stray in _STRAY}
        listed = sorted(shares.items(), key=lambda item: -item[1])[:top]
        entries.append(
            {**_entry(token, shares[token]), "top_logprobs": [_entry(*o) for o in listed]}
        )
    return {"content": entries, "refusal": None}


def _entry(token: str, prob: float) -> dict[str, Any]:
    logprob = max(-9999.0, math.log(prob)) if prob > 0 else -9999.0
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _weights(
    content: str, certainty: float, scores: tuple[float, float], fields: Mapping[str, Any]
) -> Mapping[str, float]:
    """Answer → probability. The others share the rest, each half as likely as the one before."""
    try:
        document = json.loads(content)
    except ValueError:
        return {content: 1.0}
    others: list[str] = []
    for field, value in document.items() if isinstance(document, dict) else ():
        for choice in _choices(value, scores, fields.get(field, {})):
            if choice != value:
                changed = {**document, field: choice}
                others.append(json.dumps(changed, separators=(",", ":")))
    if not others:
        return {content: 1.0}
    halves = [0.5**n for n in range(len(others))]
    rest = (1 - certainty) / sum(halves)
    return {content: certainty, **{t: rest * h for t, h in zip(others, halves, strict=True)}}


def _choices(value: Any, scores: tuple[float, float], field: Mapping[str, Any]) -> list[Any]:
    """What could have been said for a value: a word of the schema, or a whole score."""
    if isinstance(value, str):
        choices = list(field.get("enum", _ALTERNATIVES))
        return choices if value in choices else []
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    low, high = field.get("minimum", scores[0]), field.get("maximum", scores[1])
    return list(range(math.ceil(low), math.floor(high) + 1))
