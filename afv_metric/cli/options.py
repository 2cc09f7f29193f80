"""Arguments that several commands have, and the kinds of values that arguments take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afv_metric.bundles.resolve import DEFAULT_BUNDLE

__all__ = ["FORMS", "add", "add_reading", "add_tiles", "count", "real", "whole"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")
FORMS = ("fisher", "local", "activation")
"""Written out, as the package's own list would import torch."""


def whole(text: str, least: int | None = None) -> int:
    """A whole number."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if least is not None and number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
    return number


def count(least: int = 1) -> Callable[[str], int]:
    """Kind of argument: a whole number that is not below the least."""
    return lambda text: whole(text, least)


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def device(text: str) -> str:
    """The name of a device, or ``auto``; whether it can be used is found later, by torch."""
    if text != "auto" and text.partition(":")[0] not in _DEVICES:
        raise argparse.ArgumentTypeError(
            f"there is no device {text!r}, only {', '.join(_DEVICES)} and auto, a GPU if there is one"
        )
    return text


_SHARED: dict[str, dict[str, Any]] = {
    "weights": {
        "default": DEFAULT_BUNDLE, "metavar": "BUNDLE", "help": "name, folder or hub id (default: %(default)s)",
    },
    "form": {"choices": FORMS, "help": "form of the distance (default: the bundle's)"},
    "device": {
        "type": device, "default": "auto", "help": "cpu, cuda, mps, or auto (default): a GPU where there is one",
    },
    "batch-size": {
        "type": count(), "default": 16, "metavar": "N", "help": "items computed at a time (default: %(default)s)",
    },
    "json": {"action": "store_true", "help": "print JSON, with all digits"},
    "html": {"type": Path, "metavar": "FILE", "help": "write a page to look at, in one file"},
    "quiet": {"action": "store_true", "help": "show no progress bar"},
}  # fmt: skip


def add(command: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add options that several commands have, by name; ``changes`` are what is different for this command."""
    for name in names:
        command.add_argument(f"--{name}", **{**_SHARED[name], **changes})


def add_reading(command: argparse.ArgumentParser) -> None:
    """Add how image files are read; :func:`afv_metric.cli.items.reader_of` takes the answers."""
    group = command.add_argument_group("reading", "how image files are read")
    declared = group.add_mutually_exclusive_group()
    declared.add_argument(
        "--range", type=real, nargs=2, metavar=("LOW", "HIGH"),
        help="values that are black and white, of files of more than 8 bits whose format does not say "
        "(default: those of the bundle, if it has any)",
    )  # fmt: skip
    declared.add_argument(
        "--percentiles", type=real, nargs=2, metavar=("LOW", "HIGH"),
        help="the same by percentiles over all images that the command is given, as 0.1 99.9",
    )  # fmt: skip
    group.add_argument("--window", action="store_true", help="the range of a DICOM file is its own window")
    group.add_argument(
        "--frame", type=whole, metavar="N",
        help="frame, page or slice, from 0 (default: the first; of a volume the middle)",
    )  # fmt: skip
    group.add_argument("--no-colour-management", action="store_true", help="embedded colour profiles are ignored")
    group.add_argument("--most-pixels", type=count(), metavar="N", help="larger images are refused")


def add_tiles(command: argparse.ArgumentParser) -> None:
    """Add where decoded images are kept, and how large ones are cut; ``tiling_of`` takes the answers on that."""
    command.add_argument("--cache", type=Path, help="folder for the decoded images")
    group = command.add_argument_group("tiles", "how large images are cut into squares")
    group.add_argument(
        "--tiles", type=count(), metavar="N",
        help="at most N squares per image, at native resolution and coarser ones; 1: the middle square of each image "
        "(default: 1024 for adapt and the recipe folder, else 1)",
    )  # fmt: skip
    group.add_argument(
        "--cache-gb", type=real, metavar="GB",
        help="bound on all tiles (16): images give fewer where needed; of a stream so much is read at a time",
    )  # fmt: skip
    group.add_argument(
        "--least-deviation", type=real, default=2.0, metavar="LEVELS",
        help="tiles of a smaller standard deviation, of 255 levels, are empty and left out (2)",
    )  # fmt: skip
    group.add_argument(
        "--weigh-by", choices=("area", "image"), default="area",
        help="whether an image counts by its tiles (default), or all images alike",
    )  # fmt: skip
