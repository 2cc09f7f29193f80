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
from afv_metric.cli.outcome import describe, say
from afv_metric.images.listing import Picture, list_images
from afv_metric.images.reading import MOST_PIXELS, ImageError, Reader, percentile_range
from afv_metric.images.streams import find_sources
from afv_metric.images.tensors import SMALLEST_SIDE, to_network_range
from afv_metric.images.tiles import Tiling
from afv_metric.metric import AFVDistance
from afv_metric.runtime import find_device

__all__ = [
    "Compare", "as_progress", "batches", "in_range", "list_files", "load_metric", "load_rival", "pictures_of",
    "printable", "read_item", "reader_of", "size_of", "tiling_of",
]  # fmt: skip

Compare = Callable[[Tensor, Tensor], Tensor]
"""Distances ``(N,)`` of two batches of images in the range of the networks, of which the first may be one image."""

_Item = TypeVar("_Item")
_Named = TypeVar("_Named", bound=tuple[Any, ...])


def load_metric(options: argparse.Namespace, *, spatial: bool = False) -> AFVDistance:
    """Load the distance that the options ask for; the device becomes the one that they stand for."""
    options.device = find_device(options.device)
    # Readers give no value beyond the range.
    return AFVDistance(options.weights, form=options.form, spatial=spatial, check=False).to(options.device)


def load_rival(name: str, options: argparse.Namespace) -> Compare:
    """Load a metric that ``afv-metric eval`` knows by name, on the device of :func:`load_metric`."""
    metrics = import_module("bapps_eval.metrics")  # by name, as bapps_eval stands above this package
    (metric,) = metrics.make_metrics([name], metrics.Choice([options.weights], str(options.device)))

    def compare(*images: Tensor) -> Tensor:
        distances: Tensor = metric.distances(list(torch.broadcast_tensors(*images)))[:, 0]
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


def read_item(path: Path, options: argparse.Namespace, square: int | None = None) -> Tensor | None:
    """Read an image that the metric takes by the reader of the options, or say what is the matter with it."""
    try:
        image: Tensor = options.reader.read(path, square=square)
        if min(image.shape[2:]) >= SMALLEST_SIDE:
            return image
        options.problems.add(f"{path}: is {size_of(image)} pixels, the smallest side is {SMALLEST_SIDE}")
    except ImageError as error:
        options.problems.add(f"{path}: cannot be read: it {error.reason}", error)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or describe(error)
        options.problems.add(f"{path}: cannot be read: {reason}", error)
    return None


def size_of(image: Tensor) -> str:
    """Width and height in words."""
    return f"{image.shape[3]}x{image.shape[2]}"


def in_range(images: Sequence[Tensor], options: argparse.Namespace) -> Tensor:
    """A batch of images as they are read, in the range of the networks, on the device of the options."""
    joint, channels = torch.cat(list(images)).to(options.device), options.reader.channels
    return to_network_range(joint, normalize=False, dtype=torch.float32, channels=channels)


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


def as_progress(items: Sequence[_Item], options: argparse.Namespace) -> Iterator[_Item]:
    """Go through items with a progress bar."""
    yield from tqdm(items, disable=options.quiet, leave=False)
