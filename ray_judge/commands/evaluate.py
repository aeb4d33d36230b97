"""`ray-judge report OUTPUT --labels`: a finished run held against labels; JSON and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from ray_judge.calibration.fit import check_labels
from ray_judge.calibration.selection import interval
from ray_judge.config import RunConfig, override
from ray_judge.errors import ConfigError, InputError
from ray_judge.report import evaluation
from ray_judge.report.page import write_page
from ray_judge.report.status import find_run, finished_run
from ray_judge.report.summary import read_scored


def evaluate(
    output: str, column: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate a finished run; writes evaluation.json and the page anew.

    `column`: where the labels are; None: the run's own label column. `overrides`: what they mean,
    as in `labels={model_a: A}`. Raises InputError where there is no run, no such column, or a label
    that is no verdict.
    """
    run, summary = finished_run(output)
    _, plan, own = find_run(output)
    config: RunConfig = override(own, overrides)
    if config.document() | {"labels": own.labels} != own.document():
        raise ConfigError("of a finished run only labels can be set", run=output)
    label = column or plan.columns.label
    if label is None:
        raise InputError("this run has no label column: name one with --labels COLUMN", run=output)
    more = ("strong_cost_usd",)
    names = [shard.name for shard in plan.shards]
    rows = pl.concat(read_scored(run, name, config, label, more=more) for name in names)
    wanted = ["row_key", "judge_orders_agree"]
    judged = [run.read_judged(0, chunk.name).select(wanted) for chunk in plan.chunks()]
    keys, agreed = pa.concat_tables(judged).columns
    rows = rows.with_columns(row_key=pl.Series(keys))
    check_labels(rows["label"], config.task, label)
    found = evaluation.evaluate(rows) | {"under_swap": under_swap(agreed.to_pylist())}
    run.storage.write("evaluation.json", json.dumps(found, indent=1).encode() + b"\n")
    write_page(run, config.output, summary, rows, found)
    return found


def under_swap(agreed: Sequence[bool | None]) -> dict[str, Any] | None:
    """How often both orders agree, with its exact 95 % interval; None where one was judged."""
    known = [value for value in agreed if value is not None]
    if not known:
        return None
    low, high = interval(sum(known), len(known))
    return {"n": len(known), "agreement": sum(known) / len(known), "low": low, "high": high}


def as_text(found: dict[str, Any]) -> str:
    lines = [f"{'':<46}{'rows':>8}  accuracy  95 % interval     macro-F1   kappa"]
    for name, scored in found["judges"].items():
        if scored:
            kappa = "–" if scored["kappa"] is None else f"{scored['kappa']:.4f}"
            figures = "{n:>8,}    {accuracy:.4f}  {low:.4f} to {high:.4f}    {macro_f1:.4f}"
            lines.append(f"{name:<46}{figures.format(**scored)}  {kappa:>6}")
    if swap := found["under_swap"]:
        said = "on {agreement:.4f} of {n:,} rows ({low:.4f} to {high:.4f})".format(**swap)
        lines.append(f"\nthe local judge agrees with itself in both orders {said}")
    curve = found["curve"]
    if not curve:
        said = "The strong judge answered no labelled row: there is no curve to draw."
        return "\n".join([*lines, "", said])
    lines.append(f"\n{'asked':>6}{'rows':>8}  cascade  at random  oracle    dollars")
    for n in range(0, len(curve["fraction"]), 10):
        dollars = "–" if curve["dollars"] is None else f"{curve['dollars'][n]:.4f}"
        lines.append(
            f"{curve['fraction'][n]:>6.0%}{curve['rows'][n]:>8,}   {curve['cascade'][n]:.4f}"
            f"     {curve['random'][n]:.4f}  {curve['oracle'][n]:.4f}  {dollars:>9}"
        )
    return "\n".join([*lines, "", found["break_even"]])
