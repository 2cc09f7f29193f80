"""From files to batches on the device: decoding in worker processes, ahead of the metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bapps_eval.data import JudgedSet, read_image_source

__all__ = ["Batch", "batches"]

_MOST_WORKERS = 16


class Batch(NamedTuple):
    """Items of one image size and one number of images, from one set or several.

    Attributes:
        sets: Index of the set of each item, ``(n,)``.
        rows: Row of each item in its set, ``(n,)``.
        images: For each image of an item a tensor ``(n, 3, H, W)`` in [-1, 1], on the device, in channels-last memory.
    """

    sets: NDArray[np.intp]
    rows: NDArray[np.intp]
    images: list[Tensor]


class _Item(NamedTuple):
    """An item to decode. Its files travel with it, so that workers need no copy of the sets."""

    set: int
    row: int
    sources: tuple[Path, ...]
    side: int | None


@dataclass
class _Decoded:
    """Items of one size and one number of images: every image once, and which of them each item consists of.

    Attributes:
        items: Index of the set and row of each.
        pixels: uint8 ``(u, H, W, 3)``.
        columns: For the first images, the second and so on, their places among the pixels.
    """

    items: list[tuple[int, int]]
    pixels: Tensor
    columns: list[list[int]]

    @property
    def kind(self) -> tuple[int, ...]:
        """Number of images of an item, height and width."""
        return (len(self.columns), *self.pixels.shape[1:3])

    def pin_memory(self) -> _Decoded:
        """The same in page-locked memory, from which devices copy on their own."""
        return _Decoded(self.items, self.pixels.pin_memory(), self.columns)

    def take(self, which: slice) -> _Decoded:
        """Some of the items, with their pixels alone."""
        columns = [column[which] for column in self.columns]
        places = {place: index for index, place in enumerate(dict.fromkeys(chain(*columns)))}
        return _Decoded(self.items[which], self.pixels[list(places)], [[places[p] for p in c] for c in columns])

    def joined(self, other: _Decoded) -> _Decoded:
        """These items and then the others."""
        shifted = [[place + len(self.pixels) for place in column] for column in other.columns]
        columns = [first + second for first, second in zip(self.columns, shifted, strict=True)]
        return _Decoded(self.items + other.items, torch.cat([self.pixels, other.pixels]), columns)

    def on_device(self, device: torch.device) -> Batch:
        """Send the bytes, and make numbers of them there."""
        pixels = self.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        images = pixels.to(torch.float32).div_(127.5).sub_(1)  # channels_last, as the bytes came
        sets, rows = np.array(self.items, np.intp).T
        return Batch(sets, rows, [_pick(images, column) for column in self.columns])


class _Failure(NamedTuple):
    """What went wrong in a worker; as a value, because DataLoader buries exceptions in tracebacks."""

    message: str


class _Decoder(Dataset[list[_Decoded] | _Failure]):
    """Turns a list of items into what they decode to, one part for each size and number of images."""

    def __getitem__(self, items: Sequence[_Item]) -> list[_Decoded] | _Failure:
        try:
            return _decode(items)
        except (OSError, ValueError) as error:
            return _Failure(str(error))


def batches(
    sets: Sequence[JudgedSet],
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    rows: Sequence[NDArray[np.intp]] | None = None,
) -> Iterator[Batch]:
    """Decode sets in batches that go over the borders of sets.

    Sets are worked off in order. An item of a rare size waits for others of its size, but not longer than its set:
    when items are decoded that are all of later sets, what is left of the earlier ones is given out, however few.

    Args:
        sets: The sets.
        batch_size: Most items in a batch.
        device: Where the images should be; they travel as bytes, each once.
        workers: Processes that decode; 0 decodes in this one. By default one for each core but one, at most 16,
            and no more than there are batches; none where one or two cores run the network, too.
        rows: For each set the rows to take; all if None.

    Yields:
        Batches; every item comes once.

    Raises:
        ValueError: If a file is not an image, or the images of an item differ in size; the files are named.
    """
    device = torch.device(device)
    rows = [np.arange(len(judged)) for judged in sets] if rows is None else rows
    items = [
        _Item(index, int(row), judged.images[row], judged.side)
        for index, (judged, taken) in enumerate(zip(sets, rows, strict=True))
        for row in taken
    ]
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    if workers is None:
        cores = _cores()
        workers = min(cores - 1, _MOST_WORKERS, len(chunks)) if cores > 2 or device.type != "cpu" else 0
    waiting: dict[tuple[int, ...], _Decoded] = {}
    for chunk, parts in zip(chunks, _decoded(chunks, workers, device), strict=True):
        if isinstance(parts, _Failure):
            raise ValueError(parts.message)
        for kind in [kind for kind, part in waiting.items() if part.items[0][0] < chunk[0].set]:
            yield waiting.pop(kind).on_device(device)
        for part in parts:
            whole = waiting.pop(part.kind).joined(part) if part.kind in waiting else part
            if len(whole.items) > batch_size:
                waiting[part.kind] = whole.take(slice(batch_size, None))
                whole = whole.take(slice(batch_size))
            if len(whole.items) == batch_size:
                yield whole.on_device(device)
            else:
                waiting[part.kind] = whole
    for part in waiting.values():
        yield part.on_device(device)


def _decoded(chunks: list[list[_Item]], workers: int, device: torch.device) -> Iterator[list[_Decoded] | _Failure]:
    """What chunks decode to, in order, ahead of the one who asks."""
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


def _unchanged(parts: list[_Decoded] | _Failure) -> list[_Decoded] | _Failure:
    return parts


def _decode(items: Sequence[_Item]) -> list[_Decoded]:
    """Read every image once, and sort the items by kind."""
    images: dict[tuple[Path, int | None], Tensor] = {}
    kinds: dict[tuple[int, torch.Size], list[_Item]] = {}
    for item in items:
        for source in item.sources:
            if (source, item.side) not in images:
                images[source, item.side] = read_image_source(source, item.side)[0].permute(1, 2, 0)
        sizes = {images[source, item.side].shape for source in item.sources}
        if len(sizes) > 1:
            raise ValueError(f"these images should have one size: {', '.join(map(str, item.sources))}")
        kinds.setdefault((len(item.sources), sizes.pop()), []).append(item)
    return [_gather(group, images) for group in kinds.values()]


def _gather(items: Sequence[_Item], images: Mapping[tuple[Path, int | None], Tensor]) -> _Decoded:
    """Lay out first images, second ones and so on one after the other: unless some are shared, columns are slices."""
    keys = [[(item.sources[index], item.side) for item in items] for index in range(len(items[0].sources))]
    places = {key: place for place, key in enumerate(dict.fromkeys(chain(*keys)))}
    pixels = torch.stack([images[key] for key in places])
    return _Decoded([item[:2] for item in items], pixels, [[places[key] for key in column] for column in keys])


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
