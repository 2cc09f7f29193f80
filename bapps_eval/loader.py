"""From files to batches on the device: decoding in worker processes, ahead of the metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from afv_metric.images import Reader
from bapps_eval.data import JudgedSet, read_image_source

__all__ = ["Batch", "batches"]

_MOST_WORKERS = 16


class Batch(NamedTuple):
    """Items of one image size, or items that could not be read.

    Attributes:
        rows: Row of each item in its set, ``(n,)``.
        images: For each image of an item a tensor ``(n, C, H, W)`` in [-1, 1], on the device, in channels-last memory;
            empty for items that could not be read.
        errors: What went wrong with each item that could not be read, by its row.
    """

    rows: NDArray[np.intp]
    images: list[Tensor]
    errors: dict[int, str]


class _Item(NamedTuple):
    """An item to decode. Its files travel with it, so that workers need no copy of the set."""

    row: int
    sources: tuple[Path, ...]
    side: int | None
    reader: Reader


class _Decoded(NamedTuple):
    """Rows of items of one size, and their first images, second ones and so on, uint8 ``(K, n, H, W, C)``."""

    rows: list[int]
    pixels: Tensor

    def on_device(self, device: torch.device) -> Batch:
        """Send the bytes, and make numbers of them there."""
        images = self.pixels.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)
        return Batch(np.array(self.rows, np.intp), list(images.permute(0, 1, 4, 2, 3)), {})


@dataclass
class _Chunk:
    """What a list of items decodes to: one part per size, and errors by row."""

    parts: list[_Decoded] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    def pin_memory(self) -> _Chunk:
        """The same in page-locked memory, from which devices copy on their own."""
        return _Chunk([_Decoded(rows, pixels.pin_memory()) for rows, pixels in self.parts], self.errors)


class _Decoder(Dataset[_Chunk]):
    """Reads every image of a list of items once, and sorts the items by size."""

    def __getitem__(self, items: Sequence[_Item]) -> _Chunk:
        images: dict[Path, Tensor] = {}
        chunk, sizes = _Chunk(), dict[torch.Size, list[_Item]]()
        for item in items:
            try:
                for source in item.sources:
                    if source not in images:
                        images[source] = read_image_source(source, item.side, item.reader)[0].permute(1, 2, 0)
            except (OSError, ValueError, MemoryError) as error:
                chunk.errors[item.row] = str(error) or f"{source}: {type(error).__name__}"
                continue
            found = {images[source].shape for source in item.sources}
            if len(found) > 1:
                chunk.errors[item.row] = f"these images should have one size: {', '.join(map(str, item.sources))}"
            else:
                sizes.setdefault(found.pop(), []).append(item)
        for alike in sizes.values():
            columns = zip(*(item.sources for item in alike), strict=True)
            pixels = torch.stack([torch.stack([images[source] for source in column]) for column in columns])
            chunk.parts.append(_Decoded([item.row for item in alike], pixels))
        return chunk


def batches(
    judged: JudgedSet,
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    rows: NDArray[np.intp] | None = None,
) -> Iterator[Batch]:
    """Decode a set in batches of one image size.

    Args:
        judged: The set.
        batch_size: Largest number of items in a batch.
        device: Where the images should be; they travel as bytes.
        workers: Processes that decode; 0 decodes in this one. By default one per core but one, at most 16,
            and no more than there are batches; none where one or two cores run the network, too.
        rows: The rows to take; all if None.

    Yields:
        Batches; every item comes once, also those that cannot be read or whose images differ in size.
    """
    device = torch.device(device)
    taken = range(len(judged)) if rows is None else rows.tolist()
    items = [_Item(row, judged.images[row], judged.side, judged.reader) for row in taken]
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    if workers is None:
        cores = _cores()
        workers = min(cores - 1, _MOST_WORKERS, len(chunks)) if cores > 2 or device.type != "cpu" else 0
    for chunk in _decoded(chunks, workers, device):
        if chunk.errors:
            yield Batch(np.array([*chunk.errors], np.intp), [], chunk.errors)
        yield from (part.on_device(device) for part in chunk.parts)


def _decoded(chunks: list[list[_Item]], workers: int, device: torch.device) -> Iterator[_Chunk]:
    """What chunks decode to, in order, ahead of the one who asks."""
    if not chunks:
        return
    with warnings.catch_warnings():
        # DataLoader doubts numbers of workers, and Python that processes can be forked beside threads.
        warnings.simplefilter("ignore")
        loader = DataLoader(
            _Decoder(),
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_give_way,
            pin_memory=device.type == "cuda",
        )
        decoded = iter(loader)
    try:
        yield from decoded
    except RuntimeError as error:
        raise ValueError(f"a process that decodes images has ended ({error}); try it with --workers 0") from error


def _unchanged(chunk: Any) -> Any:
    return chunk


def _cores() -> int:
    """Cores that this process may use, its share of them under torchrun."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _give_way(worker: int) -> None:
    """A worker that preempts one of the network's threads makes all of them wait for that one."""
    if hasattr(os, "nice"):
        os.nice(10)
