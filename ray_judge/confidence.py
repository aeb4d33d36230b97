"""From the probabilities at the verdict's position to a verdict and how sure it is. Pure.

DESIGN: P(v) is the summed probability of every spelling of v, normalised over the alternatives;
`mass` is what they had together before that. Methods as in CascadedEval (arXiv 2403.02839v3, §5)
and "Trust or Escalate" (arXiv 2407.18370, §3): `probability` = max P(v), `margin` = first − second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from ray_judge.records import Judgment, Task, Verdict

Method = Literal["probability", "margin"]


def verdict_probs(logprobs: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], float]:
    """Sum the spellings of each alternative and normalise.

    `logprobs`: alternative → natural logs of the unmasked probabilities of its spellings, one
    each. Returns (P, mass): P sums to 1, mass in [0, 1]. The normalisation is done in log space,
    so that a mass that underflows a double still gives the right P.
    """
    totals = {name: _logsumexp(values) for name, values in logprobs.items()}
    mass_log = _logsumexp(list(totals.values()))
    if math.isnan(mass_log):
        raise ValueError("the model gave a probability that is not a number")
    if mass_log == -math.inf:
        raise ValueError("every alternative has probability 0")
    probs = {name: math.exp(total - mass_log) for name, total in totals.items()}
    return probs, min(1.0, math.exp(mass_log))


def confidence(probs: Mapping[str, float], method: Method) -> float:
    """How sure a verdict is, in [0, 1]; higher is surer."""
    first, *rest = sorted(probs.values(), reverse=True)
    if method == "margin":
        return first - (rest[0] if rest else 0.0)
    return first


def judgment(
    probs: Mapping[str, float], mass: float, *, task: Task, method: Method, min_mass: float
) -> Judgment:
    """The verdict with the highest probability, and its confidence.

    Equal probabilities go to the alternative that is named first. A row whose mass is below
    `min_mass` keeps its verdict but is unconfident (0.0) and says why.
    """
    best = max(probs, key=lambda name: probs[name])
    verdict: Verdict = best if task == "pairwise" else float(best)
    if mass >= min_mass:
        return Judgment(verdict, probs, mass, confidence(probs, method))
    return Judgment(
        verdict,
        probs,
        mass,
        0.0,
        f"judge: the alternatives have only {mass:.2g} of the probability together "
        f"(judge.min_mass is {min_mass:g}): the prompt does not fit this model",
    )


def both_orders(
    straight: tuple[Mapping[str, float], float], swapped: tuple[Mapping[str, float], float]
) -> tuple[dict[str, float], float]:
    """Average two readings (P, mass) of one pair in its own orientation.

    `swapped` was read with the responses exchanged: its A is the pair's B. This removes the
    judge's position bias; a judge that always says A ends at one half.
    """
    flip = {"A": "B", "B": "A"}
    (here, mass_here), (there, mass_there) = straight, swapped
    probs = {name: (p + there[flip.get(name, name)]) / 2 for name, p in here.items()}
    return probs, (mass_here + mass_there) / 2


def _logsumexp(values: Sequence[float]) -> float:
    if any(math.isnan(value) for value in values):
        return math.nan
    top = max(values)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
