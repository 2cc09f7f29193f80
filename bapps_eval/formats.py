"""A report for people and for programs: tables as text, Markdown and CSV, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from tabulate import tabulate

from bapps_eval.report import Report, Score
from bapps_eval.scores import RESAMPLES

__all__ = [
    "Cell", "finite", "format_csv", "format_interval", "format_json", "format_markdown", "format_number",
    "format_text", "grids",
]  # fmt: skip

_WIDTH = 120


def format_number(value: float) -> str:
    """Three digits, and no zero before the point, as in the tables of the papers; a dash for what is undefined.

    Example:
        >>> [format_number(value) for value in (0.7491, -0.05, 1.0, -0.0001, math.nan)]
        ['.749', '-.050', '1.000', '.000', '-']
    """
    text = "-" if math.isnan(value) else f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def format_interval(interval: tuple[float, float]) -> str:
    """Both ends, for example ``[.742, .756]``; empty for what is undefined."""
    return "" if math.isnan(interval[0]) else f"[{', '.join(map(format_number, interval))}]"


class Cell(NamedTuple):
    """The text of a cell: a number or words, its share of the ceiling, its interval; empty where there is none."""

    text: str
    share: str = ""
    interval: str = ""


def grids(report: Report) -> list[tuple[str, list[str], list[list[Cell]]]]:
    """Title, head and rows of every table; the first cell of each row is its heading."""
    laid_out = []
    for table in report.tables:
        columns = table.columns
        measures = [column.measure for column in columns]
        tops = ["" if column.ceiling is None else format_number(column.ceiling) for column in columns]
        rows = [[Cell("items"), *(Cell(f"{column.items:,}") for column in columns)]]
        if len(set(measures) - {"mean"}) > 1:
            rows.append([Cell("measure"), *map(Cell, measures)])
        if any(tops):
            rows.append([Cell("ceiling"), *map(Cell, tops)])
        for rank, label in enumerate(report.labels):
            scores = [column.scores[rank] for column in columns]
            rows.append([Cell(label), *(_cell(score.value, score.interval, score.share) for score in scores)])
        laid_out.append((table.title, ["", *(column.heading for column in columns)], rows))
    compared = len(report.labels) > 1
    rows = []
    for label, score in zip(report.labels, report.mean.scores, strict=True):
        rows.append([Cell(label), _cell(score.value, score.interval), *(_difference(score) if compared else [])])
    head = ["", report.mean.heading, *([f"to {report.labels[0]}", "p"] if compared else [])]
    return [*laid_out, ("Mean over all sets, with its 95 % interval", head, rows)]


def _cell(value: float, interval: tuple[float, float], share: float | None = None) -> Cell:
    known = share is not None and not math.isnan(share)
    return Cell(format_number(value), f"{share:.0%}" if known else "", format_interval(interval))


def _difference(score: Score) -> list[Cell]:
    """Difference to the first metric with its signs, and its p-value; nothing for that metric itself."""
    if score.p_value is None:
        return [Cell(""), Cell("")]
    ends = map(format_number, (score.difference, *score.difference_interval))
    value, low, high = (text if text.startswith("-") else f"+{text}" for text in ends)
    interval = "" if value == "-" else f"[{low}, {high}]"
    return [Cell(value, interval=interval), Cell("<.001" if score.p_value < 0.001 else format_number(score.p_value))]


def format_text(report: Report) -> str:
    """Tables for a terminal: under each score its 95 % interval, beside it the share of the ceiling."""

    def text(cell: Cell) -> str:
        return f"{cell.text} {cell.share:>4}".rstrip() + (f"\n{cell.interval}" if cell.interval else "")

    parts = [f"{title}\n{_align([head, *([*map(text, row)] for row in rows)])}" for title, head, rows in grids(report)]
    return "\n\n".join([*parts, "\n".join(report.notes)]).rstrip()


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; those that do not fit into :data:`_WIDTH` follow below."""
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        if blocks[-1] and widths[0] + sum(2 + widths[other] for other in [*blocks[-1], column]) > _WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    tables = []
    for block in blocks:
        chosen = [[row[0], *(row[column] for column in block)] for row in rows]
        align = ("left", *["right"] * len(block))
        tables.append(tabulate(chosen, tablefmt="plain", colalign=align, disable_numparse=True))
    return "\n\n".join("\n".join(map(str.rstrip, table.split("\n"))) for table in tables)


def format_markdown(report: Report) -> str:
    """Tables in Markdown: behind each score its 95 % interval and the share of the ceiling."""
    parts = []
    for title, head, rows in grids(report):
        texts = [[_escape(" ".join(filter(None, (c.text, c.interval, c.share)))) for c in row] for row in rows]
        align = ("left", *["right"] * (len(head) - 1))
        table = tabulate(texts, [*map(_escape, head)], tablefmt="pipe", colalign=align, disable_numparse=True)
        parts.append(f"**{title}**\n\n{table}")
    return "\n\n".join([*parts, *map(_escape, report.notes)]) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def format_csv(report: Report) -> str:
    """One line per metric and column, with all digits; what does not apply is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    head = ["metric", "set", "measure", "score", "low", "high", "ceiling", "share"]
    writer.writerow([*head, "difference", "difference_low", "difference_high", "p", "n", "partial"])
    for column in report.columns:
        for metric, score in zip(report.results.metrics, column.scores, strict=True):
            numbers = [score.value, *score.interval, column.ceiling, score.share, score.difference]
            numbers += [*score.difference_interval, score.p_value]
            row = [metric.name, column.name, column.measure, *finite(numbers), column.items, "; ".join(column.partial)]
            writer.writerow(row)
    return text.getvalue()


def format_json(report: Report) -> str:
    """Scores (null where undefined), intervals, counts, settings and versions."""
    results = report.results
    singles = {column.name: column for column in report.columns if column.measure != "mean"}
    means = {column.name: column for column in report.columns if column.measure == "mean"}
    record = {
        "versions": dict(results.versions),
        "settings": dict(results.settings) | {"resamples": RESAMPLES},
        "sets": [
            {
                "name": judged.name,
                "measure": judged.measure,
                "items": len(judged),
                "groups": len(judged.strata),
                "partial": judged.partial,
                "ceiling": singles[judged.name].ceiling,
                "source": str(judged.source),
            }
            for judged in results.sets
        ],
        "unfinished": list(report.unfinished),
        "metrics": [
            asdict(metric)
            | {"scores": {name: asdict(column.scores[rank]) for name, column in singles.items()}}
            | {"means": {name: asdict(column.scores[rank]) for name, column in means.items()}}
            for rank, metric in enumerate(results.metrics)
        ],
    }
    return json.dumps(finite(record), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A structure for JSON or CSV with None in place of NaN."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
