"""From the probabilities at the verdict's position to a verdict and how sure it is. Pure.

P(v) is the summed probability of every spelling of v, normalised over the alternatives; `mass` is
what they had together before that. The methods (higher is surer, for all of them):

    probability          max P(v)                 CascadedEval (arXiv 2403.02839v3), §5;
    margin               first − second P(v)      "Trust or Escalate" (arXiv 2407.18370), §3
    entropy              mean over the generated tokens of Σ p ln p   (CascadedEval, its indicator;
                         the sign is kept, so 0 is certain)
    calibrated_entropy   the same minus the same under the base model, on the same tokens
                         (CascadedEval, its calibration)
    votes                share of the answers that say the verdict, of all that were asked for

Of a reward model (`by_rewards`) `margin` is the difference of two rewards, not of probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from ray_judge.config import JudgeConfig
from ray_judge.records import Judgment, Task, Verdict

FLIP = {"A": "B", "B": "A"}
Read = tuple[Mapping[str, float], float]
"""(P, mass) of one prompt."""


@np.errstate(invalid="ignore")  # NaN is looked for below
def verdict_probs(logprobs: Mapping[str, Sequence[float]]) -> Read:
    """Sum the spellings of each alternative and normalise.

    `logprobs`: alternative → natural logs of the unmasked probabilities of its spellings.
    P sums to 1, mass is in [0, 1]. It is done in log space, so that a mass that underflows a
    double still gives the right P. Raises ValueError.
    """
    totals = {name: float(np.logaddexp.reduce(values)) for name, values in logprobs.items()}
    mass_log = float(np.logaddexp.reduce(list(totals.values())))
    if math.isnan(mass_log):
        raise ValueError("the model gave a probability that is not a number")
    if mass_log == -math.inf:
        raise ValueError("every alternative has probability 0")
    probs = {name: math.exp(total - mass_log) for name, total in totals.items()}
    return probs, min(1.0, math.exp(mass_log))


def confidence(probs: Mapping[str, float], method: str) -> float:
    """How sure a verdict is by its probabilities alone, in [0, 1]; higher is surer."""
    first, *rest = sorted(probs.values(), reverse=True)
    return first - (rest[0] if rest else 0.0) if method == "margin" else first


def majority(probs: Mapping[str, float], task: Task) -> str:
    """The verdict with the most votes, as of the strong judge's.

    Where several have as many: a tie where one may be said, else the one that was said first; of
    scores the one that is nearest to the mean.
    """
    most = max(probs.values())
    leaders = [name for name, p in probs.items() if math.isclose(p, most)]
    if task == "pointwise":
        mean = math.fsum(float(name) * p for name, p in probs.items())
        return min(leaders, key=lambda name: abs(float(name) - mean))
    return "tie" if len(leaders) > 1 and "tie" in probs else leaders[0]


def judgment(
    probs: Mapping[str, float],
    mass: float,
    judge: JudgeConfig,
    task: Task,
    *,
    entropy: float | None = None,
    unseen: float = 0.0,
    would_write: str | None = None,
) -> Judgment:
    """The verdict with the highest probability (or the expected score), and its confidence.

    Equal probabilities go to the alternative that is named first. A row whose mass is below
    `judge.min_mass`, or whose verdict hangs on tokens that a server did not show (`unseen`: the
    most probability that they can have), keeps its verdict, is as unsure as can be (0 for a
    probability, null for an entropy) and says why. `entropy`: mean Σ p ln p. `would_write`: the
    likeliest token where the verdict is to begin.
    """
    votes = judge.confidence == "votes"
    best = majority(probs, task) if votes else max(probs, key=lambda name: probs[name])
    verdict: Verdict = best if task == "pairwise" else float(best)
    if task == "pointwise" and judge.score == "mean":
        verdict = math.fsum(float(name) * p for name, p in probs.items())
    by_entropy = "entropy" in judge.confidence
    sure = entropy if by_entropy else confidence(probs, judge.confidence)
    sure = mass * probs[best] if votes else sure
    off, error = unseen / (mass + unseen) if unseen else 0.0, None
    if votes and mass < judge.min_mass:
        error = f"judge: {mass:.2g} of its {judge.samples} answers have a verdict (judge.min_mass)"
    elif mass < judge.min_mass:
        error = (
            f"judge: the alternatives have only {mass:.2g} of the probability together "
            f"(judge.min_mass is {judge.min_mass:g}): the prompt does not fit this model"
            + (f", which would rather write {would_write!r}" if would_write is not None else "")
        )
    elif off and confidence(probs, "margin") <= 2 * off:
        error = (
            f"judge: what the server does not show may have {unseen:.2g} of the probability: "
            "the verdict hangs on it"
        )
    if error:
        sure = None if by_entropy else 0.0
    return Judgment(verdict, dict(probs), mass, sure, error, unseen=off if unseen else None)


def no_judgment(reason: str) -> Judgment:
    return Judgment(None, None, None, None, f"judge: {reason}")


def both_orders(straight: Read, swapped: Read) -> Read:
    """Average two readings (P, mass) of one pair in its own orientation.

    `swapped` was read with the responses exchanged: its A is the pair's B. So the judge's
    position bias cancels out.
    """
    (here, mass_here), (there, mass_there) = straight, swapped
    probs = {name: (p + there[FLIP.get(name, name)]) / 2 for name, p in here.items()}
    return probs, (mass_here + mass_there) / 2


def orders_agree(straight: Read, swapped: Read) -> bool:
    here, there = (max(probs, key=lambda name: probs[name]) for probs, _ in (straight, swapped))
    return here == FLIP.get(there, there)


def by_scores(first: Read, second: Read) -> Read:
    """Judge a pair from the score distributions of its two responses, taken as independent.

    P(A) = Σ_{i>j} P_A(i) P_B(j), P(tie) = Σ_i P_A(i) P_B(i), P(B) = the rest.
    """
    probs = {"A": 0.0, "B": 0.0, "tie": 0.0}
    for (here, p), (there, q) in product(first[0].items(), second[0].items()):
        i, j = float(here), float(there)
        probs["A" if i > j else "B" if j > i else "tie"] += p * q
    return probs, min(first[1], second[1])


def by_rewards(first: float, second: float, temperature: float) -> Judgment:
    """Judge a pair from the rewards of its responses: P(A) = σ((r_A − r_B)/T) (Bradley, Terry).

    Its confidence is |r_A − r_B|: where P(A) is 1 to a double's precision it still tells rows
    apart, and the temperature, which is fitted later, does not change it.
    """
    margin = first - second
    logit = margin / temperature
    probs, mass = verdict_probs({"A": [min(logit, 0.0)], "B": [min(-logit, 0.0)]})
    return Judgment("A" if margin >= 0 else "B", probs, mass, abs(margin))


def by_reward(reward: float, judge: JudgeConfig) -> Judgment:
    """Score one response: `judge.rewards` lie at the ends of the scores, the others between.

    What falls between two scores is shared out to both, so that the mean is the place itself.
    """
    assert judge.rewards is not None
    (low, high), (least, most) = judge.score_range(), judge.rewards
    place = low + (high - low) * min(1.0, max(0.0, (reward - least) / (most - least)))
    below = min(math.floor(place), high - 1)
    probs = {str(score): 0.0 for score in range(low, high + 1)}
    probs[str(below)], probs[str(below + 1)] = below + 1 - place, place - below
    return judgment(probs, 1.0, judge, "pointwise")
