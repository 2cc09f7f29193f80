"""From files to batches on the device: decoding in worker processes, ahead of the metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from afv_metric.images import Reader
from bapps_eval.data import JudgedSet, read_image_source

__all__ = ["Batch", "batches"]

_MOST_WORKERS = 16


class Batch(NamedTuple):
    """Items of one image size, by their rows in the set, or what went wrong with items that could not be read.

    For each image of an item there is a tensor ``(n, C, H, W)`` in [-1, 1], on the device, in channels-last memory.
    """

    rows: NDArray[np.intp]
    images: list[Tensor]
    errors: dict[int, str]


# An item to decode: its row and its files. They travel alone, so that workers need no copy of the set.
_Item = tuple[int, tuple[Path, ...]]
# What items decode to: for each size their rows and their images, uint8 (K, n, H, W, C); and errors by row.
_Decoded = tuple[list[tuple[list[int], Tensor]], dict[int, str]]


def batches(
    judged: JudgedSet,
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Decode a set, or some rows of it, in batches of one image size, ahead of the one who asks.

    Every item comes once, also those that cannot be read or whose images differ in size. Images travel to the device
    as bytes. By default one process per core but one decodes, at most 16, and no more than there are batches; none
    where one or two cores run the network, too. With 0 workers this process decodes.
    """
    device = torch.device(device)
    rows = range(len(judged)) if rows is None else rows
    if workers is None:
        cores = _cores()
        workers = min(cores - 1, _MOST_WORKERS) if cores > 2 or device.type != "cpu" else 0
    with warnings.catch_warnings():
        # DataLoader doubts numbers of workers, and Python that processes can be forked beside threads.
        warnings.simplefilter("ignore")
        loader: DataLoader[Any] = DataLoader(
            [(row, judged.images[row]) for row in rows],  # type: ignore[arg-type]  # any sequence will do
            batch_size,
            num_workers=min(workers, -(-len(rows) // batch_size)),
            collate_fn=partial(_decode, judged.side, judged.reader),
            worker_init_fn=_give_way,
            pin_memory=device.type == "cuda",
        )
        decoded = iter(loader)
    try:
        for parts, errors in decoded:
            if errors:
                yield Batch(np.array([*errors], np.intp), [], errors)
            for found, pixels in parts:
                images = pixels.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)
                yield Batch(np.array(found, np.intp), list(images.permute(0, 1, 4, 2, 3)), {})
    except RuntimeError as error:
        raise ValueError(f"a process that decodes images has ended ({error}); try it with --workers 0") from error


def _decode(side: int | None, reader: Reader, items: Sequence[_Item]) -> _Decoded:
    """Read every image of some items once, and sort the items by size."""
    images: dict[Path, Tensor] = {}
    sizes: dict[torch.Size, list[_Item]] = {}
    errors: dict[int, str] = {}
    for row, sources in items:
        try:
            for source in sources:
                if source not in images:
                    images[source] = read_image_source(source, side, reader)[0].permute(1, 2, 0)
        except (OSError, ValueError, MemoryError) as error:
            errors[row] = str(error) or f"{source}: {type(error).__name__}"
            continue
        found = {images[source].shape for source in sources}
        if len(found) > 1:
            errors[row] = f"these images should have one size: {', '.join(map(str, sources))}"
        else:
            sizes.setdefault(found.pop(), []).append((row, sources))
    parts = []
    for alike in sizes.values():
        columns = zip(*(sources for _, sources in alike), strict=True)
        pixels = torch.stack([torch.stack([images[source] for source in column]) for column in columns])
        parts.append(([row for row, _ in alike], pixels))
    return parts, errors


def _cores() -> int:
    """Cores that this process may use, its share of them under torchrun."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _give_way(worker: int) -> None:
    """A worker that preempts one of the network's threads makes all of them wait for that one."""
    if hasattr(os, "nice"):
        os.nice(10)
