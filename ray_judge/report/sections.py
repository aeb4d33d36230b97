"""What the page says of the promise, the audit and the drift; and of an evaluation with labels."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ray_judge.report.drawing import figure, grid, pyplot, svg, table


def promise_section(summary: Mapping[str, Any]) -> str:
    """The guarantee, what the audit found, and how far the night is from the calibration."""
    parts = []
    promise = summary.get("promise")
    if promise:
        verdict = {True: "kept", False: "BROKEN", None: "open"}[promise["kept"]]
        parts.append(f"<h2>Guarantee: {verdict}</h2><p>{html.escape(promise['said'])}</p>")
    audit = summary.get("audit")
    if audit:
        lines = [_line("all audited rows", audit)]
        lines += [_line(f"confidence {part['group']}", part) for part in audit["by_confidence"]]
        lines += [_line(part["group"], part) for part in audit["by_column"]]
        title = "Audit: accepted verdicts against the strong judge's"
        parts.append(grid(title, ("", "rows", "agreement", "low", "high"), lines))
        parts.append("<p>Exact 95 % intervals. ")
        parts.append(f"Audited rows without a usable answer: {audit['unanswered']:,}.")
        if "abstained" in audit:
            parts.append(" Counted, though the strong judge was unsure of its verdict: ")
            parts.append(f"{audit['abstained']:,}.")
        parts.append("</p>")
    drift = summary.get("drift")
    if drift:
        parts.append(_drift(drift))
    return "".join(parts)


def _drift(drift: Mapping[str, Any]) -> str:
    """How far confidences have moved: of the only judge, or of each of several."""
    title = "Drift of confidence since the calibration"
    shares = {"share escalated, tonight": f"{drift['escalated']:.4f}"}
    then = {}
    if drift["escalated_then"] is not None:
        then["share escalated, in the calibration"] = f"{drift['escalated_then']:.4f}"
    if "judges" not in drift:
        shown = {
            "population stability index": f"{drift['psi']:.4f}",
            "Kolmogorov–Smirnov distance": f"{drift['ks']:.4f}",
            "its p-value": f"{drift['ks_p']:.3g}",
            **shares,
            "verdict": drift["verdict"],
            **then,
        }
        return table(title, shown)
    header = ("", "rows", "PSI", "KS", "its p-value", "passed on", "in the calibration", "verdict")
    lines = [
        (
            judge["judge"],
            judge["reached"],
            *(_figure(judge[key]) for key in ("psi", "ks", "ks_p", "passed_on", "passed_on_then")),
            judge["verdict"],
        )
        for judge in drift["judges"]
    ]
    return grid(title, header, lines) + table("Escalated", {**shares, **then})


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _line(name: str, part: Mapping[str, Any]) -> Sequence[Any]:
    if part["agreement"] is None:
        return (name, part["n"], None, None, None)
    return (name, part["n"], *(f"{part[key]:.4f}" for key in ("agreement", "low", "high")))


def evaluation_section(evaluation: Mapping[str, Any]) -> str:
    """The evaluation's table, its curve, and where the cascade breaks even."""
    lines = [
        (
            name,
            scored["n"],
            f"{scored['accuracy']:.4f}",
            f"{scored['low']:.4f}",
            f"{scored['high']:.4f}",
            f"{scored['macro_f1']:.4f}",
            None if scored["kappa"] is None else f"{scored['kappa']:.4f}",
        )
        for name, scored in evaluation["judges"].items()
        if scored
    ]
    header = ("", "rows", "accuracy", "low", "high", "macro-F1", "kappa")
    parts = [grid("Evaluation against the labels", header, lines)]
    if evaluation["break_even"]:
        parts.append(f"<p>{html.escape(evaluation['break_even'])}</p>")
    for key, caption in (
        ("curve", "Labelled rows that the strong judge answered: accuracy by the share asked"),
        ("so_far", "All labelled rows, as far as the strong judge was asked"),
    ):
        curve = evaluation[key]
        if curve:
            parts.append(figure(caption, curve_plot(curve)))
    curve = evaluation["curve"]
    if curve:
        parts.append(_curve_table(curve))
    return "".join(parts)


def _curve_table(curve: Mapping[str, Any]) -> str:
    """Every tenth step of the curve, with dollars."""
    steps = range(0, len(curve["fraction"]), 10)
    dollars = curve["dollars"]
    return grid(
        "The cascade by the share of rows asked",
        ("asked", "rows", "cascade", "rows at random", "oracle", "dollars"),
        [
            (
                f"{curve['fraction'][n]:.0%}",
                curve["rows"][n],
                *(f"{curve[name][n]:.4f}" for name in ("cascade", "random", "oracle")),
                None if dollars is None else f"{dollars[n]:.4f}",
            )
            for n in steps
        ],
    )


def curve_plot(curve: Mapping[str, Any]) -> str:
    """Accuracy against the share of rows asked."""
    plt = pyplot()
    drawing, axes = plt.subplots(figsize=(8, 3.5))
    lines = (
        ("oracle", "#8c959f", "--", "oracle"),
        ("random", "#8c959f", ":", "rows at random"),
        ("cascade", "#2f6f4f", "-", "cascade"),
    )
    for name, colour, style, label in lines:
        if name in curve:
            axes.plot(curve["fraction"], curve[name], color=colour, linestyle=style, label=label)
    axes.set(xlabel="share of the rows asked", ylabel="accuracy")
    axes.legend(frameon=False)
    return svg(plt, drawing)
