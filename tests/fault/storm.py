"""Every scripted fault at once, 4 % each, until the run is at its end.

    python -m tests.fault.storm --rows 5000

The real session, without Ray, against the simulated provider. The provider's books say what was
billed, and which answers it lost on their way; the journal says what the asker saw. An account
that is empty a few times, and a server that says nothing but 429 for a while, pause the run; the
next session goes on. A refused key or an unknown model is not among the faults: they end a run.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ray_judge.errors import PausedError, ProviderDown
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.books.journal import Journal
from tests.provider import RunningServer, running_server
from tests.provider.faults import ALL_KINDS

from .one_process import ask, configuration
from .runs import by_bill, by_question

SHARE = 0.04
TIMEOUT_S = 0.5
PATIENCE_S = 4.0
BUSY_S = 7.0
"""So long the server says nothing but 429: one session gives up, the next one or two go on."""
STARTS = 15
"""More sessions than the quota is exhausted: each pause needs one more."""
ENDS_THE_RUN = {"invalid_api_key", "model_not_found"}
PAUSES_THE_RUN = {"insufficient_quota", "billing_hard_limit"}
UNUSABLE = {"refusal", "malformed_json", "wrong_verdict", "empty_content"}
"""Whole answers that are no verdict, and may be when the same is asked again."""
REASKS = 1


def faults() -> list[dict[str, Any]]:
    """All kinds that a chat request can meet, the quota's not more than twice in a run."""
    kinds = sorted(ALL_KINDS - ENDS_THE_RUN - PAUSES_THE_RUN - {"flex_unavailable"})
    quota = [{"kind": kind, "probability": SHARE, "max_times": 2} for kind in PAUSES_THE_RUN]
    told = {"retry_after_s": 0.03, "extra_ms": 4 * TIMEOUT_S * 1000}
    return [*quota, *({"kind": kind, "probability": SHARE, **told} for kind in kinds)]


@dataclass
class Storm:
    """What became of it."""

    rows: int
    cap: Decimal
    outcomes: Counter[str]
    journal: Journal
    booked: Decimal
    """Settled, and promised to requests whose fate is not known."""
    excess: Decimal
    """Of it, what answers cost beyond their leases."""
    starts: int
    gave_up: int
    """How many sessions the server's 429s ended."""
    bills: list[dict[str, Any]]
    stats: dict[str, Any]

    def check(self) -> None:
        """The promises, by the provider's own books."""
        kinds = {rule["kind"] for rule in faults()}
        met = self.stats["faults_injected"]
        assert self.rows < 200 or set(met) == kinds, f"never met: {kinds - set(met)}"
        assert sum(self.outcomes.values()) == self.rows, "a row is lost"
        assert "pending" not in self.outcomes
        total = Decimal(self.stats["total_usd"])
        assert total <= self.booked, f"billed {total}, booked {self.booked}"
        assert self.booked <= self.cap + self.excess, f"booked {self.booked}, {self.excess} beyond"
        beyond = [Decimal(bill["usd"]) for bill in self.bills if bill["fault"] == "overbilled"]
        assert bool(beyond) == bool(self.excess) and self.excess < sum(beyond, Decimal(1))
        assert self.rows < 200 or self.gave_up, "nothing but 429, and nobody gave up"
        rows = self.journal.rows
        read, bills_of = by_bill(self.journal), by_question(self.bills)
        short = [bill for bill in self.bills if bill["fault"] == "short_id"]
        came = read.keys() | {bill["number"] for bill in short if bill["answered_wall"]}
        keys: dict[str, str] = {}
        for bill in self.bills:
            if bill["number"] in read:
                key = keys.setdefault(bill["canonical"], read[bill["number"]].key)
                assert read[bill["number"]].key == key, "another question's answer"
        assert len(set(keys.values())) == len(keys), "one answer for two questions"
        given_up = Counter(row.key for row in rows if row.usage is None and row.cost_usd)
        for question, bills in bills_of.items():
            # Whatever did not come through, the asker waited for it in vain, and wrote so down.
            lost = sum(bill["number"] not in came for bill in bills)
            if question in keys:  # else it has no answer at all: the sums below hold it
                assert lost <= given_up[keys[question]], f"{question}: {bills}"
            asked_again = min(REASKS, sum(bill["fault"] in UNUSABLE for bill in bills))
            assert len(bills) <= 1 + lost + asked_again, f"{question}: {bills}"
        lost = sum(bill["number"] not in came for bill in self.bills)
        assert lost <= sum(given_up.values())

    def __str__(self) -> str:
        twice = len(self.bills) - len(by_question(self.bills))
        return (
            f"{self.rows} questions, {self.stats['chat_requests']} requests, "
            f"{sum(self.stats['faults_injected'].values())} faults of "
            f"{len(self.stats['faults_injected'])} kinds, {self.starts} starts; {len(self.bills)} "
            f"bills, {twice} for questions billed before, all of them explained; billed "
            f"${self.stats['total_usd']} ≤ booked ${self.booked} ≤ cap ${self.cap} + "
            f"${self.excess} beyond leases; {self.gave_up} sessions gave up; "
            f"{dict(self.outcomes)}"
        )


def run_storm(folder: Path, server: RunningServer, rows: int, cap: str, seed: int = 0) -> Storm:
    """Ask by two askers in this process, as often as it takes."""
    server.clean(faults=faults(), fault_seed=seed, busy_after=rows // 2, busy_s=BUSY_S)
    settings = {"timeout_s": TIMEOUT_S, "reasks": REASKS, "concurrency": 64}
    settings["give_up_after_s"] = PATIENCE_S
    config = configuration(folder, server, cap, **settings)
    texts = [f"Write down the number {n}." for n in range(rows)]
    starts = gave_up = 0
    while starts < STARTS:
        starts += 1
        phase = ask(config, server, texts)
        if phase.error is None:
            break
        assert isinstance(phase.error, PausedError | ProviderDown), phase.error
        gave_up += isinstance(phase.error, ProviderDown)
    books = Books.of(config)
    return Storm(
        rows, Decimal(cap), phase.outcomes, phase.journal, sum(books.recorded(), Decimal(0)),
        books.excess().usd, starts, gave_up, server.bills(), server.stats(),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.storm", description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--cap", default="200", help="dollars")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rj-") as name, running_server() as server:
        storm = run_storm(Path(name), server, options.rows, options.cap)
        storm.check()
        print(f"{storm}; {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
