"""What commands run on: the device they are told, what it is fast in, and the versions that numbers may depend on."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["computes_bfloat16", "parse_device", "read_versions"]

_PACKAGES = ("torchvision", "numpy", "scipy", "pillow", "lpips", "piq", "torchmetrics")


def parse_device(text: str) -> torch.device:
    """Make a device of an argument, and try it: ``auto`` is the best there is.

    Raises:
        argparse.ArgumentTypeError: If it cannot be used.

    Example:
        >>> parse_device("cpu")
        device(type='cpu')
    """
    import torch  # only here, as --help needs none of it

    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=text).device
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {str(error).splitlines()[0]}") from error


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes convolutions in bfloat16, rather than imitate it at many times the cost of float32.

    Processors do from AVX-512 (x86) or the BF16 extension (Arm) on, GPUs of NVIDIA from Ampere on.

    Example:
        >>> import torch
        >>> computes_bfloat16(torch.device("cpu")) in (True, False)
        True
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on, as far as they are installed.

    Example:
        >>> sorted(read_versions())[:3]
        ['afv_metric', ...]
    """
    import torch

    import afv_metric

    # Only torch itself knows what it was built for.
    versions = {"afv_metric": afv_metric.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
