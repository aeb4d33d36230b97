"""`ray-judge calibrate`: from labels, or the strong judge's verdicts on a sample, to the file.

The rows are drawn from the run's input, written as a shard of their own, and go through the
ordinary `score` under `<output>/calibration/`: all of them to the local judge, and with
`--against strong` all of them to the strong one, under the configured cap. So it can be stopped
and continued like any run, and its answers are never paid for twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibrated import identity, write_calibration
from ray_judge.calibration.document import Calibration
from ray_judge.calibration.making import make
from ray_judge.calibration.selection import check_levels
from ray_judge.config import RouteConfig, RunConfig
from ray_judge.engines.engine import extra_columns
from ray_judge.errors import ConfigError, InputError
from ray_judge.inputs import plan_input
from ray_judge.pipeline import score
from ray_judge.report.summary import scored_table
from ray_judge.run_directory import RunDirectory
from ray_judge.sampling import draw, labelled_rows, take, write_sample

STRONG_SAMPLE = 500
"""Rows that the strong judge is asked about unless `--sample` says otherwise."""
ALPHA = DELTA = 0.1
PURPOSES = {"plan": "plan", "calibration": "calibrate"}
Watch = Callable[[str, Mapping[str, Any]], None]


def calibrate(
    config: RunConfig,
    *,
    labels: str | None = None,
    against_strong: bool = False,
    sample: int | None = None,
    alpha: float | None = None,
    delta: float | None = None,
    to: str | None = None,
    watch: Watch = lambda phase, figures: None,
) -> tuple[Calibration, str]:
    """Calibrate the run's local judge; give the calibration and where it was written.

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
    part = sample_run(config, "calibration", labels, sample, ask=against_strong)
    score(part, watch)
    run = RunDirectory(part.output)
    plan = run.plan()
    assert plan is not None  # it was scored just now
    rows = pl.DataFrame(
        pl.from_arrow(scored_table(run, "rows.parquet", labels, more=("judge_probs",)))
    )
    if labels is None:
        rows = rows.with_columns(label=pl.col("strong_verdict"))
        if not rows["label"].count():
            raise InputError("the strong judge gave no verdict on the sample (see the cap)")
    made = make(
        rows,
        task=config.task,
        judge=identity(config),
        alpha=alpha,
        delta=delta,
        label_kind="human" if labels else "strong",
        column=labels,
        data=plan.shards[0].fingerprint,
        strong_model=config.strong.model if against_strong else None,
    )
    place = to or config.route.calibration or f"{config.output.rstrip('/')}/calibration.json"
    write_calibration(place, made)
    return made, place


def sample_run(
    config: RunConfig, purpose: str, labels: str | None, sample: int | None, *, ask: bool
) -> RunConfig:
    """Draw rows of the input, write them as a shard, and describe the run over them.

    `labels`: only rows with a label there. `ask`: the strong judge is asked about every row,
    else about none, and no money can be spent.
    """
    if config.judges:
        raise ConfigError(
            f"{PURPOSES[purpose]} looks at one local judge: name it in judge, and the others in "
            "runs of their own"
        )
    columns: dict[str, str | None] = {**config.columns, "label": labels}
    route = RouteConfig(policy="fraction", fraction=Decimal(int(ask)))
    source = config.model_copy(update={"columns": columns, "route": route})
    shards, found = plan_input(source, extra_columns(source))
    everything = np.arange(sum(shard.rows for shard in shards), dtype=np.int64)
    rows = labelled_rows(shards, labels) if labels else everything
    if not len(rows):
        raise InputError("no row has a label", column=labels)
    if sample is None and ask and labels is None:
        sample = STRONG_SAMPLE
    rows = draw(rows, sample)
    wanted = list(dict.fromkeys([*found.needed(), *([labels] if labels else [])]))
    table = take(shards, rows, wanted)
    prints = [shard.fingerprint for shard in shards]
    seed = [source.digest(), *prints, *map(str, rows)]
    name = hashlib.sha256("\n".join(seed).encode()).hexdigest()[:12]
    home = f"{config.output.rstrip('/')}/{purpose}"
    strong = {"journal": config.strong.journal or home} if ask else {"max_cost_usd": Decimal(0)}
    return source.model_copy(
        update={
            "input": write_sample(f"{home}/{name}", table),
            "output": f"{home}/{name}/run",
            "strong": config.strong.model_copy(update=strong),
        }
    )


def as_text(made: Calibration, place: str) -> str:
    """What the command prints."""
    lines = []
    for method in made.comparison["methods"]:
        figures = [
            f"{name} {method[key]['value']:.4f} ({method[key]['low']:.4f} to "
            f"{method[key]['high']:.4f})"
            for key, name in (
                ("auroc", "AUROC"), ("aurc", "AURC"), ("ece", "ECE"), ("brier", "Brier"),
            )
            if method[key]
        ]  # fmt: skip
        lines.append(f"{method['method']:<20} {'  '.join(figures)}")
    tier = made.tiers[0]
    chosen = tier.selection
    lines += ["", made.comparison["advice"], ""]
    lines.append(
        f"P(correct) from confidence: {tier.correct.kind}, {len(tier.correct.confidence)} points"
    )
    if made.attainable:
        lines.append(
            f"threshold {chosen.threshold:.6g}: {chosen.accepted} of {chosen.rows} labelled rows "
            f"would be accepted, {chosen.right / chosen.accepted:.4f} of them right. Promise: "
            f"{made.promise()}"
        )
    lines += [f"warning: {text}" for text in made.warnings]
    lines.append(f"\n{place}")
    return "\n".join(lines)
