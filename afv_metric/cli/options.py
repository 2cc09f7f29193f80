"""Arguments that several commands have, and the kinds of values that arguments take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from afv_metric.bundles.resolve import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from afv_metric.images.reading import Reader
    from afv_metric.images.tiles import Tiling

__all__ = [
    "FORMS", "add_batch_size", "add_device", "add_form", "add_json", "add_quiet", "add_reading", "add_tiles",
    "add_weights", "count", "reader_of", "real", "tiling_of", "whole",
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


def add_form(command: argparse.ArgumentParser) -> None:
    """Add the form of the distance."""
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
    group.add_argument(
        "--range", type=real, nargs=2, metavar=("LOW", "HIGH"),
        help="values that are black and white, of files of more than 8 bits whose format does not tell",
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


def reader_of(options: argparse.Namespace) -> Reader:
    """The rules that the options of :func:`add_reading` ask for."""
    from afv_metric.images.reading import MOST_PIXELS, DataRange, Reader

    return Reader(
        data_range=DataRange(*options.range) if options.range else None,
        frame=options.frame,
        window=options.window,
        colour_management=not options.no_colour_management,
        most_pixels=options.most_pixels or MOST_PIXELS,
    )


def add_tiles(command: argparse.ArgumentParser) -> None:
    """Add how large images are cut; :func:`tiling_of` takes the answers."""
    command.add_argument(
        "--tiles", type=count(), metavar="N",
        help="cut large images into at most N squares each, at native resolution and coarser ones "
        "(default: the middle square of each alone)",
    )  # fmt: skip
    command.add_argument(
        "--cache-gb", type=real, metavar="GB", help="bound on the decoded images; fewer tiles where needed"
    )


def tiling_of(options: argparse.Namespace) -> Tiling | None:
    """The tiling that the options of :func:`add_tiles` ask for."""
    from afv_metric.images.tiles import Tiling

    return Tiling(options.tiles) if options.tiles else None
