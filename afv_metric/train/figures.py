"""Curves over iterations, drawn by matplotlib: for model cards and reports."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Panel", "Points", "draw", "draw_svg", "points_of"]

_DASHED = (", held-out", ", untrained")
_MOST_POINTS = 300  # of a curve; more are replaced by means of neighbours

Points = Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """Curves on one pair of axes.

    A label ``"NAME, held-out"`` or ``"NAME, untrained"`` has the colour of ``"NAME"`` and is dashed.
    """

    title: str
    curves: Mapping[str, Points]
    logarithmic: bool = False


def points_of(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Finite values of a key against iterations."""
    pairs = ((record["iteration"], record.get(key)) for record in records)
    return [(float(x), float(y)) for x, y in pairs if isinstance(y, int | float) and math.isfinite(y)]


def draw(panels: Sequence[Panel], columns: int = 3) -> Figure:
    """Draw panels in rows, with one legend; a label has one colour in all of them."""
    try:
        from matplotlib import rc_context, ticker
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('curves are drawn by matplotlib: pip install "afv-metric[plots]"') from error

    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    colours: dict[str, str] = {}
    handles: dict[str, Any] = {}
    with rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(3.6 * columns + 0.6, 2.9 * rows + 0.4), layout="constrained")
        for index, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, index)
            for label, points in panel.curves.items():
                if not points:
                    continue
                kind = next((kind for kind in _DASHED if label.endswith(kind)), "")
                name = label.removesuffix(kind)
                (handles[label],) = axes.plot(
                    *np.transpose(_thin(points)),
                    color=colours.setdefault(name, f"C{len(colours)}"),
                    linestyle="dashed" if kind else "solid",
                    marker="." if len(points) <= 40 and not kind else None,
                )
            if panel.logarithmic:
                axes.set_yscale("log")
            axes.set_title(panel.title, loc="left", fontsize=10)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        if len(handles) > 1:
            # A label that begins with an underscore would be left out, so none does.
            labels = [f"\N{ZERO WIDTH SPACE}{label}" for label in handles]
            fitting = max(1, int(figure.get_figwidth() / (0.6 + 0.062 * max(map(len, labels)))))
            figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=fitting, frameon=False)
    return figure


def draw_svg(title: str, panels: Sequence[Panel], columns: int = 3) -> str:
    """Draw panels as an SVG element that is the same whenever it is drawn, with text as text."""
    figure = draw(panels, columns)
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    # Identifiers of groups would come back in every figure of a page.
    svg = re.sub(r' id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend)_\d+"', "", svg)
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _thin(points: Points) -> Points:
    """At most ``_MOST_POINTS`` points, each the mean of as many neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    groups = (np.mean(points[start : start + size], 0) for start in range(0, len(points), size))
    return [(float(x), float(y)) for x, y in groups]
