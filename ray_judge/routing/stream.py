"""The routed rows of a run, as phase B takes them: chunk by chunk, or all at the end."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing

import polars as pl

from ray_judge.calibration.document import Calibration
from ray_judge.config import RunConfig
from ray_judge.records import Route
from ray_judge.routing.cost import count_tokens, row_costs
from ray_judge.routing.policies import accepted, needs_every_row, route
from ray_judge.routing.tiers import judged_frame, run_seed
from ray_judge.run.directory import Plan, RunDirectory


class Routed:
    """The routed rows of a run, in frames: one per chunk as it is committed, or all at the end.

    Routing is a pure function of the judged files, so it is never stored: a run that continues
    routes again and comes to the same.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        run: RunDirectory,
        judged: Generator[str, None, None],
        calibration: Calibration | None = None,
    ) -> None:
        """Take chunks as they are committed."""
        self._config, self._plan, self._run = config, plan, run
        self._last = len(config.tiers()) - 1
        self._policy = config.tiers()[-1].route
        self._judged = judged
        self._calibration = calibration
        self._seed = run_seed(config, plan)
        self._frames: list[pl.DataFrame] = []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Give each frame as soon as the policy can decide it."""
        if needs_every_row(self._policy):
            judged = pl.concat([self._frame(name) for name in sorted(self._judged)])
            if self._policy.policy == "budget":
                judged = with_costs(self._config, self._plan, judged)
            self._frames = [self._route(judged)]
            yield self._frames[0]
            return
        with closing(self._judged):  # whoever stops asking for frames stops the judging
            for name in self._judged:
                self._frames.append(self._route(self._frame(name)))
                yield self._frames[-1]

    def frame(self) -> pl.DataFrame:
        """All routed rows, in the order of the input."""
        return pl.concat(self._frames).sort("chunk", "row")

    def threshold(self) -> float | None:
        """The confidence below which rows were escalated: given, or as it came out.

        None for `budget`, which does not route by confidence alone, and where nothing is accepted.
        With several local judges it is the last one's.
        """
        policy = self._policy
        if policy.threshold is not None:
            return policy.threshold
        if policy.policy == "guarantee" and self._calibration is not None:
            threshold = self._calibration.tiers[self._last].threshold
            return threshold if math.isfinite(threshold) else None
        if policy.policy == "budget":
            return None
        sure = self.frame().filter(
            (pl.col("route") != Route.ESCALATE.value) & (pl.col("tier") == self._last)
        )
        least = sure["judge_confidence"].min()
        return None if least is None else float(str(least))

    def _frame(self, chunk: str) -> pl.DataFrame:
        return judged_frame(self._run, self._last + 1, chunk)

    def _route(self, judged: pl.DataFrame) -> pl.DataFrame:
        """The last policy decides on the rows that came to its judge; the others are accepted."""
        last = pl.col("tier") == self._last
        calibrated = self._calibration.tiers[self._last] if self._calibration else None
        decided = route(judged.filter(last), self._policy, calibrated, self._seed)
        if not self._last:
            return decided
        return pl.concat([decided, accepted(judged.filter(~last), self._config.route, self._seed)])


def with_costs(config: RunConfig, plan: Plan, judged: pl.DataFrame) -> pl.DataFrame:
    """Add what each row's questions are expected to cost (`cost_nano_usd`)."""
    costs = row_costs(config, count_tokens(config, plan.columns, list(plan.chunks())))
    return judged.join(
        costs.select("chunk", "row", "cost_nano_usd"),
        on=["chunk", "row"],
        how="left",
        maintain_order="left",
    )
