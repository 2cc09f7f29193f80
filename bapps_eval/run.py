"""Measuring: all metrics on all sets, in one pass over the images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from tqdm import tqdm

from afv_metric.distributed import gather, rank_and_world_size
from afv_metric.images import Reader
from afv_metric.runtime import parallel_map
from bapps_eval.data import JudgedSet
from bapps_eval.loader import Batch, batches
from bapps_eval.metrics import Metric
from bapps_eval.results import Measured, MetricRecord, Results, plan_results, recording

__all__ = ["evaluate", "measure", "read_for", "records"]


def records(metrics: Sequence[Metric]) -> list[MetricRecord]:
    """Provenance of metrics."""
    return [MetricRecord(metric.name, metric.bundle, metric.bundle_hash, metric.form) for metric in metrics]


def read_for(metrics: Sequence[Metric], sets: Sequence[JudgedSet]) -> list[JudgedSet]:
    """Sets whose images are read as the metrics take them: with the channels and the declared range of their bundles.

    Raises:
        ValueError: If the metrics take images of different channels or ranges.
    """
    channels = {metric.reader.channels for metric in metrics}
    ranges = {metric.reader.data_range for metric in metrics} - {None}
    if len(channels) > 1 or len(ranges) > 1:
        told = "; ".join(f"{one.name}: {one.reader.channels} channels, range {one.reader.declared}" for one in metrics)
        raise ValueError(f"these metrics take other images each and must be evaluated one by one: {told}")
    reader = Reader(next(iter(ranges), None), next(iter(channels), 3))
    return [replace(judged, reader=reader) for judged in sets]


def measure(
    metrics: Sequence[Metric],
    judged: JudgedSet,
    *,
    rows: NDArray[np.intp] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int | None = None,
) -> Iterator[list[Measured]]:
    """Measure a set; an item that fails is reported as such, and the others go on.

    Args:
        metrics: The metrics, on ``device``.
        judged: The set.
        rows: The rows to measure; all if None.
        batch_size: Largest number of items at a time.
        device: Where the metrics compute.
        workers: Processes that decode images; see :func:`bapps_eval.loader.batches`.

    Yields:
        Items as they come, in any order; each of them once.
    """

    def compute(batch: Batch) -> list[Measured]:
        return _compute(metrics, judged, batch)

    decoded = batches(judged, batch_size, device=device, workers=workers, rows=rows)
    alone = any(metric.one_at_a_time for metric in metrics)
    for _, items in parallel_map(compute, decoded, device, alone=alone):
        yield items


def evaluate(
    metrics: Sequence[Metric],
    sets: Sequence[JudgedSet] | Results,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int | None = None,
    file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> Results:
    """Measure all metrics on all sets, and keep every item in a file as soon as it is measured.

    If ``torch.distributed`` is initialised, every process measures its share of the items of every set, and the first
    gets them all, set by set.

    Args:
        metrics: The metrics, on ``device``.
        sets: The sets, or a plan of the run with its settings, by :func:`~bapps_eval.results.plan_results`.
        batch_size: Largest number of items at a time.
        device: Where the metrics compute.
        workers: Processes that decode images; see :func:`bapps_eval.loader.batches`.
        file: File of results, see :func:`~bapps_eval.results.recording`; None keeps nothing.
        resume: Go on with what the file has of this run; items that failed are tried again.
        quiet: Show no progress bar.

    Returns:
        The results; those of the first process are complete.

    Raises:
        ValueError: If the file cannot be written to, or is of another run.
    """
    planned = sets if isinstance(sets, Results) else plan_results(read_for(metrics, sets), records(metrics))
    rank, processes = rank_and_world_size()
    with recording(None if rank else file, planned, resume=resume) as recorder:
        results = recorder.results
        missing = [results.missing(index) for index in range(len(results.sets))]
        if processes > 1:
            distributed.broadcast_object_list(missing)
        shares = [np.array_split(rows, processes)[rank] for rows in missing]
        with tqdm(total=sum(map(len, shares)), disable=quiet or rank > 0, unit="item") as bar:
            for index, (judged, rows) in enumerate(zip(planned.sets, shares, strict=True)):
                settings = {"batch_size": batch_size, "device": device, "workers": workers}
                kept: list[Measured] = []
                for items in measure(metrics, judged, rows=rows, **settings):  # type: ignore[arg-type]
                    recorder.write(index, items)
                    kept += items
                    bar.update(len(items))
                for items in gather(kept)[1:]:
                    recorder.write(index, items)
    return results


def _compute(metrics: Sequence[Metric], judged: JudgedSet, batch: Batch) -> list[Measured]:
    """Measure a batch; if that fails, its items one by one."""
    if batch.errors:
        return [Measured(row, [], error) for row, error in batch.errors.items()]
    try:
        distances = _distances(metrics, batch.images)
    except ValueError as error:
        if len(batch.rows) == 1:
            return [_failed(judged, int(batch.rows[0]), str(error))]
        parts = [[images[place : place + 1] for images in batch.images] for place in range(len(batch.rows))]
        singles = [Batch(row, images, {}) for row, images in zip(np.split(batch.rows, len(parts)), parts, strict=True)]
        return [item for single in singles for item in _compute(metrics, judged, single)]
    items = []
    for row, of_item in zip(batch.rows.tolist(), distances.transpose(1, 0, 2), strict=True):
        broken = [metric.name for metric, values in zip(metrics, of_item, strict=True) if not np.isfinite(values).all()]
        finite = Measured(row, of_item.tolist())
        items.append(_failed(judged, row, f"{', '.join(broken)} gave no finite number") if broken else finite)
    return items


def _distances(metrics: Sequence[Metric], images: Sequence[Tensor]) -> NDArray[np.float64]:
    """``(metrics, n, 1 or 2)``."""
    found = torch.stack([metric.distances(images).cpu().double() for metric in metrics])
    return np.asarray(found.numpy())


def _failed(judged: JudgedSet, row: int, error: str) -> Measured:
    return Measured(row, [], f"{', '.join(map(str, judged.images[row]))}: {error}")
