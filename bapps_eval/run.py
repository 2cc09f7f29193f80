"""Measuring: all metrics on all sets, in one pass over the images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from afv_metric.distributed import gather, rank_and_world_size, share
from afv_metric.images import Reader
from afv_metric.runtime import parallel_map, read_versions
from bapps_eval.data import JudgedSet
from bapps_eval.loader import Batch, batches
from bapps_eval.metrics import Metric
from bapps_eval.results import Measured, MetricRecord, Results, plan_results, recording

__all__ = ["evaluate", "measure", "read_for"]


def read_for(metrics: Sequence[Metric], sets: Sequence[JudgedSet]) -> list[JudgedSet]:
    """Sets whose images are read as the metrics take them: with the channels and the declared range of their bundles.

    Raises:
        ValueError: If the metrics take images of different channels or ranges.
    """
    channels = {metric.reader.channels for metric in metrics}
    ranges = {metric.reader.data_range for metric in metrics} - {None}
    if len(channels) > 1 or len(ranges) > 1:
        inputs = "; ".join(
            f"{one.name}: {one.reader.channels} channels, range {one.reader.data_range}" for one in metrics
        )
        raise ValueError(f"these metrics take other images each and must be evaluated one by one: {inputs}")
    reader = Reader(next(iter(ranges), None), next(iter(channels), 3))
    return [replace(judged, reader=reader) for judged in sets]


def measure(
    metrics: Sequence[Metric], judged: JudgedSet, *, batch_size: int = 64, device: str = "cpu", **how: Any
) -> Iterator[list[Measured]]:
    """Measure a set: its items as they come, in any order, each of them once.

    An item that fails is reported as such, and the others go on. ``rows`` and ``workers`` are those of
    :func:`~bapps_eval.loader.batches`.
    """
    decoded = batches(judged, batch_size, device=device, **how)
    alone = any(metric.one_at_a_time for metric in metrics)
    for _, items in parallel_map(partial(_compute, metrics, judged), decoded, device, alone=alone):
        yield items


def evaluate(
    metrics: Sequence[Metric],
    sets: Sequence[JudgedSet],
    *,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int | None = None,
    file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> Results:
    """Measure all metrics on all sets, and keep every item in a file as soon as it is measured.

    If ``torch.distributed`` is initialised, every process measures its share of the items of every set, and the first
    gets them all, set by set. The settings, which decide the numbers, too, are for the record. Items that
    failed are tried again if a run is resumed. Of the rest see :func:`measure` and :func:`recording`.
    """
    records = [MetricRecord(metric.name, metric.bundle, metric.bundle_hash, metric.form) for metric in metrics]
    sets = read_for(metrics, sets)
    planned = plan_results(sets, records, settings, read_versions())
    rank, _ = rank_and_world_size()
    with recording(None if rank else file, planned, resume=resume) as results:
        shares = [share(results.missing(index).tolist()) for index in range(len(sets))]
        with tqdm(total=sum(map(len, shares)), disable=quiet or rank > 0, unit="item") as bar:
            for index, (judged, rows) in enumerate(zip(sets, shares, strict=True)):
                kept: list[Measured] = []
                for items in measure(metrics, judged, rows=rows, batch_size=batch_size, device=device, workers=workers):
                    results.write(index, items)
                    kept += items
                    bar.update(len(items))
                for items in gather(kept)[1:]:
                    results.write(index, items)
    return results


def _compute(metrics: Sequence[Metric], judged: JudgedSet, batch: Batch) -> list[Measured]:
    """Measure a batch; if that fails, its items one by one."""
    if batch.errors:
        return [Measured(row, [], error) for row, error in batch.errors.items()]

    def failed(row: int, error: object) -> Measured:
        return Measured(row, [], f"{', '.join(map(str, judged.images[row]))}: {error}")

    rows = batch.rows.tolist()
    try:
        distances = torch.stack([metric.distances(batch.images).cpu().double() for metric in metrics])
    except ValueError as error:
        if len(rows) == 1:
            return [failed(rows[0], error)]
        images = zip(*(column.split(1) for column in batch.images), strict=True)
        singles = [Batch(np.array([row]), [*alone], {}) for row, alone in zip(rows, images, strict=True)]
        return [item for single in singles for item in _compute(metrics, judged, single)]
    items = []
    for row, of_item in zip(rows, distances.transpose(0, 1), strict=True):
        broken = [metric.name for metric, of in zip(metrics, of_item, strict=True) if not of.isfinite().all()]
        measured = Measured(row, of_item.tolist())
        items.append(failed(row, f"{', '.join(broken)} gave no finite number") if broken else measured)
    return items
