"""Image files as the items of a command: what is the matter with one is said, and the others go on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.cli.outcome import Problems, describe, say
from afv_metric.images.listing import Picture, list_images
from afv_metric.images.reading import MOST_PIXELS, ImageError, Reader, percentile_range
from afv_metric.images.streams import find_sources
from afv_metric.images.tensors import SMALLEST_SIDE, to_network_range
from afv_metric.images.tiles import Tiling
from afv_metric.metric import AFVDistance
from afv_metric.runtime import find_device

__all__ = [
    "Compare", "as_progress", "batches", "list_files", "load_metric", "load_rival", "measure_batch", "pictures_of",
    "printable", "read_item", "reader_of", "size_of", "tiling_of",
]  # fmt: skip

Compare = Callable[[Tensor, Tensor], Tensor]
"""Distances ``(N,)`` of two batches of images as they are read."""

_Item = TypeVar("_Item")
_Named = TypeVar("_Named", bound=tuple[Any, ...])


def load_metric(options: argparse.Namespace, *, spatial: bool = False) -> AFVDistance:
    """Load the distance that the options ask for; the device becomes the one that they stand for."""
    options.device = find_device(options.device)
    return AFVDistance(options.weights, form=options.form, spatial=spatial).to(options.device)


def load_rival(name: str, options: argparse.Namespace, channels: int) -> Compare:
    """Load a metric that ``afv-metric eval`` knows by name, on the device of :func:`load_metric`."""
    metrics = import_module("bapps_eval.metrics")  # by name, as bapps_eval stands above this package
    (metric,) = metrics.make_metrics([name], metrics.Choice([options.weights], str(options.device)))

    def compare(*images: Tensor) -> Tensor:
        prepared = [to_network_range(i, normalize=False, dtype=torch.float32, channels=channels) for i in images]
        distances: Tensor = metric.distances(prepared)[:, 0]
        if not distances.isfinite().all():
            raise ValueError(f"{name} gave no finite number")
        return distances

    return compare


def printable(name: str) -> str:
    r"""A name in which bytes that are no text, which the file systems of Linux allow, are escaped.

    Example:
        >>> print(printable("caf\udce9.png"))
        caf\udce9.png
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def list_files(folder: Path) -> dict[str, Path]:
    """Images of a folder and the folders in it by relative path, sorted; what else is there is said in one line."""
    files, passed_over = list_images(folder)
    if passed_over:
        say(passed_over)
    return {name: Path(path) for name, path in files.items()}


def reader_of(
    options: argparse.Namespace, images: Iterable[Path | Picture], made_for: AFVDistance | Bundle | None = None
) -> Reader:
    """The rules that the options of ``add_reading`` ask for, which become ``options.reader``.

    Percentiles are over all images of the command. The channels are those that the metric or bundle is made for, and so
    is the declared range, unless the options declare one; a different one is said.
    """
    reader = Reader(
        data_range=tuple(options.range) if options.range else None,
        frame=options.frame,
        window=options.window,
        colour_management=not options.no_colour_management,
        most_pixels=options.most_pixels or MOST_PIXELS,
    )
    if options.percentiles:
        reader = replace(reader, data_range=percentile_range(images, *options.percentiles, reader=reader))
        say("between these percentiles lies --range {:g} {:g}".format(*reader.data_range or ()))
    if made_for is not None:
        known = made_for.data_range
        if known and reader.data_range not in (None, known):
            say(f"{options.weights} is made for images of the range {known[0]:g} {known[1]:g}, not of this one")
        reader = replace(reader, data_range=reader.data_range or known, channels=made_for.channels)
    options.reader = reader
    return reader


def pictures_of(data: Sequence[str]) -> Iterator[Picture]:
    """Up to 1,000 images of each folder or archive, evenly spread, or the first of a stream, for percentiles."""
    for source in find_sources(data):
        yield from source.spread(1000)


def tiling_of(options: argparse.Namespace, *, cut: bool) -> Tiling | None:
    """The tiling that the options of ``add_tiles`` ask for; by default large images are cut, or not."""
    most = options.tiles or (Tiling.most if cut else 1)
    if most == 1 and not options.cache_gb:
        return None
    return Tiling(most, options.least_deviation, options.weigh_by, options.cache_gb)


def read_item(path: Path, reader: Reader, problems: Problems, square: int | None = None) -> Tensor | None:
    """Read an image that the metric takes, or say what is the matter with it."""
    try:
        image = reader.read(path, square=square)
    except ImageError as error:
        problems.add(f"{path}: cannot be read: it {error.reason}", error)
        return None
    except (OSError, MemoryError) as error:
        problems.add(f"{path}: cannot be read: {getattr(error, 'strerror', None) or describe(error)}", error)
        return None
    if min(image.shape[2:]) < SMALLEST_SIDE:
        problems.add(f"{path}: is {size_of(image)} pixels, the smallest side is {SMALLEST_SIDE}")
        return None
    return image


def size_of(image: Tensor) -> str:
    """Width and height in words."""
    return f"{image.shape[3]}x{image.shape[2]}"


def batches(items: Iterable[_Named], size: int) -> Iterator[list[_Named]]:
    """Bring together neighbours whose last elements, images, are of one size."""
    batch: list[_Named] = []
    for item in items:
        if batch and (len(batch) == size or item[-1].shape != batch[0][-1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def measure_batch(
    metrics: Sequence[Compare], batch: Sequence[tuple[str, Tensor, Tensor]], device: torch.device, problems: Problems
) -> list[tuple[str, list[float]]]:
    """Distances of named pairs by each metric; where all fail together, pair by pair, and what fails alone is said."""
    names, first, second = zip(*batch, strict=True)
    if all(image is first[0] for image in first):  # a reference
        first = first[:1]
    try:
        images = torch.cat(first).to(device), torch.cat(second).to(device)
        values = torch.stack([metric(*images).cpu().double() for metric in metrics], 1)
        return list(zip(names, values.tolist(), strict=True))
    except Exception as error:
        if len(batch) == 1:
            problems.add(f"{names[0]} ({size_of(second[0])} pixels): cannot be compared: {describe(error)}", error)
            return []
    return [found for pair in batch for found in measure_batch(metrics, [pair], device, problems)]


def as_progress(items: Sequence[_Item], options: argparse.Namespace) -> Iterator[_Item]:
    """Go through items with a progress bar."""
    yield from tqdm(items, disable=options.quiet, leave=False)
