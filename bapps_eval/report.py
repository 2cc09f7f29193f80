"""The scores of a run, in tables like those of the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bapps_eval.data import TASKS, JudgedSet
from bapps_eval.results import Results
from bapps_eval.scores import Sample, ceiling, p_value, score_set

__all__ = ["Column", "Report", "Score", "Table", "family", "make_report"]

_TITLES = {
    "triplets": ("2AFC", "agreement with people on which of two images is nearer to a third"),
    "same": ("JND", "average precision of finding the pairs that look the same to people"),
    "pairs": ("judged pairs", "rank correlation with the distances that people gave"),
}
# Families that stand together in the table of a kind, and the name of their mean, if it has one.
_TOGETHER: dict[str, dict[str, tuple[str, ...]]] = {
    "triplets": {
        "distortion": ("2afc/traditional", "2afc/cnn"),
        "real": ("2afc/superres", "2afc/deblur", "2afc/color", "2afc/frameinterp"),
    },
    "same": {"": ("jnd/traditional", "jnd/cnn")},
    "pairs": {},
}


@dataclass(frozen=True)
class Score:
    """The score of one metric in one column; NaN where it is undefined.

    Intervals are those of the bootstrap with 95 %. The difference is that to the score of the first metric, over the
    same resamples for both; its two-sided p-value is None for that metric. The share is the score over the ceiling;
    None where people have none.
    """

    value: float
    interval: tuple[float, float]
    share: float | None
    difference: float
    difference_interval: tuple[float, float]
    p_value: float | None


@dataclass(frozen=True)
class Column:
    """One set, or the mean over several, whose measure is ``mean``, under every metric."""

    name: str  # where it stands alone, "2afc/cnn" or "2AFC distortion"
    heading: str  # in its table, "cnn" or "distortion", with a star if it is partial
    measure: str
    items: int
    partial: tuple[str, ...]  # for each set in it that is not whole, the part that is there
    ceiling: float | None  # score of one human, if known
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Table:
    """Columns of one kind, ``2AFC``, ``JND`` or ``judged pairs``, and their title."""

    kind: str
    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Report:
    """Everything that the outputs say: the finished sets without their failed items, and their scores."""

    results: Results
    tables: tuple[Table, ...]
    mean: Column
    unfinished: tuple[str, ...]

    @property
    def columns(self) -> list[Column]:
        """All columns, the mean over all sets last."""
        return [*(column for table in self.tables for column in table.columns), self.mean]

    @property
    def labels(self) -> list[str]:
        """Names of the metrics in tables: without the name of the bundle if there is only one."""
        metrics = self.results.metrics
        bundles = {metric.bundle for metric in metrics} - {None}
        only = f"/{bundles.pop()}" if len(bundles) == 1 else ""
        return [metric.name.replace(only, "", 1) if metric.bundle else metric.name for metric in metrics]

    @property
    def notes(self) -> list[str]:
        """Sentences that belong below the tables."""
        notes = [f"* partial: {text}" for text in self.mean.partial]
        if self.unfinished:
            notes.append(f"The run is unfinished; still to measure: {', '.join(self.unfinished)}.")
        metrics = self.results.metrics
        bundles = {(metric.bundle, metric.bundle_hash) for metric in metrics if metric.bundle}
        notes += [f"Bundle {name}: {(digest or 'unknown')[:16]}." for name, digest in sorted(bundles)]
        if any(column.ceiling is not None for column in self.columns):
            notes.append("Ceiling: expected agreement of one human with the panel. Per cent: share of it reached.")
        if any(math.isnan(score.value) for column in self.columns for score in column.scores):
            notes.append("-: undefined, as all judgements or all distances are equal.")
        if len(metrics) > 1:
            notes.append(f"p: two-sided, paired bootstrap, of the difference to {self.labels[0]}.")
        return notes


def make_report(results: Results) -> Report:
    """Score what was measured: families, the means of the two of distortions, of the four of real algorithms, of all.

    Raises:
        ValueError: If no set is finished.
    """
    unfinished, results = tuple(results.unfinished), results.scored()
    if not results.sets:
        raise ValueError("there is nothing to report: no set is finished")
    sets = {judged.name: judged for judged in results.sets}
    found = {name: score_set(judged, of) for (name, judged), of in zip(sets.items(), results.distances, strict=True)}

    def mean(name: str, heading: str, members: Sequence[str], measure: str = "mean") -> Column:
        chosen = [sets[member] for member in members]
        tops = [top for judged in chosen if (top := ceiling(judged)) is not None]
        top = sum(tops) / len(tops) if len(tops) == len(chosen) else None
        partial = tuple(f"{judged.name}: {judged.partial}" for judged in chosen if judged.partial)
        scores = _scores(Sample.mean([found[member] for member in members]), top)
        return Column(name, heading + "*" * bool(partial), measure, sum(map(len, chosen)), partial, top, scores)

    def single(member: str) -> Column:
        return mean(member, family(sets[member]), [member], sets[member].measure)

    tables = []
    for kind, (name, title) in _TITLES.items():
        members = rest = [judged.name for judged in results.sets if judged.kind == kind]
        columns: list[Column] = []
        whole = False
        for label, families in _TOGETHER[kind].items():
            together = [member for member in families if member in rest]
            columns += map(single, together)
            rest = [member for member in rest if member not in together]
            if label and len(together) == len(families):
                whole = len(together) == len(members)
                columns.append(mean(f"{name} {label}", label, together))
        columns += map(single, rest)
        if len(members) > 1 and not whole:
            columns.append(mean(f"{name} all", "all", members))
        tables += [Table(name, f"{name[0].upper()}{name[1:]}: {title}", tuple(columns))] if columns else []
    of_all = mean("mean of all", f"mean of {len(sets)} sets" if len(sets) > 1 else "mean", list(sets))
    return Report(results, tuple(tables), of_all, unfinished)


def _scores(sample: Sample, top: float | None) -> tuple[Score, ...]:
    less = sample.differences
    columns = zip(sample.values.tolist(), sample.intervals, less.values.tolist(), less.intervals, strict=True)
    scores = []
    for rank, (value, interval, difference, difference_interval) in enumerate(columns):
        share = None if top is None else value / top
        p = p_value(difference, less.drawn[rank]) if rank else None
        scores.append(Score(value, interval, share, difference, difference_interval, p))
    return tuple(scores)


def family(judged: JudgedSet) -> str:
    """Name of a set among those of its kind: the family for one of BAPPS, the whole name for any other."""
    task, _, rest = judged.name.partition("/")
    return rest if task in TASKS else judged.name
