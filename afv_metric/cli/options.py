"""Arguments that several commands have, and the kinds of values that arguments take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.cli.outcome import say

if TYPE_CHECKING:
    from afv_metric.bundles.bundle import Bundle
    from afv_metric.images.listing import Picture
    from afv_metric.images.reading import Reader
    from afv_metric.images.tiles import Tiling
    from afv_metric.metric import AFVDistance

__all__ = [
    "FORMS", "add_batch_size", "add_device", "add_json", "add_metric", "add_quiet", "add_reading", "add_tiles",
    "add_weights", "count", "pictures_of", "reader_of", "real", "tiling_of", "whole",
]  # fmt: skip

_DEVICES = ("cpu", "cuda", "mps", "xpu")
FORMS = ("fisher", "local", "activation")
"""Written out, as the package's own list would import torch."""


def whole(text: str, least: int | None = None) -> int:
    """A whole number.

    Example:
        >>> whole("7")
        7
    """
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if least is not None and number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
    return number


def count(least: int = 1) -> Callable[[str], int]:
    """Kind of argument: a whole number that is not below the least.

    Example:
        >>> count()("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: must be at least 1, got 0
    """
    return lambda text: whole(text, least)


def real(text: str) -> float:
    """A number.

    Example:
        >>> real("0.5")
        0.5
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def device(text: str) -> str:
    """The name of a device, or ``auto``; whether it can be used is found later, by torch.

    Example:
        >>> device("gpu")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: there is no device 'gpu', only cpu, cuda, mps, xpu and auto, a GPU if there is one
    """
    if text != "auto" and text.partition(":")[0] not in _DEVICES:
        raise argparse.ArgumentTypeError(
            f"there is no device {text!r}, only {', '.join(_DEVICES)} and auto, a GPU if there is one"
        )
    return text


def add_weights(command: argparse.ArgumentParser) -> None:
    """Add the bundle of the distance."""
    command.add_argument(
        "--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id (default: %(default)s)"
    )


def add_metric(command: argparse.ArgumentParser) -> None:
    """Add the bundle and the form of the distance."""
    add_weights(command)
    command.add_argument("--form", choices=FORMS, help="form of the distance (default: the bundle's)")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add the device; it is a text that ``afv_metric.runtime.find_device`` takes."""
    command.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda, mps, or auto (default): a GPU where there is one"
    )


def add_batch_size(command: argparse.ArgumentParser, size: int) -> None:
    """Add how many items are computed at a time."""
    command.add_argument(
        "--batch-size", type=count(), default=size, metavar="N", help="items computed at a time (default: %(default)s)"
    )


def add_json(command: argparse.ArgumentParser) -> None:
    """Add output for programs."""
    command.add_argument("--json", action="store_true", help="print JSON, with all digits")


def add_quiet(command: argparse.ArgumentParser) -> None:
    """Add silence."""
    command.add_argument("--quiet", action="store_true", help="show no progress bar")


def add_reading(command: argparse.ArgumentParser) -> None:
    """Add how image files are read; :func:`reader_of` takes the answers."""
    group = command.add_argument_group("reading", "how image files are read")
    declared = group.add_mutually_exclusive_group()
    declared.add_argument(
        "--range", type=real, nargs=2, metavar=("LOW", "HIGH"),
        help="values that are black and white, of files of more than 8 bits whose format does not tell "
        "(default: those of the bundle, if it has any)",
    )  # fmt: skip
    declared.add_argument(
        "--percentiles", type=real, nargs=2, metavar=("LOW", "HIGH"),
        help="the same by percentiles over all images that the command is given, as 0.1 99.9; "
        "also --range percentile LOW HIGH",
    )  # fmt: skip
    group.add_argument("--window", action="store_true", help="the range of a DICOM file is its own window")
    group.add_argument(
        "--frame",
        type=whole,
        metavar="N",
        help="frame, page or slice, from 0 (default: the first; of a volume the middle)",
    )
    group.add_argument("--no-colour-management", action="store_true", help="embedded colour profiles are ignored")
    group.add_argument("--most-pixels", type=count(), metavar="N", help="larger images are refused")


def reader_of(
    options: argparse.Namespace, images: Iterable[Path | Picture], made_for: AFVDistance | Bundle | None = None
) -> Reader:
    """The rules that the options of :func:`add_reading` ask for, which the first call settles.

    Args:
        options: The options.
        images: All images of the command, for percentiles.
        made_for: What the images are compared by, whose channels are read, and whose declared range unless the options
            declare one; a different one is said.
    """
    from afv_metric.images.reading import MOST_PIXELS, DataRange, Reader, percentile_range

    settled: Reader | None = getattr(options, "reader", None)
    if settled is not None:
        return settled
    reader = Reader(
        data_range=DataRange(*options.range) if options.range else None,
        frame=options.frame,
        window=options.window,
        colour_management=not options.no_colour_management,
        most_pixels=options.most_pixels or MOST_PIXELS,
    )
    if options.percentiles:
        reader = replace(reader, data_range=percentile_range(images, *options.percentiles, reader=reader))
        say("between these percentiles lies --range {:g} {:g}".format(*reader.declared or ()))
    if made_for is not None:
        known = made_for.data_range
        if known and reader.declared not in (None, known):
            say(f"{options.weights} is made for images of the range {known[0]:g} {known[1]:g}, not of this one")
        reader = replace(reader, data_range=reader.data_range or known, channels=made_for.channels)
    options.reader = reader
    return reader


def pictures_of(data: Sequence[Path]) -> Iterator[Picture]:
    """Up to 1,000 training images of each folder or archive, evenly spread, for percentiles."""
    from afv_metric.images.sources import find_source

    for path in data:
        yield from find_source(path).spread(1000)


def add_tiles(command: argparse.ArgumentParser) -> None:
    """Add where decoded images are kept, and how large ones are cut; :func:`tiling_of` takes the answers on that."""
    command.add_argument("--cache", type=Path, help="folder for the decoded images")
    group = command.add_argument_group("tiles", "how large images are cut into squares")
    group.add_argument(
        "--tiles", type=count(), metavar="N",
        help="at most N squares per image, at native resolution and coarser ones; 1: the middle square of each image "
        "(default: 1024 for adapt and the recipe folder, else 1)",
    )  # fmt: skip
    group.add_argument(
        "--cache-gb", type=real, metavar="GB", help="bound on all tiles; images give fewer where needed (16)"
    )
    group.add_argument(
        "--least-deviation", type=real, default=2.0, metavar="LEVELS",
        help="tiles of a smaller standard deviation, of 255 levels, are empty and left out (2)",
    )  # fmt: skip
    group.add_argument(
        "--weigh-by", choices=("area", "image"), default="area",
        help="whether an image counts by its tiles (default), or all images alike",
    )  # fmt: skip


def tiling_of(options: argparse.Namespace, *, cut: bool) -> Tiling | None:
    """The tiling that the options of :func:`add_tiles` ask for.

    Args:
        options: The options.
        cut: Whether large images are cut unless the options say otherwise.
    """
    from afv_metric.images.tiles import Tiling

    most = options.tiles or (Tiling.most if cut else 1)
    if most == 1:
        if options.cache_gb:
            raise ValueError("--cache-gb bounds the number of tiles: give --tiles as well")
        return None
    return Tiling(most, options.least_deviation, options.weigh_by, options.cache_gb)
