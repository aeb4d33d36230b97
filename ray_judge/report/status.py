"""`ray-judge status`: how far a run is, read from its directory without touching it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError, InputError
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.processes import is_dead
from ray_judge.progress import PHASES, describe
from ray_judge.run.directory import Plan, RunDirectory

SILENT_AFTER = 20
"""Who has not written for so many times the usual is taken to be gone."""


def find_run(output: str) -> tuple[RunDirectory, Plan, RunConfig]:
    """Raise InputError where no run has begun."""
    run = RunDirectory(output)
    plan, config = run.plan(), run.config()
    if plan is None or config is None:
        raise InputError("there is no run here", run=output)
    return run, plan, config


def finished_run(output: str) -> tuple[RunDirectory, dict[str, Any]]:
    """A finished run and its summary. Raises InputError and ConfigError."""
    run = find_run(output)[0]
    if (summary := run.summary()) is None:
        raise ConfigError("this run is not finished: score it first", run=output)
    return run, summary


def status(output: str) -> dict[str, Any]:
    """Count what is on disk, of a shared journal what this run paid for, and say what it does now.

    `answers`: questions answered for good. `spent_usd`: what the journal proves; open leases come
    on top. `progress`: see `progress.py`; `now` says it in words.
    """
    run, plan, config = find_run(output)
    judged = run.judged(0)
    chunks = list(plan.chunks())
    books = Books.of(config)
    ours = books.journal().frame.filter(run=books.run)
    progress, excess = run.progress(), books.excess()
    return {
        "now": describe_now(progress, time.time(), run.progress_s),
        "finished": run.summary() is not None,
        "rows": plan.rows,
        "judged": sum(chunk.rows for chunk in chunks if chunk.name in judged),
        "chunks": len(chunks),
        "chunks_judged": len(judged),
        "shards": len(plan.shards),
        "shards_scored": len(run.scored()),
        "answers": ours.filter("final")["key"].n_unique(),
        "spent_usd": sum(ours["cost_usd"], Decimal(0)),
        "excess_usd": excess.usd,
        "excess_said": excess.said,
        "progress": progress,
    }


def describe_now(progress: Mapping[str, Any] | None, now: float, every_s: float) -> str:
    """Whether anybody works on a run, and what was seen last. `now`: Unix seconds.

    `every_s`: how often whoever works says so.
    """
    if progress is None:
        return "nothing was judged or asked yet, and nobody said that they do"
    said, ago = describe(progress), f"{max(0.0, now - progress['at']):.0f} s ago"
    if progress["phase"] not in PHASES:
        why = f": {progress['error']}" if "error" in progress else ""
        return f"nobody works here: {progress['phase']} {ago}{why}"
    if is_dead(progress["process"]):
        return f"nobody works here: who did was killed; {ago}: {said}"
    if now - progress["at"] > SILENT_AFTER * every_s:
        return f"nobody was heard of for long: killed, on another machine, or asleep; {ago}: {said}"
    return f"at work; {ago}: {said}"
