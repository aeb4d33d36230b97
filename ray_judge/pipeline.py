"""The page to read first: one run from its configuration to its scored shards.

    plan ─► judge ─► route ─► escalate ─► merge ─► report

Between the phases there are only files, so a run is "do what is not yet on disk": starting,
continuing after a crash, and running a finished run again are the same call.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.calibrated import calibration_of, pin_calibration
from ray_judge.calibration.document import Calibration
from ray_judge.config import RunConfig
from ray_judge.costing import count_tokens, row_costs
from ray_judge.engines.engine import check_engine, extra_columns
from ray_judge.errors import PromiseBroken
from ray_judge.escalation.escalate import Answers, check_strong, escalate
from ray_judge.inputs import check_unchanged, plan_input
from ray_judge.judging import judge_chunks
from ray_judge.merging import merge
from ray_judge.report.page import write_page
from ray_judge.report.summary import summarise
from ray_judge.routing import needs_every_row, route
from ray_judge.run_directory import Plan, RunDirectory
from ray_judge.workers import connected

Watch = Callable[[str, Mapping[str, Any]], None]
"""Told what happens: (phase, figures)."""


def score(config: RunConfig, watch: Watch = lambda phase, figures: None) -> dict[str, Any]:
    """Run the whole cascade, or whatever of it is still to do. Returns the summary.

    Raises the errors of `errors.py`; whatever was finished by then stays finished.
    """
    config = config.within_budget()
    run = RunDirectory(config.output)
    run.check_config(config)
    if summary := finished(config, run):
        return kept_promise(summary)
    check_strong(config)
    check_engine(config)
    calibration = calibration_of(config)
    seconds: dict[str, float] = {}
    with run.locked():
        with timed("plan", seconds):
            plan = planned(config, run)
            pin_calibration(run, calibration)
        watch("plan", {"rows": plan.rows, "shards": len(plan.shards)})

        with connected():
            judged = judge(config, plan, run, seconds, watch)
            routed = Routed(config, run, judged, plan, calibration)
            with timed("escalate", seconds):
                answers = escalate(config, plan, routed, lambda state: watch("escalate", state))
            with timed("merge", seconds):
                merge(config, plan, run, routed.frame(), answers.paid())
            summary, rows = summarise(
                config, plan, run, answers, routed.threshold(), calibration, seconds
            )

        write_page(run, config.output, summary, rows)
        run.finish(summary)
    watch("done", summary)
    return kept_promise(summary)


def kept_promise(summary: dict[str, Any]) -> dict[str, Any]:
    """Give the summary, or raise PromiseBroken where its audit contradicts the guarantee."""
    promise = summary.get("promise")
    if promise and promise["kept"] is False:
        raise PromiseBroken(promise["said"])
    return summary


def finished(config: RunConfig, run: RunDirectory) -> dict[str, Any] | None:
    """Give the summary of a run with nothing left to do; take back the end of one that has.

    A raised cap gives another chance to the rows that were denied for lack of it.
    """
    summary, plan = run.summary(), run.plan()
    if summary is None or plan is None:
        return None
    for shard in plan.shards:
        check_unchanged(shard)
    missing = {shard.name for shard in plan.shards} - run.scored()
    raised = float(config.strong.max_cost_usd) > summary["cap_usd"]
    if missing or (raised and summary["outcomes"]["denied_budget"]):
        with run.locked():
            run.reopen()
        return None
    return summary


def planned(config: RunConfig, run: RunDirectory) -> Plan:
    """Fix what is judged: read the plan of a run that began, or make it and begin."""
    plan = run.plan()
    if plan is not None:
        for shard in plan.shards:
            check_unchanged(shard)
        return plan
    shards, columns = plan_input(config, extra_columns(config))
    plan = Plan(tuple(shards), columns, config.chunk_rows)
    run.begin(config, plan)
    return plan


def judge(
    config: RunConfig, plan: Plan, run: RunDirectory, seconds: dict[str, float], watch: Watch
) -> Generator[str, None, None]:
    """Phase A. Give the name of every chunk once its verdicts are on disk: old ones, then new."""
    committed = run.judged()
    chunks = list(plan.chunks())
    done, rows = 0, {chunk.name: chunk.rows for chunk in chunks}
    for chunk in chunks:
        if chunk.name in committed:
            done += chunk.rows
            yield chunk.name
    todo = [chunk for chunk in chunks if chunk.name not in committed]
    with timed("judge", seconds):
        for name in judge_chunks(config, todo, plan.columns, run):
            done += rows[name]
            watch("judge", {"done": done, "rows": plan.rows})
            yield name


class Routed:
    """The routed rows of a run, in frames: one per chunk as it is committed, or all at the end.

    Routing is a pure function of the judged files, so it is never stored: a run that continues
    routes again and comes to the same.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        judged: Generator[str, None, None],
        plan: Plan | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Take chunks as they are committed. Only audits and budgets need the plan."""
        self._config = config
        self._plan = plan
        self._run = run
        self._judged = judged
        self._tier = calibration.tiers[0] if calibration else None
        self._seed = run_seed(config, plan) if plan else ""
        self._frames: list[pl.DataFrame] = []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Give each frame as soon as the policy can decide it."""
        policy = self._config.route
        if needs_every_row(policy):
            judged = pl.concat([judged_frame(self._run, name) for name in sorted(self._judged)])
            if policy.policy == "budget" and self._plan is not None:
                judged = with_costs(self._config, self._plan, judged)
            self._frames = [route(judged, policy, self._tier, self._seed)]
            yield self._frames[0]
            return
        with closing(self._judged):  # whoever stops asking for frames stops the judging
            for name in self._judged:
                frame = judged_frame(self._run, name)
                self._frames.append(route(frame, policy, self._tier, self._seed))
                yield self._frames[-1]

    def frame(self) -> pl.DataFrame:
        """All routed rows, in the order of the input."""
        return pl.concat(self._frames).sort("chunk", "row")

    def threshold(self) -> float | None:
        """The confidence below which rows were escalated: given, or as it came out.

        None for `budget`, which does not route by confidence alone, and where nothing is accepted.
        """
        policy = self._config.route
        if policy.threshold is not None:
            return policy.threshold
        if policy.policy == "guarantee" and self._tier is not None:
            return self._tier.threshold if math.isfinite(self._tier.threshold) else None
        if policy.policy == "budget":
            return None
        accepted = self.frame().filter(pl.col("route") != "escalate")["judge_confidence"].min()
        return None if accepted is None else float(str(accepted))


def run_seed(config: RunConfig, plan: Plan) -> str:
    """What a run's draws stand on: its configuration and its input, so that no two nights match."""
    prints = [shard.fingerprint for shard in plan.shards]
    return hashlib.sha256("\n".join([config.digest(), *prints]).encode()).hexdigest()


def with_costs(config: RunConfig, plan: Plan, judged: pl.DataFrame) -> pl.DataFrame:
    """Add what each row's questions are expected to cost (`cost_nano_usd`)."""
    costs = row_costs(config, count_tokens(config, plan.columns, list(plan.chunks())))
    return judged.join(
        costs.select("chunk", "row", "cost_nano_usd"),
        on=["chunk", "row"],
        how="left",
        maintain_order="left",
    )


def judged_frame(run: RunDirectory, chunk: str) -> pl.DataFrame:
    """What routing and asking need of a judged chunk."""
    table: pa.Table = run.read_judged(chunk)
    frame = pl.DataFrame(
        pl.from_arrow(table.select(["row", "row_key", "judge_confidence", "question_keys"]))
    )
    return frame.with_columns(
        pl.lit(chunk).alias("chunk"), pl.col("question_keys").is_not_null().alias("askable")
    )


@contextmanager
def timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the wall time of a phase."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - begun


__all__ = ["Answers", "score"]
