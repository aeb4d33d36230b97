"""report.html, for people: `page.html.j2` is what it says; here are its plots and numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from ray_judge.run.directory import RunDirectory

COLOURS = {"accept": "#2f6f4f", "escalate": "#c2571a", "audit": "#5b4b9a"}
GREY, GREEN = "#57606a", "#2f6f4f"
CURVES = (
    ("oracle", "#8c959f", "--", "oracle"),
    ("random", "#8c959f", ":", "rows at random"),
    ("cascade", GREEN, "-", "cascade"),
)


def write_page(
    run: RunDirectory,
    output: str,
    summary: Mapping[str, Any],
    rows: pl.DataFrame,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html from the summary, the counted columns of all rows, and the evaluation."""
    curves = evaluation or {}
    plots = {
        "confidence": confidence_plot(rows),
        "labels": label_plot(rows) if "label" in rows.columns else "",
        "curve": curve_plot(curves.get("curve")),
        "so_far": curve_plot(curves.get("so_far")),
    }
    text = _template().render(output=output, summary=summary, evaluation=evaluation, plots=plots)
    run.storage.write("report.html", text.encode())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": _cell, "four": _four}
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text("utf-8"))


def _cell(value: Any) -> Any:
    """– for nothing, thousands with commas."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def confidence_plot(rows: pl.DataFrame) -> str:
    """Histogram of confidence, stacked by route, as SVG; empty when no row has a confidence."""
    known = rows.drop_nulls("judge_confidence")
    routes = [route for route in COLOURS if known.filter(route=route).height]
    if not routes:
        return ""
    axes = _axes(xlabel="confidence", ylabel="rows")
    values = [known.filter(route=route)["judge_confidence"].to_numpy() for route in routes]
    colours = [COLOURS[route] for route in routes]
    axes.hist(values, bins=40, stacked=True, color=colours, label=routes)
    return _svg(axes)


def label_plot(rows: pl.DataFrame) -> str:
    """Agreement with the label per tenth of the rows, the least confident first, as SVG."""
    known = rows.drop_nulls(["judge_confidence", "label"]).sort("judge_confidence")
    if known.height < 10:
        return ""
    right = [
        (pl.col(column) == pl.col("label")).fill_null(value=False).mean().alias(column)
        for column in ("judge_verdict", "final_verdict")
    ]
    tenth = (1 + pl.int_range(pl.len()) * 10 // pl.len()).alias("tenth")
    shares = known.with_columns(tenth).group_by("tenth").agg(right).sort("tenth")
    axes = _axes(xlabel="tenth of the rows, by confidence (1 = least sure)", ylabel="agreement")
    for column, colour, label in (
        ("judge_verdict", GREY, "local judge alone"),
        ("final_verdict", GREEN, "cascade"),
    ):
        axes.plot(shares["tenth"], shares[column], marker="o", color=colour, label=label)
    axes.set(ylim=(0, 1.02))
    return _svg(axes)


def curve_plot(curve: Mapping[str, Any] | None) -> str:
    """Accuracy against the share of rows asked, as SVG."""
    if not curve:
        return ""
    axes = _axes(xlabel="share of the rows asked", ylabel="accuracy")
    for name, colour, style, label in CURVES:
        if name in curve:
            axes.plot(curve["fraction"], curve[name], color=colour, ls=style, label=label)
    return _svg(axes)


def _axes(**labels: str) -> Any:
    from matplotlib.figure import Figure  # half a second to import

    axes = Figure(figsize=(8, 3), layout="tight").subplots()
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(axes: Any) -> str:
    axes.legend(frameon=False)
    sink = io.StringIO()
    axes.figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()[sink.getvalue().index("<svg") :]
