"""What a night is made of: drawn from the seed before it begins, so that it can be read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import cache

from ray_judge.config import RunConfig, StrongConfig, parse
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.records import Example

UNITS = 10**13
"""Money in the simulator's own books: whole 1e-13 dollars, in which every bill is exact."""
MONTH_END = 1_796_083_200.0
"""2026-12-01 00:00 UTC."""
PRICES = {"input_usd_per_mtok": "1.2345678", "output_usd_per_mtok": "8.7654321"}
"""Odd on purpose: no cost is a whole number of nano-dollars."""
INPUT_UNITS, OUTPUT_UNITS = 12_345_678, 87_654_321
"""The same per token, in `UNITS`."""
MAX_OUTPUT_TOKENS = 60


def units(usd: Decimal) -> int:
    """Whole 1e-13 dollars."""
    return int(usd * UNITS)


@cache
def parts() -> tuple[RunConfig, tuple[Question, ...]]:
    """The configuration and thirty questions: the same for every night."""
    config = parse(
        {
            "input": "none",
            "output": "none",
            "judge": {"engine": "columns", "prob_columns": {"A": "a", "B": "b"}},
            "route": {"policy": "fraction", "fraction": 1},
            "strong": {
                "model": "sim",
                "max_cost_usd": 1,
                "price": PRICES,
                "max_output_tokens": MAX_OUTPUT_TOKENS,
                "reasks": 1,
                "timeout_s": 5,
            },
        }
    )
    maker = QuestionMaker(config)
    examples = (
        Example(f"question {number} " + "x" * (37 * number % 400), ("yes", "no"))
        for number in range(30)
    )
    return config, tuple(maker.of_example(example)[0] for example in examples)


@dataclass(frozen=True)
class Faults:
    """How likely the provider is to do what, for each request that reaches it."""

    server_error: float = 0.0
    rate_limit: float = 0.0
    row_refused: float = 0.0
    inside: float = 0.0
    """An error that comes inside an answer of 200."""
    reset_before: float = 0.0
    reset_after: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    refusal: float = 0.0
    malformed: float = 0.0
    no_usage: float = 0.0
    """No usage, or one that cannot be true."""
    outlier: float = 0.0
    """An answer that costs more than its lease."""
    repeat: float = 0.0
    """A proxy writes an answer twice."""
    batch_refused: float = 0.0
    """A whole batch: `failed`, nothing ran."""
    batch_ended: float = 0.0
    """A batch that expires or is cancelled with a part of its requests done."""
    not_run: float = 0.0
    """A request of a batch that did not run."""
    no_result: float = 0.0
    """A request of a batch that was billed, and is in no file."""
    list_lag: float = 0.0
    """A batch that the list does not show for a while."""


@dataclass(frozen=True)
class Plan:
    """One night."""

    asks: Mapping[str, tuple[Question, ...]]
    """The rows' questions, by run: of one, or of two that share their books. Some rows are
    identical, and runs may ask the same."""
    start: float
    """Unix seconds at the beginning."""
    cap_usd: Decimal
    monthly_cap_usd: Decimal | None
    strong: StrongConfig
    askers: int
    unit: int
    """Questions in one call to an asker."""
    shuffled: bool
    segments: bool
    second: bool
    """The same run is started a second time while it is at work, as where a lock was lost."""
    stops: bool
    """A run is told to stop while it is at work."""
    again: bool
    """A run that has ended is started once more."""
    locks: bool
    """The lock on shared books holds; else two owners may be at work at once."""
    far: bool
    """Processes run on other machines: nobody can tell whether one has ended."""
    batch: tuple[str, ...]
    """The runs that ask in batches."""
    arrivals: tuple[float, ...]
    """When the source has its next questions, seconds after it began."""
    compacts: bool
    """The run folds its journal at the end, as it always does really; half of a night's time."""
    linger_s: float
    dearest: bool
    """Every answer costs its maximum."""
    provider_rpm: float
    gone_after: int | None
    """After so many answers the account is empty for a while, or its key unknown."""
    loses_key: bool
    busy: tuple[float, float]
    """From when to when the provider says nothing but 429, seconds of the night."""
    moderated: frozenset[str]
    """Questions that are never let through (403)."""
    schemas: bool
    """The server takes `response_format`."""
    overbills: float
    """How many times its lease each answer costs, on a server that keeps to no limits; 0: no."""
    long_prompt: bool
    """It does so by its prompt tokens, not by its output."""
    ids: str
    """`unique`, `few`, `one` or `none`: what the answers are called."""
    caches: bool
    """The same question has the same answer again, under the same id."""
    faults: Faults
    crashes: int
    steps_between_crashes: int
    p_pause: float
    p_slow: float
    p_fail: float
    failures: int
    p_duplicate: float
    """How likely a call to the governor is to be delivered twice, where that must be safe."""

    @property
    def is_calm(self) -> bool:
        """Nothing is lost, and nobody dies."""
        troubles = self.crashes, self.second, self.p_fail, self.p_pause, self.p_slow
        return not any(troubles) and self.faults == Faults()


def draw(rng: random.Random) -> Plan:
    """Draw a night. Half of all nights lack most kinds of fault: broken promises are found in
    quiet nights too, and are easier to read there."""
    config, pool = parts()
    rows = rng.choice((5, 8, 12, 20, 30))
    distinct = rng.randint(max(1, rows // 2), rows)
    runs = ("run-a", "run-b") if rng.random() < 0.25 else ("run",)
    asks = {run: tuple(rng.choices(pool[:distinct], k=rows)) for run in runs}
    costs = [{q.key: q.max_cost_usd for q in asked} for asked in asks.values()]
    most = max(sum(by_key.values(), Decimal(0)) for by_key in costs)
    share = Decimal(rng.choice((rng.uniform(0.05, 1.0), rng.uniform(0.2, 3.0), 10.0)))
    cap = Decimal(0) if rng.random() < 0.02 else (most * share).quantize(Decimal("1e-9"))
    border = rng.random() < 0.2
    month = (most * Decimal(rng.uniform(0.1, 0.8))).quantize(Decimal("1e-9"))
    rpm = rng.choice((600, 6_000, 60_000))
    batch = tuple(run for run in runs if rng.random() < 0.3)
    strong = config.strong.model_copy(
        update={
            "batch": config.strong.batch.model_copy(
                update={
                    "max_requests": rng.choice((2, 5, 50)),
                    "wait_s": rng.choice((0.0, 300.0, 5_000.0)),
                    "enqueued_tokens": rng.choice((None, None, 2_000)),
                }
            ),
            "max_cost_usd": cap,
            "max_cost_usd_per_month": month if rng.random() < (0.8 if border else 0.1) else None,
            "requests_per_minute": rpm,
            "tokens_per_minute": rng.choice((200_000, 100_000_000)),
            "concurrency": rng.choice((1, 2, 4, 8, 16)),
            "reasks": rng.choice((0, 1, 1, 2)),
            "give_up_after_s": rng.choice((3.0, 60.0)),
        }
    )
    crashes = rng.choice((0, 0, 1, 2, 4))
    troubled = rng.random() < 0.5
    lots = rng.choice((1, 1, 3))
    begin = rng.choice((0.1, 1.0, 20.0)) * rng.random()
    moderated = rng.choice((0.1, 0.5)) * rng.random() if rng.random() < 0.15 else 0.0
    faults = _faults(rng) if rng.random() < 0.5 else Faults()
    overbills = rng.uniform(1.2, 25.0) if rng.random() < 0.1 else 0.0
    if overbills:  # nobody can know what an answer cost that says nothing
        faults = replace(faults, no_usage=0.0, outlier=0.0)
    return Plan(
        asks=asks,
        start=MONTH_END - (rng.uniform(0.1, 2.0) if border else 864_000.0),
        cap_usd=cap,
        monthly_cap_usd=strong.max_cost_usd_per_month,
        strong=strong,
        askers=rng.choice((1, 1, 2, 3)),
        unit=rng.choice((2, 4, 16)),
        shuffled=rng.random() < 0.5,
        segments=rng.random() < 0.3,
        second=rng.random() < 0.2,
        stops=rng.random() < 0.2,
        again=rng.random() < 0.2,
        locks=rng.random() < 0.7,
        far=rng.random() < 0.5,
        batch=batch,
        arrivals=tuple(sorted(rng.choice((0.0, 1.0, 30.0)) * rng.random() for _ in range(lots))),
        compacts=rng.random() < 0.2,
        linger_s=rng.choice((0.0, 0.0, 0.1)),
        dearest=rng.random() < 0.2,
        provider_rpm=rpm * rng.choice((0.3, 1.0, 1.0, 2.0)),
        gone_after=rng.randint(0, rows) if rng.random() < 0.15 else None,
        loses_key=rng.random() < 0.4,
        busy=(begin, begin + rng.choice((30.0, 500.0, 4000.0))) if rng.random() < 0.1 else (0, 0),
        moderated=frozenset(q.key for q in pool if rng.random() < moderated),
        schemas=rng.random() < 0.9,
        overbills=overbills,
        long_prompt=rng.random() < 0.3,
        ids=rng.choice(("unique", "unique", "unique", "few", "one", "none")),
        caches=rng.random() < 0.1,
        faults=faults,
        crashes=crashes,
        steps_between_crashes=rng.choice((30, 150, 600)),
        p_pause=0.002 if troubled and rng.random() < 0.5 else 0.0,
        p_slow=rng.choice((0.0, 0.02, 0.1)) if troubled else 0.0,
        p_fail=rng.choice((0.0, 0.01, 0.05)) if troubled else 0.0,
        failures=rng.randint(1, 3),
        p_duplicate=rng.choice((0.0, 0.2)),
    )


def _faults(rng: random.Random) -> Faults:
    def some(kind: str) -> float:
        # Sometimes a judge that hardly ever keeps to the schema: re-asks are used up.
        if kind == "malformed" and rng.random() < 0.15:
            return 0.7
        if kind == "list_lag":
            return rng.choice((0.0, 0.5))
        share = rng.choice((0.0, 0.0, 0.05, 0.2)) * rng.random()
        return share * 3 if kind == "batch_ended" else share

    return Faults(**{one.name: some(one.name) for one in fields(Faults)})
