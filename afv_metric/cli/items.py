"""Image files as the items of a command: what is the matter with one is said, and the others go on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tqdm import tqdm

from afv_metric.cli.options import add_batch_size, add_device, add_quiet, add_reading
from afv_metric.cli.outcome import Problems, describe, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from afv_metric.images.reading import Reader
    from afv_metric.metric import AFVDistance

__all__ = [
    "Compare", "add_batches", "as_progress", "batches", "list_files", "load_metric", "load_rival", "measure_batch",
    "printable", "read_item", "size_of",
]  # fmt: skip

Compare: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Distances ``(N,)`` of two batches of images as they are read."""

_Item = TypeVar("_Item")
_Named = TypeVar("_Named", bound=tuple[Any, ...])


def add_batches(command: argparse.ArgumentParser) -> None:
    """Add how to read, where to compute, how much at a time, and silence."""
    add_reading(command)
    add_device(command)
    add_batch_size(command, 16)
    add_quiet(command)


def load_metric(options: argparse.Namespace, *, spatial: bool = False) -> AFVDistance:
    """Load the distance that the options ask for; the device becomes the one that they stand for."""
    from afv_metric.metric import AFVDistance
    from afv_metric.runtime import find_device

    options.device = find_device(options.device)
    return AFVDistance(options.weights, form=options.form, spatial=spatial).to(options.device)


def load_rival(name: str, options: argparse.Namespace, channels: int) -> Compare:
    """Load a metric that ``afv-metric eval`` knows by name, on the device of :func:`load_metric`."""
    import torch

    from afv_metric.images.tensors import to_network_range

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
    from afv_metric.images.listing import list_images

    listing = list_images(folder)
    if not listing.files:
        raise ValueError(listing.lack())
    if listing.summary():
        say(listing.summary())
    return {name: Path(path) for name, path in listing.files.items()}


def read_item(path: Path, reader: Reader, problems: Problems, square: int | None = None) -> Tensor | None:
    """Read an image that the metric takes, or say what is the matter with it."""
    from afv_metric.images import ImageError
    from afv_metric.images.tensors import SMALLEST_SIDE

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
    import torch

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
