"""Raw distances and what they were measured on, in one file that grows row by row.

The first line of the file describes the run: metrics, settings, versions, and the sets with their judgements. Each
further line is one item: its distances, or what went wrong with it. All lines are JSON. A run that is killed at any
moment leaves a file that is complete up to its last whole line, from which it goes on, and from which every table can
be made again without the images.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afv_metric.files import atomic_write, locked
from bapps_eval.data import FloatArray, JudgedSet

__all__ = ["Measured", "MetricRecord", "Results", "load_results", "plan_results", "recording"]


_FORMAT = 2


@dataclass(frozen=True)
class MetricRecord:
    """Provenance of a metric; see :class:`~bapps_eval.metrics.Metric`."""

    name: str
    bundle: str | None = None
    bundle_hash: str | None = None
    form: str | None = None


class Measured(NamedTuple):
    """One item of a set, by its row: for every metric the distances of the first image to the others, or an error."""

    row: int
    distances: list[list[float]]
    error: str = ""


@dataclass(frozen=True, eq=False)
class Results:
    """The state of a run.

    Attributes:
        sets, metrics: What is measured; images need not be at hand.
        distances: For every set ``(metrics, N, 1)`` or, for triplets, ``(metrics, N, 2)``; NaN where not measured.
        settings, versions: Whatever else decides the numbers; JSON can hold it.
        failures: For every set, what went wrong, by row.
        file: Where items are kept, see :func:`recording`; None for memory alone.
    """

    sets: Sequence[JudgedSet]
    metrics: Sequence[MetricRecord]
    distances: Sequence[FloatArray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[dict[int, str]] = ()
    file: IO[str] | None = None

    def write(self, index: int, items: Sequence[Measured]) -> None:
        """Enter items of the set of this index, and append them to the file."""
        for item in items:
            self.add(index, item)
            if self.file:
                what = {"error": item.error} if item.error else {"distances": item.distances}
                self.file.write(json.dumps({"set": index, "row": item.row, **what}) + "\n")
        if self.file:
            self.file.flush()

    def add(self, index: int, item: Measured) -> None:
        """Enter an item; an earlier failure of it is forgotten."""
        self.failures[index].pop(item.row, None)
        if item.error:
            self.failures[index][item.row] = item.error
        else:
            self.distances[index][:, item.row] = item.distances

    def missing(self, index: int) -> NDArray[np.intp]:
        """Rows of a set that are not measured, failed ones too."""
        return np.flatnonzero(np.isnan(self.distances[index]).any((0, 2)))

    @property
    def unfinished(self) -> list[str]:
        """Names of the sets that have items which are neither measured nor failed."""
        left = [len(self.missing(index)) - len(failed) for index, failed in enumerate(self.failures)]
        return [judged.name for judged, count in zip(self.sets, left, strict=True) if count]

    def scored(self) -> Results:
        """The finished sets without their failed items, which make a set partial; none of too few items."""
        sets, distances, unfinished = [], [], self.unfinished
        for index, judged in enumerate(self.sets):
            kept = np.setdiff1d(np.arange(len(judged)), self.missing(index))
            if judged.name in unfinished or len(kept) < (2 if judged.kind == "pairs" else 1):
                continue
            sets.append(judged.take(kept) if len(kept) < len(judged) else judged)
            distances.append(self.distances[index][:, kept])
        return replace(self, sets=sets, distances=distances, failures=[{} for _ in sets])


def plan_results(
    sets: Sequence[JudgedSet],
    metrics: Sequence[MetricRecord],
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Results:
    """Results of a run that has measured nothing yet; see :class:`Results`."""
    distances = [np.full((len(metrics), len(judged), len(judged.images[0]) - 1), np.nan) for judged in sets]
    return Results(sets, metrics, distances, settings or {}, versions or {}, [{} for _ in sets])


@contextlib.contextmanager
def recording(path: str | os.PathLike[str] | None, planned: Results, *, resume: bool = False) -> Iterator[Results]:
    """Open a file for the results of a run; nobody else can until it is closed.

    ``resume`` goes on with what the file has of this run; otherwise a file that is there is replaced.

    Raises:
        BlockingIOError: If another process writes to the file.
        ValueError: If the file is of another run, all differences to which are named.
    """
    if path is None:
        yield planned
        return
    path = Path(path)
    with locked(path):
        if resume and path.exists() and b"\n" in path.read_bytes():
            kept = load_results(path)
            if differences := _differences(_describe(kept), _describe(planned)):
                raise ValueError(f"{path} is of another run: {'; '.join(differences)}")
            planned = kept
            with path.open("rb+") as file:  # without the part of a last line that a kill left
                file.truncate(file.read().rindex(b"\n") + 1)
        else:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(_describe(planned), allow_nan=False) + "\n", encoding="utf-8")
        with path.open("a", encoding="utf-8") as text:
            yield replace(planned, file=text)
            os.fsync(text.fileno())


def load_results(path: str | os.PathLike[str]) -> Results:
    """Read a file of results; a last line that was cut off is passed over, and images need not be at hand.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold results; the line is named.
    """
    number = 1
    try:
        with Path(path).open("rb") as lines:
            results = _restore(json.loads(next(lines, b"")))
            for number, line in enumerate(lines, start=2):  # noqa: B007
                if line.endswith(b"\n"):
                    record = json.loads(line)
                    item = Measured(record["row"], record.get("distances", []), record.get("error", ""))
                    results.add(record["set"], item)
        return results
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = str(error) if str(error).startswith("format ") else "it is not as eval writes it; measure again"
        raise ValueError(f"{path}, line {number}, does not hold results of bapps_eval: {reason}") from error


def _describe(results: Results) -> dict[str, Any]:
    """The first line of the file."""
    sets = [
        {
            "kind": judged.kind,
            "name": judged.name,
            "source": str(judged.source.absolute()),
            "partial": judged.partial,
            "side": judged.side,
            "images": [[str(path.absolute()) for path in item] for item in judged.images],
            "judged": judged.judged.tolist(),
            "groups": None if judged.groups is None else judged.groups.tolist(),
        }
        for judged in results.sets
    ]
    run = {"metrics": [asdict(metric) for metric in results.metrics], "settings": dict(results.settings)}
    return {"bapps_eval": _FORMAT, **run, "versions": dict(results.versions), "sets": sets}


def _restore(record: Mapping[str, Any]) -> Results:
    if record["bapps_eval"] != _FORMAT:
        raise ValueError(f"format {record['bapps_eval']}; this version reads format {_FORMAT}")
    sets = []
    for described in record["sets"]:
        known = {
            "source": Path(described["source"]),
            "images": [tuple(map(Path, item)) for item in described["images"]],
            "judged": np.array(described["judged"]),
            "groups": None if described["groups"] is None else np.array(described["groups"]),
        }
        sets.append(JudgedSet(**(described | known)))
    metrics = [MetricRecord(**metric) for metric in record["metrics"]]
    return plan_results(sets, metrics, record["settings"], record["versions"])


def _differences(kept: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """Everything in which two runs differ, in words."""
    before, now = _flat(kept), _flat(planned)
    differences = []
    for name in {**before, **now}:
        pair = before.get(name), now.get(name)
        if pair[0] == pair[1]:
            continue
        if all(isinstance(value, dict) for value in pair):
            differences.append(f"{name} has other items or judgements")
        else:
            was, is_now = ("not there" if v is None else "there" if isinstance(v, dict) else v for v in pair)
            differences.append(f"{name} was {was}, now {is_now}")
    return differences


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever has to be equal for a run to be the same, by name."""
    metrics = {
        f"metric {number}": f"{metric['name']} {metric['bundle_hash'] or ''}".rstrip()
        for number, metric in enumerate(record["metrics"], start=1)
    }
    keys = ("kind", "side", "images", "judged", "groups")
    sets = {f"set {judged['name']}": {key: judged[key] for key in keys} for judged in record["sets"]}
    return {**metrics, **record["settings"], **record["versions"], **sets}
