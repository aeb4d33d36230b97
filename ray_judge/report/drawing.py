"""Tables and plots of the page: HTML and SVG as text."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any


def pyplot() -> Any:
    """Matplotlib without a screen; loaded when the first plot is drawn."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    return plt


def svg(plt: Any, figure: Any) -> str:
    """Finish a figure and give it as one SVG element."""
    for side in ("top", "right"):
        figure.axes[0].spines[side].set_visible(False)
    figure.tight_layout()
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = sink.getvalue()
    return text[text.index("<svg") :]


def table(title: str, values: Mapping[str, Any]) -> str:
    """Two columns under a heading: name and value."""
    lines = "".join(
        f'<tr><th>{html.escape(str(name))}</th><td class="n">{cell(value)}</td></tr>'
        for name, value in values.items()
    )
    return f"<h2>{html.escape(title)}</h2><table>{lines}</table>"


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a header, under a heading; the first column holds names."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join(
        f"<tr><th>{html.escape(str(first))}</th>"
        + "".join(f'<td class="n">{cell(value)}</td>' for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<h2>{html.escape(title)}</h2><table><tr>{top}</tr>{lines}</table>"


def figure(caption: str, drawing: str) -> str:
    """A drawing with its caption; nothing where there is no drawing."""
    if not drawing:
        return ""
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def cell(value: Any) -> str:
    """A value as text: – for none, thousands with commas."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))
