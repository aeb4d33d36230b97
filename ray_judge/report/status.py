"""`ray-judge status`: how far a run is, read from its directory without touching it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError, InputError
from ray_judge.escalation.books.books import Books
from ray_judge.run.directory import Plan, RunDirectory


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
    """Count what is on disk, of a shared journal what this run paid for.

    `answers`: questions answered for good. `spent_usd`: what the journal proves; open leases come
    on top.
    """
    run, plan, config = find_run(output)
    judged = run.judged(0)
    chunks = list(plan.chunks())
    books = Books.of(config)
    ours = books.journal().frame.filter(run=books.run)
    return {
        "finished": run.summary() is not None,
        "rows": plan.rows,
        "judged": sum(chunk.rows for chunk in chunks if chunk.name in judged),
        "chunks": len(chunks),
        "chunks_judged": len(judged),
        "shards": len(plan.shards),
        "shards_scored": len(run.scored()),
        "answers": ours.filter("final")["key"].n_unique(),
        "spent_usd": sum(ours["cost_usd"], Decimal(0)),
    }
