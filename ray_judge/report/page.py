"""report.html: one self-contained page that a person reads in the morning."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import polars as pl

from ray_judge.report.drawing import figure, pyplot, svg, table
from ray_judge.report.sections import evaluation_section, promise_section
from ray_judge.run.directory import RunDirectory

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.25rem 1rem .25rem 0;text-align:left;
border-bottom:1px solid #d8dee4}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1rem 0}figcaption{color:#57606a;font-size:.9rem}svg{max-width:100%;height:auto}
"""
COLOURS = {"accept": "#2f6f4f", "escalate": "#c2571a", "audit": "#5b4b9a"}


def write_page(
    run: RunDirectory,
    output: str,
    summary: Mapping[str, Any],
    rows: pl.DataFrame,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html from the summary and the counted columns of all rows.

    `evaluation`: of `report/evaluation.py`, where the run was evaluated against labels.
    """
    figures = figure(
        "How sure the local judge was, by what was done with the row", confidence_plot(rows)
    )
    if "label" in rows.columns:
        figures += figure(
            "Agreement with the labels, by the local judge's confidence", label_plot(rows)
        )
    title = f"ray_judge: {output}"
    run.storage.write(
        "report.html",
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(headline(summary))}</p>
{table("The run", overview(summary))}
{table("Rows by route", summary["routes"])}
{table("Rows by outcome of the escalation", summary["outcomes"])}
<h2>Confidence</h2>{figures}
{promise_section(summary)}
{evaluation_section(evaluation) if evaluation else ""}
{table("Seconds by phase", summary["seconds"])}
</body></html>
""".encode(),
    )


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence: what was done, what it cost."""
    asked = summary["routes"]["escalate"] + summary["routes"]["audit"]
    share = asked / summary["rows"] if summary["rows"] else 0.0
    return (
        f"{summary['rows']:,} rows; {asked:,} ({share:.1%}) went to {summary['strong_model']}, "
        f"${float(summary['spent_usd']):.4f} of a cap of ${float(summary['cap_usd']):g} was spent."
    )


def overview(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that an operator looks at first."""
    shown = {
        "rows": summary["rows"],
        "rows with an error": summary["errors"],
        "API requests on file": summary["api_requests"],
        "spent, US dollars": f"{float(summary['spent_usd']):.6f}",
        "of it unproven after a crash": f"{float(summary['unproven_usd']):.6f}",
        "cap, US dollars": f"{float(summary['cap_usd']):g}",
        "threshold": summary["threshold"],
        "local judge": summary["judge_model"],
        "strong judge": summary["strong_model"],
    }
    if review := summary.get("review"):
        shown["rows for a person (review.parquet)"] = review["rows"]
        shown["rows whose strong verdict came without a probability"] = review[
            "without_probabilities"
        ]
    for name, value in (summary.get("label_accuracy") or {}).items():
        shown[f"agreement with the labels, {name}"] = None if value is None else f"{value:.4f}"
    return shown


def confidence_plot(rows: pl.DataFrame) -> str:
    """Histogram of confidence, stacked by route; empty when no row has a confidence."""
    known = rows.filter(pl.col("judge_confidence").is_not_null())
    if not known.height:
        return ""
    plt = pyplot()
    drawing, axes = plt.subplots(figsize=(8, 3))
    routes = [route for route in COLOURS if known.filter(route=route).height]
    axes.hist(
        [known.filter(route=route)["judge_confidence"].to_numpy() for route in routes],
        bins=40,
        stacked=True,
        color=[COLOURS[route] for route in routes],
        label=routes,
    )
    axes.set(xlabel="confidence", ylabel="rows")
    axes.legend(frameon=False)
    return svg(plt, drawing)


def label_plot(rows: pl.DataFrame) -> str:
    """Agreement with the label per tenth of the rows, the least confident first."""
    known = rows.filter(
        pl.col("judge_confidence").is_not_null() & pl.col("label").is_not_null()
    ).sort("judge_confidence")
    if known.height < 10:
        return ""
    tenth = (pl.int_range(pl.len()) * 10 // pl.len()).alias("tenth")
    right = [
        (pl.col(column) == pl.col("label")).fill_null(value=False).mean().alias(column)
        for column in ("judge_verdict", "final_verdict")
    ]
    shares = known.with_columns(tenth).group_by("tenth").agg(right).sort("tenth")
    plt = pyplot()
    drawing, axes = plt.subplots(figsize=(8, 3))
    x = [n + 1 for n in shares["tenth"].to_list()]
    axes.plot(x, shares["judge_verdict"], marker="o", color="#57606a", label="local judge alone")
    axes.plot(x, shares["final_verdict"], marker="o", color="#2f6f4f", label="cascade")
    axes.set(xlabel="tenth of the rows, by confidence (1 = least sure)", ylabel="agreement")
    axes.set(ylim=(0, 1.02))
    axes.legend(frameon=False)
    return svg(plt, drawing)
