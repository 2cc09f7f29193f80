"""Tensors that nothing outside can change: no module, parameter or buffer that a walk over a model would find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["FrozenTensors"]


class FrozenTensors:
    """Constants of a metric by name, with copies on demand in the type and on the device of the images.

    The originals are never converted, so a visit to another type or device changes nothing. An instance is immutable;
    a deep copy is the instance itself. The tensors are copied.

    Example:
        >>> frozen = FrozenTensors({"weight": torch.ones(2)})
        >>> frozen.like(torch.zeros(1, dtype=torch.float64))["weight"].dtype, frozen["weight"].dtype
        (torch.float64, torch.float32)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):  # autograd saves no tensor that was made in inference mode
            self._tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        self._copies: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The original of a tensor."""
        return self._tensors[name]

    def like(self, images: Tensor) -> Mapping[str, Tensor]:
        """All tensors on the device and in the floating-point type of the images."""
        key = (images.device, images.dtype)
        copies = self._copies.get(key)
        if copies is None:
            with torch.inference_mode(False):
                copies = {name: tensor.to(images.device, images.dtype) for name, tensor in self._tensors.items()}
            self._copies[key] = copies
        return copies

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTensors:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensors": self._tensors, "_copies": {}}
