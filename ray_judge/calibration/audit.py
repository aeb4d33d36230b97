"""The audit: a random share of the accepted rows is asked, too, and says how right they were.

Which rows are audited is a pure function of row key and the run's seed, not of what the judge said:
the audited rows are a random sample of the accepted ones, and what they show is unbiased.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.document import Calibration
from ray_judge.calibration.selection import interval
from ray_judge.errors import PromiseBroken
from ray_judge.records import Outcome, Route


def draw_rows(row_keys: pl.Series, seed: str, rate: float) -> pl.Series:
    """Say which rows are drawn: each with probability `rate` (2⁻⁶⁴ apart), independently."""
    below = int(rate * 2**64)
    texts = (f"{seed}\0{key}".encode("utf-8", "surrogatepass") for key in row_keys)
    numbers = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    drawn = [int.from_bytes(number, "big") < below for number in numbers]
    return pl.Series(drawn, dtype=pl.Boolean)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of `n` rows agree with the strong judge; their share, its exact 95 % interval."""

    group: str
    n: int
    agreed: int
    agreement: float | None
    low: float
    high: float


def count_agreement(rows: pl.DataFrame, group: str = "all") -> Agreement:
    n, agreed = rows.height, int((rows["judge_verdict"] == rows["strong_verdict"]).sum())
    return Agreement(group, n, agreed, agreed / n if n else None, *interval(agreed, n))


@dataclass(frozen=True, slots=True)
class Audit:
    """What the audit of a run showed. `unanswered`: audited rows without a strong verdict.

    `abstained`: rows among the counted ones of whose strong verdict the strong judge was unsure.
    """

    overall: Agreement
    by_confidence: tuple[Agreement, ...]
    by_column: tuple[Agreement, ...]
    unanswered: int
    abstained: int

    def document(self) -> dict[str, Any]:
        """Give it for summary.json; fractions in [0, 1]."""
        return {**(found := asdict(self)).pop("overall"), **found}


def audit(rows: pl.DataFrame, by: str | None = None) -> Audit:
    """Sum up the audited rows of a run's scored rows.

    `rows`: `route`, `outcome`, `judge_verdict`, `judge_confidence`, `strong_verdict`, and the
    column `by`. Groups by tenths of the audited confidences, and by the values of `by`.

    A row that the strong judge abstained from has its verdict, and counts: such rows are the hard
    ones, so that the others alone would agree more often than the accepted rows do.
    """
    audited = rows.filter(pl.col("route") == Route.AUDIT.value)
    answered = pl.col("outcome").is_in([Outcome.RESOLVED.value, Outcome.ABSTAINED.value])
    known = audited.filter(answered & pl.col("judge_verdict").is_not_null())
    by_column = []
    if by:
        named = known.with_columns(pl.col(by).cast(pl.String).fill_null("(null)"))
        groups = named.sort(by).group_by(by, maintain_order=True)
        by_column = [count_agreement(part, str(value)) for (value,), part in groups]
    return Audit(
        count_agreement(known),
        _by_confidence(known),
        tuple(by_column),
        audited.height - known.height,
        known.filter(outcome=Outcome.ABSTAINED.value).height,
    )


def _by_confidence(known: pl.DataFrame) -> tuple[Agreement, ...]:
    """By tenths of the audited rows; rows of one confidence stay together."""
    if not known.height:
        return ()
    known = known.sort("judge_confidence")
    confidence = known["judge_confidence"].to_numpy()
    edges = np.quantile(confidence, np.arange(1, 10) / 10, method="lower")
    tenth = pl.Series("tenth", np.searchsorted(edges, confidence, side="right"))
    return tuple(
        count_agreement(part, "{:.4g} to {:.4g}".format(*part["judge_confidence"][[0, -1]]))
        for _, part in known.group_by(tenth, maintain_order=True)
    )


def implied_agreement(calibration: Calibration) -> float:
    """The least agreement *with the strong judge* that the promise implies.

    Against the strong judge's labels that is 1 − α. Against human labels a row where local and
    strong verdict differ is an error of one of them, so it is 1 − α − (strong error); where that
    is not known, the strong judge is taken to err at most as often as is promised of the local one.
    """
    if calibration.label_kind == "strong":
        return 1 - calibration.alpha
    error = calibration.strong_error
    return max(0.0, 1 - calibration.alpha - (calibration.alpha if error is None else error))


def check_promise(calibration: Calibration, found: Audit) -> str:
    """Say what the audit makes of the guarantee. Raises PromiseBroken where it contradicts it.

    Contradicted: the interval's upper end lies below what is promised, so that agreement would
    look like this with probability ≤ 2.5 % if the promise held.
    """
    least, overall = implied_agreement(calibration), found.overall
    if overall.agreement is None:
        return "the audit has no answered row: it says nothing about the guarantee"
    said = (
        f"{overall.agreed} of {overall.n} audited rows agree with the strong judge "
        f"({overall.agreement:.4f}, 95 % interval {overall.low:.4f} to {overall.high:.4f})"
    )
    if overall.high < least:
        raise PromiseBroken(
            f"the audit contradicts the guarantee: {said}, and the promise ("
            f"{calibration.promise()}) implies at least {least:.4f}. The rows, the judge or the "
            "strong judge are no longer what they were: calibrate again"
        )
    verdict = "confirms" if overall.low >= least else "does not contradict"
    return f"the audit {verdict} the guarantee: {said}; at least {least:.4f} is implied"
