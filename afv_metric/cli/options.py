"""Arguments that several commands have, and the kinds of values that arguments take."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from afv_metric.bundles.resolve import DEFAULT_BUNDLE

__all__ = [
    "FORMS", "add_batch_size", "add_device", "add_form", "add_json", "add_quiet", "add_weights", "count", "real",
    "whole",
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
