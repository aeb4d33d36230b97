"""The page to read first: one run from its configuration to its scored shards.

    plan ─► judge ─► route ─► escalate ─► merge ─► report

Between the phases there are only files, so a run is "do what is not yet on disk": starting,
continuing after a crash, and running a finished run again are the same call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.config import RunConfig
from ray_judge.engines.engine import check_engine, extra_columns
from ray_judge.escalation.escalate import Answers, check_books, check_strong, escalate
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
    run = RunDirectory(config.output)
    run.check_config(config)
    if summary := finished(config, run):
        return summary
    check_strong(config)
    check_engine(config)
    seconds: dict[str, float] = {}
    with run.locked():
        with timed("plan", seconds):
            plan = planned(config, run)
            check_books(config)
        watch("plan", {"rows": plan.rows, "shards": len(plan.shards)})

        with connected():
            judged = judge(config, plan, run, seconds, watch)
            routed = Routed(config, run, judged)
            with timed("escalate", seconds):
                answers = escalate(config, plan, routed, lambda state: watch("escalate", state))
            with timed("merge", seconds):
                merge(config, plan, run, routed.frame(), answers.paid())
            summary, rows = summarise(config, plan, run, answers, routed.threshold(), seconds)

        write_page(run, config, summary, rows)
        run.finish(summary)
    watch("done", summary)
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
        self, config: RunConfig, run: RunDirectory, judged: Generator[str, None, None]
    ) -> None:
        """Take chunks as they are committed."""
        self._config = config
        self._run = run
        self._judged = judged
        self._frames: list[pl.DataFrame] = []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Give each frame as soon as the policy can decide it."""
        policy = self._config.route
        if needs_every_row(policy):
            judged = [judged_frame(self._run, name) for name in sorted(self._judged)]
            self._frames = [route(pl.concat(judged), policy)]
            yield self._frames[0]
            return
        with closing(self._judged):  # whoever stops asking for frames stops the judging
            for name in self._judged:
                self._frames.append(route(judged_frame(self._run, name), policy))
                yield self._frames[-1]

    def frame(self) -> pl.DataFrame:
        """All routed rows, in the order of the input."""
        return pl.concat(self._frames).sort("chunk", "row")

    def threshold(self) -> float | None:
        """The confidence below which rows were escalated: given, or as it came out."""
        if self._config.route.threshold is not None:
            return self._config.route.threshold
        accepted = self.frame().filter(route="accept")["judge_confidence"].min()
        return None if accepted is None else float(str(accepted))


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
