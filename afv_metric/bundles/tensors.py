"""Files of tensors that say what they must hold: written with their hash, and checked strictly when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from afv_metric.bundles.resolve import BundleError
from afv_metric.files import sha256_of

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write contiguous tensors as safetensors, and give the ``sha256`` and ``bytes`` of the file.

    Raises:
        BundleError: If a tensor is not finite.
    """
    _check_finite(tensors, path)
    safetensors.torch.save_file(dict(tensors), path)
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def read_tensors(path: Path, entry: dict[str, Any], expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Read a file of tensors of these names and shapes, of which :func:`write_tensors` gave the entry.

    Raises:
        BundleError: If the file has another size or hash, tensors are missing, too many or misshapen, or not finite.
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(f"{path} has {size} bytes, expected {entry['bytes']}: it is cut short or another file")
    found = sha256_of(path)
    if found != entry["sha256"]:
        raise BundleError(f"{path} is damaged or was changed: sha256 {found}, expected {entry['sha256']}; get it again")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path} is not a safetensors file: {error}") from error
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise BundleError(f"{path} lacks {len(missing)} tensors, the first of them {missing[0]}")
    if extra:
        raise BundleError(f"{path} holds {len(extra)} unexpected tensors, the first of them {extra[0]}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise BundleError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}")
    _check_finite(tensors, path)
    return tensors


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not math.isfinite(float(value.double().sum())):
            raise BundleError(f"{path}: {name} has values that are not finite")
