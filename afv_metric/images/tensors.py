"""From tensors that callers have to what the networks take: ranges, greyscale, sizes."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "SMALLEST_SIDE", "check_range", "is_exporting", "pad_to_multiple", "to_network_range", "weights_of_padded",
]  # fmt: skip

SMALLEST_SIDE = 32


def is_exporting() -> bool:
    """Whether ``torch.export`` follows a graph, which must hold for sizes that are not known yet."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former is of torch 2.7
    return bool(asked())


def to_network_range(
    images: Tensor, *, normalize: bool, dtype: torch.dtype, name: str = "images", channels: int = 3
) -> Tensor:
    """Bring a batch of images into the shape, type and range of the networks.

    Images are ``(N, C, H, W)``, for three channels also ``(N, 1, H, W)``, which is repeated, or one image without the
    first dimension; floating point in [-1, 1] (in [0, 1] if ``normalize``), or uint8 in [0, 255]. The result is in
    [-1, 1]. ``name`` is that of the images in errors.

    Raises:
        TypeError: If the images are not a tensor of floating-point numbers or uint8.
        ValueError: If their shape is none of the above, there is no image, or a side is shorter than
            :data:`SMALLEST_SIDE`.

    Example:
        >>> white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
        >>> to_network_range(white, normalize=False, dtype=torch.float32).unique()
        tensor([1.])
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(images).__name__}; afv_metric.read_image makes one of a "
            "file, an array or Pillow's image"
        )
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise TypeError(f"{name} must be floating point in [-1, 1] or uint8 in [0, 255], got {images.dtype}")
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] not in (channels, 1 if channels == 3 else channels):
        shape = f"{name} must have shape (N, {channels}, H, W) or ({channels}, H, W), got {tuple(images.shape)}"
        if images.shape[-1:] in ((1,), (channels,)):
            shape += " (channels come before height and width)"
        elif images.ndim == 4 and channels == 3 and images.shape[1] in (2, 4):
            shape += " (drop the alpha channel)"
        elif images.ndim == 4:
            plural = "" if channels == 1 else "s"
            shape += f": this bundle is of {channels} channel{plural}, got {images.shape[1]}"
        raise ValueError(shape)
    if images.shape[0] == 0:
        raise ValueError(f"{name} hold no image, got {tuple(images.shape)}; skip empty batches")
    if any(side < SMALLEST_SIDE for side in images.shape[2:]):
        raise ValueError(
            f"{name} are {images.shape[2]}x{images.shape[3]} pixels; the smallest side the metric takes is "
            f"{SMALLEST_SIDE}. Enlarge them first, both alike."
        )
    if images.dtype == torch.uint8:
        images = images.to(dtype) / 127.5 - 1
    else:
        images = images.to(dtype)
        if normalize:
            images = 2 * images - 1
    return images.expand(-1, channels, -1, -1)


def check_range(
    images: Tensor,
    *,
    normalize: bool,
    name: str = "images",
    check: Literal["error", "warn", False] = "error",
    warned: bool = False,
) -> bool:
    """Check that pixel values match the declared range.

    A small overshoot passes. What is likely a mistake gets a warning: values clearly beyond the range, as those of
    images normalised by the mean and deviation of ImageNet; hardly a negative value without ``normalize``. What must be
    one, values far outside or not numbers, is an error; for predictions, which require a gradient, a warning as well.

    ``check="warn"`` turns errors into warnings, False checks nothing. Only one warning is given: the result is whether
    there was any, now or before (``warned``).

    Raises:
        ValueError: If values are above 4, as in [0, 255], or below -4, or below -0.5 with ``normalize``,
            or NaN or infinite, unless ``check`` or the gradient makes that a warning.

    Example:
        >>> check_range(torch.tensor([-1.0, 1.0000001]), normalize=False)
        False
        >>> check_range(torch.tensor([0.0, 255.0]), normalize=False)
        Traceback (most recent call last):
        ...
        ValueError: images have values from 0 to 255, ...
    """
    strict = check == "error" and not images.requires_grad
    if not check or images.dtype == torch.uint8 or images.numel() == 0 or (warned and not strict):
        return warned
    images = images.detach()
    try:
        low, high = torch.stack(torch.aminmax(images)).tolist()
    except RuntimeError:  # inside of torch.vmap no value can be read
        return warned
    least, expected = (0.0, "[0, 1], as normalize=True says") if normalize else (-1.0, "[-1, 1]")
    overshoot = (1 - least) / 8
    values = f"{name} have values from {low:.4g} to {high:.4g}"
    forms = "Give floating point in [-1, 1], floating point in [0, 1] with normalize=True, or uint8 in [0, 255]."
    wrong, message = False, ""
    if not math.isfinite(low + high):
        count = images.numel() - int(images.isfinite().sum())
        wrong, message = True, f"{name} have {count} of {images.numel()} values that are NaN or infinite."
    elif high > 4 or low < (-0.5 if normalize else -4):
        wrong, message = True, f"{values}, expected {expected}. {forms}"
    elif not warned and (high > 1 + overshoot or low < least - overshoot):
        message = f"{values}, clearly beyond {expected}: undo a normalisation by mean and deviation first. {forms}"
    elif not warned and not normalize and high > 0 and _hardly_negative(images, low, high):
        message = f"{values}, hardly one negative: if they are in [0, 1], pass normalize=True."
    if wrong and strict:
        raise ValueError(message)
    if message and not warned:
        # The caller of the metric is behind two frames of ours and three of nn.Module.
        warnings.warn(f"{message} This is said once.", stacklevel=6)
    return warned or bool(message)


def _hardly_negative(images: Tensor, low: float, high: float) -> bool:
    return low >= 0 or (high > 0.25 and float((images < -0.05).float().mean()) < 0.01)


def pad_to_multiple(images: Tensor, multiple: int, mode: str = "replicate") -> Tensor:
    """Repeat the last row and column until both sides are multiples: the library's one padding rule.

    With the mode ``"constant"`` zeros are added, as weights of pixels need. Images ``(N, C, H, W)`` whose sides are
    multiples already are returned as they are.

    Example:
        >>> pad_to_multiple(torch.zeros(1, 3, 33, 36), 4).shape
        torch.Size([1, 3, 36, 36])
    """
    height, width = images.shape[2:]
    if not is_exporting() and height % multiple == 0 and width % multiple == 0:
        return images
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode=mode)


def weights_of_padded(images: Tensor, multiple: int) -> Tensor | None:
    """Weights ``(1, 1, H, W)`` of what :func:`pad_to_multiple` gives, 0 for what is added; None where nothing is.

    Example:
        >>> weights_of_padded(torch.zeros(2, 3, 33, 36), 4)[0, 0, :, 0].nonzero().numel()
        33
    """
    ones = images.new_ones(1, 1, *images.shape[2:])
    weights = pad_to_multiple(ones, multiple, "constant")
    return None if weights is ones else weights
