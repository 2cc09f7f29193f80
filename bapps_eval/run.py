"""Taking the distances: all metrics over all sets, in one pass over the images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from afv_metric.threads import compute_batches
from afv_metric.train.distributed import process
from bapps_eval.data import JudgedSet
from bapps_eval.loader import Batch, batches
from bapps_eval.metrics import Metric

__all__ = ["Times", "measure"]

FloatArray = NDArray[np.float64]


@dataclass
class Times:
    """Where the time of a run went, in seconds.

    Attributes:
        waiting: Until images were decoded. Devices and other cores may still be computing meanwhile, so this is the
            most that they can have been idle for want of images.
        computing: All else.
    """

    waiting: float = 0.0
    computing: float = 0.0


@torch.inference_mode()
def measure(
    metrics: Sequence[Metric],
    sets: Sequence[JudgedSet],
    *,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
    finished: Callable[[int, list[FloatArray]], object] = lambda index, distances: None,
    times: Times | None = None,
) -> list[list[FloatArray]]:
    """Take all distances on all sets in one pass over their images.

    If ``torch.distributed`` is initialised, every process measures its share of the items of every set, and all get
    the distances of all.

    Args:
        metrics: The metrics, on ``device``.
        sets: The sets.
        batch_size: Most items at a time.
        device: Where the metrics compute.
        workers: Processes that decode images; see :func:`bapps_eval.loader.batches`.
        advance: Told after each batch how many items this process has done.
        finished: Told as soon as the last item of a set is done, in the order of the sets: index of the set, and its
            distances by each metric.
        times: Where the time went is added to this.

    Returns:
        For every metric, for every set, the distances of the first image of each item to the others, ``(N, 1)`` or
        ``(N, 2)``.

    Raises:
        ValueError: If an image cannot be read, or a metric does not give one finite number for each pair.
    """
    times = Times() if times is None else times
    started, waited = time.perf_counter(), times.waiting
    rows = [_share(len(judged)) for judged in sets]
    tables = [[np.zeros((len(judged), len(judged.images[0]) - 1)) for _ in metrics] for judged in sets]
    left = [len(taken) for taken in rows]
    complete = 0
    decoded = _timed(batches(sets, batch_size, device=device, workers=workers, rows=rows), times)
    with warnings.catch_warnings():
        # A batch of bright images alone looks like [0, 1] to a metric; here the range is known.
        warnings.filterwarnings("ignore", "images have values from")
        for batch, values in _computed(metrics, decoded, device):
            _store(batch, values, metrics, sets, tables)
            advance(len(batch.rows))
            for index in batch.sets:
                left[index] -= 1
            while complete < len(sets) and not left[complete]:
                tables[complete] = _gathered(tables[complete])
                finished(complete, tables[complete])
                complete += 1
    while complete < len(sets):  # those of which this process has no share
        tables[complete] = _gathered(tables[complete])
        finished(complete, tables[complete])
        complete += 1
    times.computing += time.perf_counter() - started - (times.waiting - waited)
    return [list(of_metric) for of_metric in zip(*tables, strict=True)]


def _computed(metrics: Sequence[Metric], decoded: Iterator[Batch], device: str) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches and their distances by each metric, in order, some batches late."""

    def compute(batch: Batch) -> list[Tensor]:
        return [metric.distances(batch.images) for metric in metrics]

    alone = any(metric.one_at_a_time for metric in metrics)
    return compute_batches(compute, decoded, device, alone=alone)


def _store(
    batch: Batch,
    values: Sequence[Tensor],
    metrics: Sequence[Metric],
    sets: Sequence[JudgedSet],
    tables: Sequence[Sequence[FloatArray]],
) -> None:
    """Put the distances of a batch where they belong, and see that they are numbers."""
    for metric, of_metric in enumerate(values):
        distances = of_metric.cpu().double().numpy()
        for index in np.unique(batch.sets):
            chosen = batch.sets == index
            tables[index][metric][batch.rows[chosen]] = distances[chosen]
        for item, other in np.argwhere(~np.isfinite(distances)):
            images = sets[batch.sets[item]].images[batch.rows[item]]
            raise ValueError(f"{metrics[metric].name} is not finite on {images[0]} and {images[1 + other]}")


def _timed(decoded: Iterator[Batch], times: Times) -> Iterator[Batch]:
    """The same batches; how long they were waited for is added to the times."""
    while True:
        started = time.perf_counter()
        batch = next(decoded, None)
        times.waiting += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def _share(count: int) -> NDArray[np.intp]:
    """Rows that this process measures, of so many."""
    rank, processes = process()
    return np.array_split(np.arange(count), processes)[rank]


def _gathered(tables: list[FloatArray]) -> list[FloatArray]:
    """Distances of one set from all processes; everybody's tables are zero where others measured."""
    if process()[1] == 1:
        return tables
    stacked = torch.from_numpy(np.stack(tables))
    distributed.all_reduce(stacked)
    return list(stacked.numpy())
