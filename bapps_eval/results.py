"""Raw distances and what they were taken on, in one file from which every table can be made again without images."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afv_metric.files import atomic_write
from bapps_eval.data import JudgedSet, PairSet, SameSet, TripletSet

__all__ = ["MetricRecord", "Results", "load_results", "measured_before", "save_results"]

FloatArray = NDArray[np.float64]

_FORMAT = 1
_ABSENT = "not there"
_KINDS: dict[str, type[JudgedSet]] = {"triplets": TripletSet, "same": SameSet, "pairs": PairSet}


@dataclass(frozen=True)
class MetricRecord:
    """What a metric was.

    Attributes:
        name: Heading of its row.
        bundle: Name of its AFV bundle, if it has one.
        bundle_hash: What identifies that bundle.
        form: Form of the AFV distance.
    """

    name: str
    bundle: str | None = None
    bundle_hash: str | None = None
    form: str | None = None


@dataclass(frozen=True, eq=False)
class Results:
    """What a run has measured so far.

    Attributes:
        sets: The sets that are done; their images need not be at hand.
        metrics: The metrics.
        distances: For every metric, for every set, distances ``(N, 1)`` or, of triplets, ``(N, 2)``.
        settings: What else decides the numbers; JSON can hold it.
        versions: Of the packages that were used.
        unfinished: Names of the sets that the run has still to measure.
    """

    sets: list[JudgedSet]
    metrics: list[MetricRecord]
    distances: list[list[FloatArray]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    unfinished: Sequence[str] = ()


def save_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write results as one ``.npz`` without pickle; the file is at any time whole, the old one or the new.

    It holds ``metadata``, JSON in UTF-8 with everything but numbers, and for the set of index i the judgements
    ``judged_i`` ``(N,)``, the ``groups_i`` ``(N,)`` of judged pairs, and ``distances_i`` ``(metrics, N, 1 or 2)``.

    Args:
        path: The file.
        results: What to write.
    """
    arrays: dict[str, NDArray[Any]] = {}
    described = []
    for index, judged in enumerate(results.sets):
        described.append(_describe(judged))
        arrays[f"judged_{index}"] = judged.judged
        if isinstance(judged, PairSet):
            arrays[f"groups_{index}"] = judged.groups
        arrays[f"distances_{index}"] = np.array([of_sets[index] for of_sets in results.distances], np.float64)
    record = {
        "format": _FORMAT,
        "sets": described,
        "metrics": [asdict(metric) for metric in results.metrics],
        "settings": dict(results.settings),
        "versions": dict(results.versions),
        "unfinished": list(results.unfinished),
    }
    arrays["metadata"] = np.frombuffer(json.dumps(record, allow_nan=False).encode(), np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_results(path: str | os.PathLike[str]) -> Results:
    """Read what :func:`save_results` wrote.

    Args:
        path: The file.

    Returns:
        The results; paths of images are absolute, and are not looked at.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold results.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            record = json.loads(arrays["metadata"].tobytes())
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']}; this version reads format {_FORMAT}")
            columns = [arrays[f"distances_{index}"] for index in range(len(record["sets"]))]
            return Results(
                sets=[_restore(described, arrays, index) for index, described in enumerate(record["sets"])],
                metrics=[MetricRecord(**metric) for metric in record["metrics"]],
                distances=[[column[metric] for column in columns] for metric in range(len(record["metrics"]))],
                settings=record["settings"],
                versions=record["versions"],
                unfinished=record["unfinished"],
            )
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold results of bapps_eval: {error}") from error


def measured_before(kept: Results, planned: Results) -> dict[str, list[FloatArray]]:
    """What an interrupted run has of a planned one, if they are the same run.

    Args:
        kept: What the interrupted run has left.
        planned: All sets of the planned run, its metrics, settings and versions; its distances are not looked at.

    Returns:
        For the name of each set that is done, distances of every metric.

    Raises:
        ValueError: If anything that decides the numbers differs, all of which is named.

    Example:
        >>> kept = Results([], [MetricRecord("l2")], [], {"limit": 60})
        >>> measured_before(kept, Results([], [MetricRecord("l2")], [], {"limit": 90}))
        Traceback (most recent call last):
        ValueError: this is another run: limit was 60, now 90
    """
    differences = [
        *_differences(_describe_metrics(kept), _describe_metrics(planned)),
        *_differences(kept.settings, planned.settings),
        *_differences(kept.versions, planned.versions),
        *_differences(_describe_sets(kept), _describe_sets(planned)),
    ]
    now = {judged.name: judged for judged in planned.sets}
    differences += [
        f"{judged.name} has other items (or judgements) at {judged.source}, was at {now[judged.name].source}"
        for judged in kept.sets
        if judged.name in now and _fingerprint(judged) != _fingerprint(now[judged.name])
    ]
    if differences:
        raise ValueError(f"this is another run: {'; '.join(differences)}")
    columns = zip(*kept.distances, strict=True)
    return {judged.name: list(column) for judged, column in zip(kept.sets, columns, strict=True)}


def _describe(judged: JudgedSet) -> dict[str, Any]:
    """Everything of a set but its numbers, for JSON."""
    return {
        "kind": next(kind for kind, made in _KINDS.items() if isinstance(judged, made)),
        "name": judged.name,
        "source": str(judged.source.absolute()),
        "partial": judged.partial,
        "side": judged.side,
        "images": [[str(source.absolute()) for source in item] for item in judged.images],
    }


def _restore(described: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], index: int) -> JudgedSet:
    made = _KINDS[described["kind"]]
    return made(
        described["name"],
        Path(described["source"]),
        [tuple(map(Path, item)) for item in described["images"]],
        arrays[f"judged_{index}"],
        **({"groups": arrays[f"groups_{index}"]} if made is PairSet else {}),
        partial=described["partial"],
        side=described["side"],
    )


def _fingerprint(judged: JudgedSet) -> tuple[object, ...]:
    """What has to be equal for a set to be the same."""
    described = _describe(judged)
    groups = judged.groups.tolist() if isinstance(judged, PairSet) else []
    return described["kind"], described["side"], described["images"], judged.judged.tolist(), groups


def _describe_sets(results: Results) -> dict[str, str]:
    names = [*(judged.name for judged in results.sets), *results.unfinished]
    return {f"set {name}": "there" for name in names}


def _describe_metrics(results: Results) -> dict[str, str]:
    described = {}
    for index, metric in enumerate(results.metrics):
        bundle = f" of bundle {metric.bundle} {(metric.bundle_hash or '')[:12]}" if metric.bundle else ""
        described[f"metric {index + 1}"] = metric.name + bundle
    return described


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two tables differ, in words.

    Example:
        >>> _differences({"limit": 60, "split": "val"}, {"limit": 90, "split": "val", "families": "cnn"})
        ['limit was 60, now 90', 'families was not there, now cnn']
    """
    differing = [key for key in {**before, **now} if before.get(key, _ABSENT) != now.get(key, _ABSENT)]
    return [f"{key} was {before.get(key, _ABSENT)}, now {now.get(key, _ABSENT)}" for key in differing]
