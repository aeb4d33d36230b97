"""`ray-judge calibrate`: from labels, or the strong judge's verdicts on a sample, to the file.

The rows are drawn from the run's input, written as a shard of their own, and go through the
ordinary `score` under `<output>/calibration/`: all of them to every local judge, each in a run of
its own, and with `--against strong` all of them once to the strong one, under the configured cap.
So it can be stopped and continued like any run, and its answers are never paid for twice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.document import Calibration, Tier, dumps, judge_name
from ray_judge.calibration.fit import FEWEST, make
from ray_judge.calibration.load import check_place, identity, write_calibration
from ray_judge.calibration.selection import check_levels
from ray_judge.config import JudgeConfig, RouteConfig, RunConfig
from ray_judge.errors import ConfigError, InputError
from ray_judge.judging.confidence import by_reward
from ray_judge.judging.engines.engine import extra_columns
from ray_judge.pipeline import check, score
from ray_judge.progress import Watch
from ray_judge.report.summary import read_scored
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.run.labels import label_columns
from ray_judge.run.plan import fingerprint, plan_input
from ray_judge.run.sample import draw, labelled_rows, take, write_sample

STRONG_SAMPLE = 500
"""Rows that the strong judge is asked about unless `--sample` says otherwise: so many for each
local judge, since a label tests one of them."""
ALPHA = DELTA = 0.1
WIDE = (-1000.0, 1000.0)
"""A scale that no reward leaves, on which a score tells its reward."""


def calibrate(
    config: RunConfig,
    *,
    labels: str | None = None,
    against_strong: bool = False,
    sample: int | None = None,
    alpha: float | None = None,
    delta: float | None = None,
    to: str | None = None,
    watch: Watch = lambda phase, document: None,
) -> tuple[Calibration, str]:
    """Calibrate the run's local judges; give the calibration and where it was written.

    `labels`: an input column. `against_strong`: buy the strong judge's verdicts, which are the
    labels unless a column is named, too. α and δ: as given, else as in `route`, else 0.1.
    """
    if labels is None and not against_strong:
        raise ConfigError("calibrate needs --labels COLUMN, or --against strong, or both")
    if against_strong and not config.strong.max_cost_usd:
        raise ConfigError("--against strong asks the strong judge, and strong.max_cost_usd is 0")
    alpha = next(a for a in (alpha, config.route.alpha, ALPHA) if a is not None)
    delta = next(d for d in (delta, config.route.delta, DELTA) if d is not None)
    check_levels(alpha, delta)
    place = to or config.route.calibration or f"{config.output.rstrip('/')}/calibration.json"
    check_place(place)
    part = sample_run(config, "calibration", labels, sample, ask=against_strong)
    judged = []
    for single in judge_runs(with_scale(part)):
        score(single, watch)
        run = RunDirectory(single.output)
        judged.append(read_scored(run, "rows.parquet", single, labels, more=("judge_probs",)))
    judged = _with_labels(judged, labels)
    scales: list[tuple[float, float] | None] = [None] * len(judged)
    for number, tier in enumerate(config.tiers()):
        if needs_scale(tier):
            judged[number], scales[number] = fit_scale(judged[number], tier.judge)
    terms = Calibration(
        alpha,
        delta,
        "human" if labels else "strong",
        fingerprint(part.input),
        label_column=labels,
        strong_model=config.strong.model if against_strong else None,
    )
    judges = [identity(tier) for tier in config.tiers()]
    made = make(judged, judges, config.task, terms)
    tiers = zip(made.tiers, scales, strict=True)
    made = replace(made, tiers=tuple(replace(tier, rewards=scale) for tier, scale in tiers))
    write_calibration(place, made)
    return made, place


def needs_scale(tier: RunConfig) -> bool:
    """Whether nothing says what the rewards of a tier's judge mean as scores."""
    judge = tier.judge
    return (judge.format, tier.task, judge.rewards) == ("reward", "pointwise", None)


def with_scale(part: RunConfig) -> RunConfig:
    """Judges whose rewards can be told from their scores, in place of those without a scale."""
    judges = [
        tier.judge.model_copy(update={"rewards": WIDE} if needs_scale(tier) else {})
        for tier in part.tiers()
    ]
    return part.model_copy(update={"judges": tuple(judges)})


def fit_scale(judged: pl.DataFrame, judge: JudgeConfig) -> tuple[pl.DataFrame, tuple[float, float]]:
    """What rewards mean the lowest and the highest score, by least squares of the labels, and the
    rows as they are judged then. `judged`: as the scale `WIDE` has them. Raises InputError.
    """
    low, high = judge.score_range()
    names = [str(score) for score in range(low, high + 1)]
    probs = judged["judge_probs"].struct.unnest().select(names).to_numpy().astype(np.float64)
    place = (probs @ np.arange(low, high + 1) - low) / (high - low)
    rewards = WIDE[0] + place * (WIDE[1] - WIDE[0])
    labels = judged["label"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = ~np.isnan(rewards + labels)
    slope, begin = np.polyfit(rewards[known], labels[known], 1) if known.any() else (0.0, 0.0)
    if not slope > 0:
        raise InputError("the labels do not rise with the rewards of this model", model=judge.model)
    scale = float((low - begin) / slope), float((high - begin) / slope)
    scaled = judge.model_copy(update={"rewards": scale})
    found = [None if np.isnan(reward) else by_reward(reward, scaled) for reward in rewards]
    fields = {"judge_verdict": "verdict", "judge_confidence": "confidence", "judge_probs": "probs"}
    return judged.with_columns(
        pl.Series(column, [getattr(one, field, None) for one in found], judged[column].dtype)
        for column, field in fields.items()
    ), scale


def _with_labels(judged: Sequence[pl.DataFrame], labels: str | None) -> list[pl.DataFrame]:
    """Give every judge's rows the strong verdicts, which only the first run asked for."""
    strong = judged[0]["strong_verdict"]
    rows = [frame.with_columns(strong_verdict=strong) for frame in judged]
    if labels is not None:
        return rows
    if not strong.count():
        raise InputError("the strong judge gave no verdict on the sample (see the cap)")
    return [frame.with_columns(label=strong) for frame in rows]


def judge_runs(part: RunConfig) -> list[RunConfig]:
    """One run per local judge over the whole sample; only the first one asks the strong judge."""
    runs = []
    for number, tier in enumerate(part.tiers(), 1):
        changes: dict[str, Any] = {"route": part.route}
        if number > 1:
            free = tier.strong.model_copy(update={"max_cost_usd": Decimal(0)})
            nobody = RouteConfig(policy="fraction", fraction=Decimal(0))
            changes |= {"route": nobody, "strong": free, "output": f"{part.output}-{number}"}
        runs.append(tier.model_copy(update=changes))
    return runs


def sample_run(
    config: RunConfig,
    purpose: str,
    labels: str | None,
    sample: int | None,
    *,
    ask: bool,
    calibration: Calibration | None = None,
    whole: Plan | None = None,
) -> RunConfig:
    """Draw rows of the input, write them as a shard, and describe the run over them.

    `labels`: only rows with a label there. `ask`: the strong judge is asked about every row that
    comes to it, else about none, and no money can be spent. `calibration`: what the run's own
    `route.calibration` holds, where one of several judges routes by it. `whole`: the input, where
    it has been looked at.
    """
    rule = config.label_rule(labels) if labels else None
    columns = {**config.columns, "label": rule or labels}
    route = RouteConfig(policy="fraction", fraction=Decimal(int(ask)))
    if len(config.judges) > 1 and calibration is not None:
        route = route.model_copy(update={"calibration": config.route.calibration})
    source = config.model_copy(update={"columns": columns, "route": route})
    whole = whole or plan_input(source, extra_columns(source))
    shards, found = whole.shards, whole.columns
    everything = np.arange(whole.rows, dtype=np.int64)
    rows = labelled_rows(shards, labels) if labels else everything
    if labels and len(rows) < FEWEST:
        said = f"{len(rows)} rows have a label; at least {FEWEST} are needed"
        raise InputError(said, column=labels)
    if sample is None and ask and labels is None:
        sample = STRONG_SAMPLE * len(config.tiers())
    rows = draw(rows, sample)
    named = label_columns(source, labels) if labels else []
    wanted = list(dict.fromkeys([*found.needed(), *named]))
    seed = [source.digest(), *(shard.fingerprint for shard in shards), *map(str, rows)]
    if calibration is not None and route.calibration:  # another is another run
        seed.append(hashlib.sha256(dumps(calibration)).hexdigest())
    name = hashlib.sha256("\n".join(seed).encode()).hexdigest()[:12]
    home = f"{config.output.rstrip('/')}/{purpose}"
    strong = {"books": config.strong.books or home} if ask else {"max_cost_usd": Decimal(0)}
    asked = config.strong.model_copy(update=strong)
    part = source.model_copy(update={"output": f"{home}/{name}/run", "strong": asked})
    check(part)
    place = write_sample(f"{home}/{name}", take(shards, rows, wanted))
    return part.model_copy(update={"input": place})


def as_text(made: Calibration, place: str) -> str:
    lines: list[str] = []
    for number, tier in enumerate(made.tiers):
        lines += [judge_name(tier.judge, number), *_judge_lines(tier), ""]
    if made.attainable:
        lines.append(f"Promise: {made.promise()}")
    lines += [f"warning: {text}" for text in made.warnings]
    return "\n".join([*lines, "", place])


def _judge_lines(tier: Tier) -> list[str]:
    lines = []
    assert tier.comparison is not None  # `make` compares every judge's methods
    for method in tier.comparison.methods:
        said = [
            f"{name} {one.value:.4f} ({one.low:.4f} to {one.high:.4f})"
            for name in ("AUROC", "AURC", "ECE", "Brier")
            if (one := getattr(method, name.lower()))
        ]
        lines.append(f"{method.method:<20} {'  '.join(said)}")
    chosen, points = tier.selection, len(tier.correct.confidence)
    lines += [tier.comparison.advice, f"P(correct): {tier.correct.kind}, {points} points"]
    if tier.rewards:
        lines.append(
            "rewards of the lowest and the highest score: {:.6g}, {:.6g}".format(*tier.rewards)
        )
    if tier.temperature:
        lines.append(
            f"P(A): temperature {tier.temperature:.6g} (judge_probs of runs that use this)"
        )
    if math.isfinite(tier.threshold):
        lines.append(
            f"threshold {tier.threshold:.6g}: {chosen.accepted} of the {chosen.rows} labelled rows "
            f"that test it would be accepted, {chosen.right / chosen.accepted:.4f} of them right"
        )
    return lines
