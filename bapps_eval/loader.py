"""From files to batches on the device: decoding in worker processes, ahead of the metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bapps_eval.data import JudgedSet, read_image_source

__all__ = ["Batch", "batches"]

_MOST_WORKERS = 16
_MOST_WAITING = 4  # batches of items whose sizes are rare, which bounds memory


class Batch(NamedTuple):
    """Items of one image size, or items that could not be read.

    Attributes:
        rows: Row of each item in its set, ``(n,)``.
        images: For each image of an item a tensor ``(n, 3, H, W)`` in [-1, 1], on the device, in channels-last memory;
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


@dataclass
class _Decoded:
    """Items of one size: every image once, and the images of each item.

    Attributes:
        rows: Row of each item.
        pixels: uint8 ``(u, H, W, 3)``.
        columns: For the first images, the second and so on, their places among the pixels.
    """

    rows: list[int]
    pixels: Tensor
    columns: list[list[int]]

    def pin_memory(self) -> _Decoded:
        """The same in page-locked memory, from which devices copy on their own."""
        return _Decoded(self.rows, self.pixels.pin_memory(), self.columns)

    def take(self, which: slice) -> _Decoded:
        """Some of the items, with their pixels alone."""
        columns = [column[which] for column in self.columns]
        places = {place: index for index, place in enumerate(dict.fromkeys(chain(*columns)))}
        return _Decoded(self.rows[which], self.pixels[list(places)], [[places[p] for p in c] for c in columns])

    def joined(self, other: _Decoded) -> _Decoded:
        """These items and then the others."""
        shifted = [[place + len(self.pixels) for place in column] for column in other.columns]
        columns = [first + second for first, second in zip(self.columns, shifted, strict=True)]
        return _Decoded(self.rows + other.rows, torch.cat([self.pixels, other.pixels]), columns)

    def on_device(self, device: torch.device) -> Batch:
        """Send the bytes, and make numbers of them there."""
        pixels = self.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        images = pixels.to(torch.float32).div_(127.5).sub_(1)  # channels_last, as the bytes came
        return Batch(np.array(self.rows, np.intp), [_pick(images, column) for column in self.columns], {})


@dataclass
class _Chunk:
    """What a list of items decodes to: one part per size, and errors by row."""

    parts: list[_Decoded] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    def pin_memory(self) -> _Chunk:
        """See :meth:`_Decoded.pin_memory`."""
        return _Chunk([part.pin_memory() for part in self.parts], self.errors)


class _Decoder(Dataset[_Chunk]):
    """Turns a list of items into what they decode to."""

    def __getitem__(self, items: Sequence[_Item]) -> _Chunk:
        return _decode(items)


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
        device: Where the images should be; they travel as bytes, each once.
        workers: Processes that decode; 0 decodes in this one. By default one per core but one, at most 16,
            and no more than there are batches; none where one or two cores run the network, too.
        rows: The rows to take; all if None.

    Yields:
        Batches; every item comes once, also those that cannot be read or whose images differ in size.
    """
    device = torch.device(device)
    taken = range(len(judged)) if rows is None else rows.tolist()
    items = [_Item(row, judged.images[row], judged.side) for row in taken]
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    if workers is None:
        cores = _cores()
        workers = min(cores - 1, _MOST_WORKERS, len(chunks)) if cores > 2 or device.type != "cpu" else 0
    waiting: dict[torch.Size, _Decoded] = {}
    for chunk in _decoded(chunks, workers, device):
        if chunk.errors:
            yield Batch(np.array([*chunk.errors], np.intp), [], chunk.errors)
        for part in chunk.parts:
            size = part.pixels.shape[1:]
            whole = waiting.pop(size).joined(part) if size in waiting else part
            if len(whole.rows) > batch_size:
                waiting[size] = whole.take(slice(batch_size, None))
                whole = whole.take(slice(batch_size))
            if len(whole.rows) == batch_size:
                yield whole.on_device(device)
            else:
                waiting[size] = whole
        if sum(len(part.rows) for part in waiting.values()) > _MOST_WAITING * batch_size:
            yield from (waiting.pop(size).on_device(device) for size in list(waiting))
    for part in waiting.values():
        yield part.on_device(device)


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
    yield from decoded


def _unchanged(chunk: Any) -> Any:
    return chunk


def _decode(items: Sequence[_Item]) -> _Chunk:
    """Read every image once, and sort the items by size."""
    images: dict[Path, Tensor] = {}
    chunk = _Chunk()
    sizes: dict[torch.Size, list[_Item]] = {}
    for item in items:
        try:
            for source in item.sources:
                if source not in images:
                    images[source] = read_image_source(source, item.side)[0].permute(1, 2, 0)
        except (OSError, ValueError, MemoryError) as error:
            chunk.errors[item.row] = str(error) or f"{source}: {type(error).__name__}"
            continue
        found = {images[source].shape for source in item.sources}
        if len(found) > 1:
            chunk.errors[item.row] = f"these images should have one size: {', '.join(map(str, item.sources))}"
        else:
            sizes.setdefault(found.pop(), []).append(item)
    chunk.parts = [_gather(group, images) for group in sizes.values()]
    return chunk


def _gather(items: Sequence[_Item], images: Mapping[Path, Tensor]) -> _Decoded:
    """Lay out first images, second ones and so on one after the other: unless some are shared, columns are slices."""
    columns = [list(column) for column in zip(*(item.sources for item in items), strict=True)]
    places = {source: place for place, source in enumerate(dict.fromkeys(chain(*columns)))}
    pixels = torch.stack([images[source] for source in places])
    return _Decoded([item.row for item in items], pixels, [[places[p] for p in column] for column in columns])


def _pick(images: Tensor, places: list[int]) -> Tensor:
    """Images by their places; neighbours are not copied."""
    start, count = places[0], len(places)
    return images[start : start + count] if places == list(range(start, start + count)) else images[places]


def _cores() -> int:
    """Cores that this process may use, its share of them under torchrun."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _give_way(worker: int) -> None:
    """A worker that preempts one of the network's threads makes all of them wait for that one."""
    if hasattr(os, "nice"):
        os.nice(10)
