"""The page to read first: one run from its configuration to its scored shards.

    plan ─► judge ─► route ─► escalate ─► merge ─► report

Between the phases there are only files, so a run is "do what is not yet on disk": starting,
continuing after a crash, and running a finished run again are the same call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray_judge.calibration.document import Calibration
from ray_judge.calibration.load import calibration_of, pin_calibration
from ray_judge.cluster import check_cluster, connected
from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError, EscalationError, InputError, PromiseBroken
from ray_judge.escalation.books.books import Books
from ray_judge.escalation.escalate import check_books, check_strong, escalate
from ray_judge.escalation.processes import identity
from ray_judge.judging.engines.engine import check_engine, extra_columns
from ray_judge.judging.first_rows import chunk_to_check
from ray_judge.judging.stage import JudgeTask, judge_chunks
from ray_judge.merge import merge
from ray_judge.progress import Record, Watch
from ray_judge.records import Outcome
from ray_judge.report.page import write_page
from ray_judge.report.review import write_review
from ray_judge.report.summary import summarise
from ray_judge.routing.stream import Routed
from ray_judge.routing.tiers import Cascade, Rows
from ray_judge.run.directory import REVIEW, Plan, RunDirectory
from ray_judge.run.plan import check_unchanged, plan_input

TOLERATED = 20
"""So many rows may fail in any run: see `strong.tolerate_failed`."""


def score(config: RunConfig, watch: Watch = lambda phase, document: None) -> dict[str, Any]:
    """Run the whole cascade, or whatever of it is still to do. Returns the summary.

    `watch` is told of the phase and of all figures so far (`progress.py`), at least each second.
    Raises the errors of `errors.py`; whatever was finished by then stays finished.
    """
    config = config.within_budget()
    run = RunDirectory(config.output)
    books = Books.of(config)
    changed = run.check_config(config, lambda: books.journal().usable(books.run))
    for shard in begun.shards if (begun := run.plan()) else ():
        check_unchanged(shard)
    if summary := finished(config, run):
        return checked(config, summary)
    check(config)
    calibration = calibration_of(config)
    fitted_tiers(config, calibration)
    seconds: dict[str, float] = {}
    with timed("plan", seconds):
        check_books(config)
        plan = run.plan() or plan_input(config, extra_columns(config))
    with run.locked():
        if changed:
            run.change(config)
        plan = begin(run, config, plan)
        pin_calibration(run, calibration)
        cascade = Cascade(config, plan, run, calibration)
        with Record(watch, run.keep_progress, process=identity(), every_s=run.progress_s) as told:
            summary = carry_out(cascade, seconds, told)
    return checked(config, summary)


def check(config: RunConfig) -> None:
    """Refuse what can be known to fail before anything is read, written or asked."""
    check_strong(config)
    for tier in config.tiers():
        check_engine(tier)
    Books.of(config)
    check_cluster()


def carry_out(cascade: Cascade, seconds: dict[str, float], watch: Watch) -> dict[str, Any]:
    """All phases behind the plan. Returns the summary, once everything is written."""
    config, plan, run = cascade.config, cascade.plan, cascade.run
    figures = {"rows": plan.rows, "shards": len(plan.shards)}
    watch("plan", {**figures, "waits": "Ray starts"})
    with connected():
        watch("plan", figures)
        routed = Routed(cascade, judge(cascade, seconds, watch))
        with timed("escalate", seconds):
            answers = escalate(config, plan, routed, lambda state: watch("escalate", state))
        watch("merge", {})
        with timed("merge", seconds):
            merge(cascade, routed.frame(), answers.asked, answers.paid())
            if config.strong.abstain_below is not None:
                write_review(run, plan, config.task)
        summary, rows = summarise(cascade, answers, routed.threshold(), seconds)
        write_page(run, config.output, summary, rows)
        run.finish(summary)
    return summary


def checked(config: RunConfig, summary: dict[str, Any]) -> dict[str, Any]:
    """Give the summary of a run, or raise what it has to be ashamed of.

    EscalationError where too many of the asked rows have no verdict; InputError where no row has
    any; PromiseBroken where the audit contradicts the guarantee. Everything is written by then.
    """
    outcomes, rows = summary["outcomes"], summary["rows"]
    untouched = (Outcome.NOT_NEEDED, Outcome.DENIED_BUDGET, Outcome.PENDING)
    asked = sum(count for name, count in outcomes.items() if name not in untouched)
    failed = outcomes["failed"] + outcomes["unparseable"]
    never_asked = summary["routes"]["accept"] - outcomes["not_needed"]  # rows without text, say
    asked, failed = asked - never_asked, failed - never_asked
    if failed > max(TOLERATED, config.strong.tolerate_failed * asked):
        raise EscalationError(
            f"{failed:,} of the {asked:,} rows that the strong judge was asked about have no "
            f"verdict of it (strong.tolerate_failed): {summary['commonest_failure']}. Everything "
            "is written",
            output=config.output,
        )
    none = outcomes["failed"] + outcomes["unparseable"] == rows == summary["sources"]["none"]
    if rows and none:
        said = "no row has a verdict of any judge: the column `error` of the scored shards says why"
        raise InputError(said, output=config.output)
    promise = summary.get("promise")
    if promise and promise["kept"] is False:
        raise PromiseBroken(promise["said"])
    return summary


def finished(config: RunConfig, run: RunDirectory) -> dict[str, Any] | None:
    """Give the summary of a finished run.

    A raised cap, or a lower limit of tokens, reopens it for the rows that it denied, a raised limit
    for answers that were cut, and so do questions that failed through no fault of their own.
    """
    summary, plan = run.summary(), run.plan()
    if summary is None or plan is None:
        return None
    strong, outcomes = config.strong, summary["outcomes"]
    limit = summary["max_output_tokens"]
    more = float(strong.max_cost_usd) > summary["cap_usd"] or strong.max_output_tokens < limit
    longer = strong.max_output_tokens > limit and outcomes["unparseable"]
    if (more and outcomes["denied_budget"]) or longer or summary["asked_again"]:
        with run.locked():
            run.reopen()
        return None
    lacks_review = config.strong.abstain_below is not None and not run.storage.exists(REVIEW)
    if lacks_review or {shard.name for shard in plan.shards} - run.scored():
        return None
    return summary


def begin(run: RunDirectory, config: RunConfig, plan: Plan) -> Plan:
    """Fix what is judged: begin with this plan, or give that of a run that began."""
    if there := run.plan():
        return there
    run.begin(config, plan)
    return plan


def judge(cascade: Cascade, seconds: dict[str, float], watch: Watch) -> Generator[str, None, None]:
    """Phase A. Give the name of every chunk once the last judge's verdicts are on disk.

    Each judge but the last one judges all its chunks first: what its policy passes on is what the
    next one judges.
    """
    rows: Rows | None = None
    for number, tier in enumerate(fitted_tiers(cascade.config, cascade.calibration)):
        task = JudgeTask(tier, cascade.plan.columns, cascade.run, number)
        names = judge_tier(task, cascade.plan, rows, seconds, watch)
        if number == len(cascade.config.judges) - 1:
            yield from names
        else:
            deque(names, maxlen=0)
            rows = cascade.passed_on(number)


def fitted_tiers(config: RunConfig, calibration: Calibration | None) -> list[RunConfig]:
    """The tiers, whose reward models have what was fitted to them, unless they say so themselves.

    Raises ConfigError where nothing knows what rewards mean on the scale of the scores.
    """
    tiers, found = config.tiers(), []
    for tier, known in zip(tiers, calibration.tiers if calibration else tiers, strict=True):
        names = [name for name in ("temperature", "rewards") if getattr(tier.judge, name) is None]
        fitted = {name: getattr(known, name) for name in names} if calibration else {}
        judge = tier.judge.model_copy(update=fitted)
        if (judge.format, tier.task) == ("reward", "pointwise") and judge.rewards is None:
            raise ConfigError(
                "judge.rewards: [lowest, highest] says which rewards mean the lowest and the "
                "highest score, or route.calibration, made by `ray-judge calibrate --labels`, does"
            )
        found.append(tier.model_copy(update={"judges": (judge,)}))
    return found


def judge_tier(
    task: JudgeTask, plan: Plan, rows: Rows | None, seconds: dict[str, float], watch: Watch
) -> Generator[str, None, None]:
    """One local judge. Chunks that are on disk come first, and those with no row for it.

    None of them goes on before the first rows have shown that the judge's model fits.
    """
    committed = task.run.judged(task.tier)
    chunks = list(plan.chunks())
    counts = {c.name: c.rows if rows is None else len(rows.get(c.name, ())) for c in chunks}
    ready = {name: n for name, n in counts.items() if name in committed or not n}
    done, whole = sum(ready.values()), sum(counts.values())
    todo = [chunk for chunk in chunks if chunk.name not in ready]
    figures, local = {"judged": done, "to_judge": whole}, task.config.judge
    starts = " ".join(filter(None, ["the local judge starts:", local.engine, local.model]))
    watch("judge", {**figures, "waits": starts} if todo else figures)
    check = chunk_to_check(local, task.tier, chunks, counts)
    known, held = check is None or check in ready, list(ready)
    if known:
        yield from held
    with timed("judge", seconds):
        for name in judge_chunks(replace(task, check=check), todo, rows):
            done += counts[name]
            watch("judge", {"judged": done, "to_judge": whole})
            if known:
                yield name
                continue
            held.append(name)
            if name == check:
                known = True
                yield from held


@contextmanager
def timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the wall time of a phase."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - begun
