"""The routed rows of a run, as phase B takes them: chunk by chunk, or all at the end."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing

import polars as pl

from ray_judge.records import Route
from ray_judge.routing.cost import correction, count_tokens, row_costs
from ray_judge.routing.policies import accepted, needs_every_row, route
from ray_judge.routing.tiers import Cascade, judged_frame


class Routed:
    """The routed rows of a run, in frames: one per chunk as it is committed, or all at the end.

    Routing is a pure function of the judged files, so it is never stored: a run that continues
    routes again and comes to the same. `judged` gives the chunks as the last judge commits them.
    """

    def __init__(self, cascade: Cascade, judged: Generator[str, None, None]) -> None:
        self._cascade, self._judged = cascade, judged
        self._policy = cascade.config.route
        self._last = len(cascade.config.judges) - 1
        self._tier = cascade.calibrated(self._last)
        self._seed = cascade.seed()
        self._frames: list[pl.DataFrame] = []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Give each frame as soon as the policy can decide it."""
        with closing(self._judged):  # whoever stops asking for frames stops the judging
            for judged in self._decidable():
                self._frames.append(self._route(judged))
                yield self._frames[-1]

    def frame(self) -> pl.DataFrame:
        """All routed rows, in the order of the input."""
        return pl.concat(self._frames).sort("chunk", "row")

    def threshold(self) -> float | None:
        """The confidence below which rows were escalated by the last judge: given, or as it came
        out. None where nothing is accepted, and for `budget`, which ranks by dollars, too.
        """
        policy = self._policy
        if policy.threshold is not None or policy.policy == "budget":
            return policy.threshold
        if policy.policy == "guarantee" and self._tier is not None:
            return self._tier.threshold if math.isfinite(self._tier.threshold) else None
        sure = self.frame().filter(pl.col("route") != Route.ESCALATE.value, tier=self._last)
        least = sure["judge_confidence"].min()
        return None if least is None else float(str(least))

    def _decidable(self) -> Iterator[pl.DataFrame]:
        """Judged rows in portions that the policy can decide on."""
        config, run, plan = self._cascade.config, self._cascade.run, self._cascade.plan
        frames = (judged_frame(run, self._last + 1, name) for name in self._judged)
        if not needs_every_row(self._policy):
            yield from frames
            return
        judged = pl.concat(frames).sort("chunk", "row")
        if self._policy.policy == "budget":
            counted = count_tokens(config, plan)
            fix = correction(config, counted, own=False)
            costs = row_costs(config, counted, fix, config.strong.mode)
            costs = costs.drop("tokens")
            judged = judged.join(costs, on=["chunk", "row"], how="left", maintain_order="left")
        yield judged

    def _route(self, judged: pl.DataFrame) -> pl.DataFrame:
        """The last policy decides on the rows that came to its judge; the others are accepted."""
        here = pl.col("tier") == self._last
        decided = route(judged.filter(here), self._policy, self._tier, self._seed)
        return pl.concat([decided, accepted(judged.filter(~here), self._policy, self._seed)])
