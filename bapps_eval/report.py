"""What came out, for people and for programs: tables as text, Markdown and CSV, and everything as JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from afv_metric.files import atomic_write
from bapps_eval.data import TASKS, JudgedSet, PairSet, SameSet, TripletSet
from bapps_eval.results import MetricRecord, Results
from bapps_eval.scores import RESAMPLES, SEED, ceiling, summarise

__all__ = [
    "Cell",
    "Column",
    "Report",
    "Score",
    "Table",
    "family",
    "format_interval",
    "format_markdown",
    "format_number",
    "format_share",
    "format_text",
    "grids",
    "make_report",
    "write_csv",
    "write_json",
    "write_markdown",
]

_EN_DASH = "\N{EN DASH}"
_WIDTH = 120


@dataclass(frozen=True)
class Score:
    """What one metric reached in one column.

    Attributes:
        value: The score.
        interval: Its 95 % bootstrap interval.
        share: Score over ceiling; None where people have no ceiling.
        difference: Score less that of the first metric.
        difference_interval: Its 95 % interval, over the same resamples for both; only of means.
        p_value: Two-sided paired bootstrap p-value of the difference; None for the first metric.
        secondary: Further scores by name.
        secondary_intervals: Their 95 % intervals.
    """

    value: float
    interval: tuple[float, float]
    share: float | None
    difference: float
    difference_interval: tuple[float, float] | None
    p_value: float | None
    secondary: Mapping[str, float] = field(default_factory=dict)
    secondary_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One set, or the mean over several, under every metric.

    Attributes:
        name: What it is called where it stands alone, ``2afc/cnn`` or ``2AFC distortion``.
        heading: What it is called in its table, ``cnn`` or ``distortion``.
        measure: What the scores are; of a mean, ``mean``.
        items: Number of items.
        partial: Of each set in it that is not whole, what there is of it.
        ceiling: What one human reaches; None if unknown.
        scores: One for each metric.
    """

    name: str
    heading: str
    measure: str
    items: int
    partial: tuple[str, ...]
    ceiling: float | None
    scores: tuple[Score, ...]

    @property
    def mark(self) -> str:
        """A star if it is partial."""
        return "*" if self.partial else ""


@dataclass(frozen=True)
class Table:
    """Columns that belong together.

    Attributes:
        title: What it is about.
        columns: Its columns, in order.
    """

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Report:
    """All that the outputs say.

    Attributes:
        results: What was measured.
        tables: One for 2AFC, JND and judged pairs each, as far as there are sets.
        mean: Over all sets.
    """

    results: Results
    tables: tuple[Table, ...]
    mean: Column

    @property
    def metrics(self) -> list[MetricRecord]:
        """The rows."""
        return self.results.metrics

    @property
    def labels(self) -> list[str]:
        """What the metrics are called in tables: without the name of the bundle if there is only one."""
        bundles = {metric.bundle for metric in self.metrics} - {None}
        only = f"/{bundles.pop()}" if len(bundles) == 1 else ""
        return [metric.name.replace(only, "", 1) if metric.bundle else metric.name for metric in self.metrics]

    @property
    def notes(self) -> list[str]:
        """Sentences that belong below the tables."""
        notes = [f"* partial: {text}" for text in self.mean.partial]
        if self.results.unfinished:
            notes.append(f"The run is unfinished; still to measure: {', '.join(self.results.unfinished)}.")
        bundles = {(metric.bundle, metric.bundle_hash) for metric in self.metrics if metric.bundle}
        notes += [f"Bundle {name}: {(digest or 'unknown')[:16]}." for name, digest in sorted(bundles)]
        if any(column.ceiling is not None for table in self.tables for column in table.columns):
            notes.append("Ceiling: expected agreement of one human with the panel. Per cent: share of it reached.")
        if len(self.metrics) > 1:
            notes.append(f"p: two-sided, paired bootstrap, of the difference to {self.labels[0]}.")
        return notes


def make_report(results: Results) -> Report:
    """Score what was measured.

    Args:
        results: At least one set.

    Returns:
        Scores in tables like those of the papers: families, the averages of the two families of distortions, of
        the four of real algorithms, and of all.

    Raises:
        ValueError: If no set is done.
    """
    if not results.sets:
        raise ValueError("there is nothing to report: no set is finished")
    scored = _Scored(results)
    tables = [scored.table(kind) for kind in _KINDS]
    everything = range(len(results.sets))
    mean = scored.mean("mean of all", f"mean of {len(everything)} sets" if len(everything) > 1 else "mean", everything)
    return Report(results, tuple(table for table in tables if table.columns), mean)


class _Kind(NamedTuple):
    """One of the tables.

    Attributes:
        name: Start of the names of its means.
        title: Its title.
        sets: Which sets are in it.
        groups: Families that stand together, and what their mean is called; no name, no mean.
    """

    name: str
    title: str
    sets: type[JudgedSet]
    groups: tuple[tuple[str, tuple[str, ...]], ...]


_KINDS = (
    _Kind(
        "2AFC",
        "2AFC: agreement with people on which of two images is nearer to a third",
        TripletSet,
        (
            ("distortion", ("2afc/traditional", "2afc/cnn")),
            ("real", ("2afc/superres", "2afc/deblur", "2afc/color", "2afc/frameinterp")),
        ),
    ),
    _Kind(
        "JND",
        "JND: average precision of finding the pairs that look the same to people",
        SameSet,
        (("", ("jnd/traditional", "jnd/cnn")),),
    ),
    _Kind("judged pairs", "Judged pairs: rank correlation with the distances that people gave", PairSet, ()),
)


class _Scored:
    """Scores of results, from which columns are made."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._summaries = summarise(results.sets, results.distances)
        self._ceilings = [ceiling(judged) for judged in results.sets]

    def table(self, kind: _Kind) -> Table:
        """All columns of one kind, with their means."""
        rest = {judged.name: index for index, judged in enumerate(self._results.sets) if isinstance(judged, kind.sets)}
        members = list(rest.values())
        columns: list[Column] = []
        whole = False  # whether there is a mean of all yet
        for label, families in kind.groups:
            chosen = [rest.pop(family) for family in families if family in rest]
            columns += map(self.single, chosen)
            if label and len(chosen) == len(families):
                whole = len(chosen) == len(members)
                columns.append(self.mean(f"{kind.name} {label}", label, chosen))
        columns += map(self.single, rest.values())
        if len(members) > 1 and not whole:
            columns.append(self.mean(f"{kind.name} all", "all", members))
        return Table(kind.title, tuple(columns))

    def single(self, index: int) -> Column:
        """The column of one set."""
        judged, top = self._results.sets[index], self._ceilings[index]
        first = self._summaries[0].scores[index]
        scores = tuple(
            Score(
                value=summary.scores[index],
                interval=summary.intervals[index],
                share=_share(summary.scores[index], top),
                difference=summary.scores[index] - first,
                difference_interval=None,
                p_value=summary.p_values[index] if rank else None,
                secondary=summary.secondary[index],
                secondary_intervals=summary.secondary_intervals[index],
            )
            for rank, summary in enumerate(self._summaries)
        )
        return Column(judged.name, family(judged), judged.measure, len(judged), _partial([judged]), top, scores)

    def mean(self, name: str, heading: str, chosen: Sequence[int]) -> Column:
        """The column of a mean over sets."""
        sets = [self._results.sets[index] for index in chosen]
        tops = [self._ceilings[index] for index in chosen]
        known = [top for top in tops if top is not None]
        top = sum(known) / len(known) if len(known) == len(tops) else None
        if len(chosen) == len(self._results.sets):
            summaries = self._summaries
        else:
            summaries = summarise(sets, [[columns[index] for index in chosen] for columns in self._results.distances])
        scores = tuple(
            Score(
                value=summary.mean,
                interval=summary.interval,
                share=_share(summary.mean, top),
                difference=summary.difference,
                difference_interval=summary.difference_interval,
                p_value=summary.p_value if rank else None,
            )
            for rank, summary in enumerate(summaries)
        )
        return Column(name, heading, "mean", sum(map(len, sets)), _partial(sets), top, scores)


def family(judged: JudgedSet) -> str:
    """What a set is called among those of its kind: the family of one of BAPPS, the name of any other."""
    task, _, rest = judged.name.partition("/")
    return rest if task in TASKS else judged.name


def _share(value: float, top: float | None) -> float | None:
    return None if top is None else value / top


def _partial(sets: Iterable[JudgedSet]) -> tuple[str, ...]:
    return tuple(f"{judged.name}: {judged.partial}" for judged in sets if judged.partial)


def format_number(value: float) -> str:
    """Three digits, and no zero before the point, as in the tables of the papers.

    Example:
        >>> [format_number(value) for value in (0.7491, -0.05, 1.0, -0.0001)]
        ['.749', '-.050', '1.000', '.000']
    """
    text = f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def format_interval(interval: tuple[float, float]) -> str:
    """Both ends, for example ``[.742, .756]``."""
    return f"[{', '.join(map(format_number, interval))}]"


def format_share(share: float | None) -> str:
    """Per cent of the ceiling; empty where there is none."""
    return "" if share is None else f"{share:.0%}"


def _format_p(value: float | None) -> str:
    """A p-value; empty where there is none."""
    return "" if value is None else "<.001" if value < 0.001 else format_number(value)


def _format_difference(score: Score) -> str:
    """Difference to the first metric with its sign, and its interval if it has one."""
    ends = (score.difference, *(score.difference_interval or ()))
    value, *interval = [text if text.startswith("-") else f"+{text}" for text in map(format_number, ends)]
    return f"{value} [{', '.join(interval)}]" if interval else value


Cell = Callable[[float, tuple[float, float] | None, float | None], str]


def grids(report: Report, cell: Cell) -> list[tuple[str, list[list[str]]]]:
    """All tables as rows of text; the first row and the first cell of each row are headings.

    Args:
        report: What to lay out.
        cell: Writes a number, its interval if it has one, and its share of the ceiling if there is one.

    Returns:
        Title and rows of each table.
    """
    laid_out = []
    for table in report.tables:
        columns = table.columns
        tops = [column.ceiling for column in columns]
        measures = [column.measure for column in columns]
        rows = [["", *(column.heading + column.mark for column in columns)]]
        rows.append(["items", *(f"{column.items:,}" for column in columns)])
        if len(set(measures) - {"mean"}) > 1:
            rows.append(["measure", *measures])
        if set(tops) != {None}:
            rows.append(["ceiling", *("" if top is None else cell(top, None, None) for top in tops)])
        for rank, label in enumerate(report.labels):
            scores = [column.scores[rank] for column in columns]
            rows.append([label, *(cell(score.value, score.interval, score.share) for score in scores)])
        laid_out.append((table.title, rows))
        further = [(column, name) for column in columns for name in column.scores[0].secondary]
        further.sort(key=lambda pair: (pair[1].endswith("overall"), pair[1]))
        if further:
            rows = [["", *(column.heading + column.mark for column, _ in further)]]
            rows.append(["measure", *(name for _, name in further)])
            for rank, label in enumerate(report.labels):
                found = [(column.scores[rank], name) for column, name in further]
                cells = [cell(score.secondary[name], score.secondary_intervals[name], None) for score, name in found]
                rows.append([label, *cells])
            laid_out.append((f"{table.title.partition(':')[0]}: further correlations", rows))
    laid_out.append(("Mean over all sets, with its 95 % interval", _mean_rows(report)))
    return laid_out


def _mean_rows(report: Report) -> list[list[str]]:
    mean, compared = report.mean, len(report.metrics) > 1
    rows = [["", mean.heading + mean.mark, *([f"to {report.labels[0]}", "p"] if compared else [])]]
    for rank, (label, score) in enumerate(zip(report.labels, mean.scores, strict=True)):
        row = [label, f"{format_number(score.value)} {format_interval(score.interval)}"]
        rows.append(
            [*row, *([_format_difference(score) if rank else "", _format_p(score.p_value)] if compared else [])]
        )
    return rows


def format_text(report: Report) -> str:
    """Tables for a terminal: under each score its 95 % interval, beside it the share of the ceiling."""

    def cell(value: float, interval: tuple[float, float] | None, share: float | None) -> str:
        first = f"{format_number(value)} {format_share(share):>4}"
        return f"{first}\n{_EN_DASH.join(map(format_number, interval))}" if interval else first

    parts = [f"{title}\n{_align(rows)}" for title, rows in grids(report, cell)]
    return "\n\n".join([*parts, "\n".join(report.notes)]).rstrip()


def format_markdown(report: Report) -> str:
    """Tables in Markdown: behind each score its 95 % interval and the share of the ceiling."""

    def cell(value: float, interval: tuple[float, float] | None, share: float | None) -> str:
        parts = [format_number(value), format_interval(interval) if interval else "", format_share(share)]
        return " ".join(filter(None, parts))

    parts = []
    for title, (head, *body) in grids(report, cell):
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(map(_escape_markdown, row))} |" for row in rows))
    return "\n\n".join([*parts, *map(_escape_markdown, report.notes)]) + "\n"


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to one width, the first to the left; a cell may have several lines.

    If they do not fit into :data:`_WIDTH` they stand closer, and what is still too much follows below.
    """
    lines = [line for row in rows for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= _WIDTH else 1
    blocks: list[list[int]] = [[]]
    room = _WIDTH - widths[0]
    for column, width in enumerate(widths[1:], start=1):
        room -= gap + width
        if room < 0 and blocks[-1]:
            blocks.append([])
            room = _WIDTH - widths[0] - gap - width
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join(
            (" " * gap)
            .join([line[0].ljust(widths[0]), *(line[column].rjust(widths[column]) for column in block)])
            .rstrip()
            for line in lines
        )
        for block in blocks
    )


def write_markdown(path: str | os.PathLike[str], report: Report) -> None:
    """Write the tables as Markdown."""
    with atomic_write(path) as temporary:
        temporary.write_text(format_markdown(report), encoding="utf-8")


def write_csv(path: str | os.PathLike[str], report: Report) -> None:
    """Write a line for each metric, column and measure, with all digits; what does not apply is empty."""
    head = ["metric", "set", "measure", "score", "low", "high", "ceiling", "share"]
    head += ["difference", "difference_low", "difference_high", "p", "n", "partial"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for column in _all_columns(report):
            partial = "; ".join(column.partial)
            for metric, score in zip(report.metrics, column.scores, strict=True):
                told = [score.value, *score.interval, column.ceiling, score.share, score.difference]
                told += [*(score.difference_interval or (None, None)), score.p_value]
                writer.writerow([metric.name, column.name, column.measure, *told, column.items, partial])
                for name, value in score.secondary.items():
                    told = [value, *score.secondary_intervals[name], *[None] * 6]
                    writer.writerow([metric.name, column.name, name, *told, column.items, partial])


def _all_columns(report: Report) -> list[Column]:
    return [*(column for table in report.tables for column in table.columns), report.mean]


def write_json(path: str | os.PathLike[str], report: Report) -> None:
    """Write scores, intervals, counts, settings, seed and versions: all it takes to tell two runs apart.

    Scores are fractions: 2AFC and JND in [0, 1], correlations in [-1, 1].
    """
    results, columns = report.results, _all_columns(report)
    singles = {column.name: column for column in columns if column.measure != "mean"}
    means = {column.name: column for column in columns if column.measure == "mean"}
    record = {
        "versions": dict(results.versions),
        "settings": dict(results.settings) | {"seed": SEED, "resamples": RESAMPLES},
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
        "unfinished": list(results.unfinished),
        "metrics": [
            asdict(metric)
            | {"scores": {name: asdict(column.scores[rank]) for name, column in singles.items()}}
            | {"means": {name: asdict(column.scores[rank]) for name, column in means.items()}}
            for rank, metric in enumerate(report.metrics)
        ],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
