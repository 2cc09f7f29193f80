"""From what callers have to what the networks take: ranges, greyscale, sizes, files."""

from __future__ import annotations

import os
import warnings
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "SMALLEST_SIDE",
    "check_range",
    "pad_to_multiple",
    "read_image",
    "to_network_range",
    "to_rgb",
    "upright",
    "weights_of_padded",
]

SMALLEST_SIDE = 32


def to_network_range(images: Tensor, *, normalize: bool, dtype: torch.dtype, name: str = "images") -> Tensor:
    """Bring a batch of images into the shape, type and range of the networks.

    A single channel is repeated to three: grey is the colour with equal red, green and blue.

    Args:
        images: ``(N, 3, H, W)``, ``(N, 1, H, W)``, or one image without the first dimension; floating point in [-1, 1]
            (in [0, 1] if ``normalize``), or uint8 in [0, 255].
        normalize: Whether floating-point images are in [0, 1] rather than [-1, 1].
        dtype: Floating-point type to compute in.
        name: What to call the images in errors.

    Returns:
        ``(N, 3, H, W)`` in [-1, 1].

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
        raise TypeError(f"{name} must be a torch.Tensor, got {type(images).__name__}; see torchvision.io.read_image")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise TypeError(f"{name} must be floating point in [-1, 1] or uint8 in [0, 255], got {images.dtype}")
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        hint = " (channels come before height and width)" if images.shape[-1:] in ((1,), (3,)) else ""
        hint = hint or (" (drop the alpha channel)" if images.ndim == 4 and images.shape[1] in (2, 4) else "")
        raise ValueError(f"{name} must have shape (N, 3, H, W) or (3, H, W), got {tuple(images.shape)}{hint}")
    if len(images) == 0:
        raise ValueError(f"{name} hold no image, got {tuple(images.shape)}; skip empty batches")
    if min(images.shape[2:]) < SMALLEST_SIDE:
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
    return images.expand(-1, 3, -1, -1)


def check_range(images: Tensor, *, normalize: bool, name: str = "images", warn: bool = True) -> bool:
    """Catch images in another range than they are said to be.

    A small overshoot is no mistake and passes. Values far outside are an error; images of which no value is negative,
    given without ``normalize``, may be right and get a warning.

    Args:
        images: Images as the caller gave them; uint8 is always right.
        normalize: Whether they are said to be in [0, 1] rather than [-1, 1].
        name: What to call the images in messages.
        warn: Whether to warn.

    Returns:
        Whether a warning was given.

    Raises:
        ValueError: If values are above 4, as in [0, 255], or below -4, or below -0.5 with ``normalize``,
            or not numbers.

    Example:
        >>> check_range(torch.tensor([-1.0, 1.0000001]), normalize=False)
        False
        >>> check_range(torch.tensor([0.0, 255.0]), normalize=False)
        Traceback (most recent call last):
        ...
        ValueError: images have values from 0 to 255, ...
    """
    if images.dtype == torch.uint8 or images.numel() == 0:
        return False
    low, high = (float(value) for value in torch.aminmax(images))
    if normalize:
        expected, right = "[0, 1], as normalize=True says", low >= -0.5 and high <= 4
    else:
        expected, right = "[-1, 1]", low >= -4 and high <= 4
    if not right:
        raise ValueError(
            f"{name} have values from {low:.4g} to {high:.4g}, expected {expected}. Give floating point in [-1, 1], "
            "floating point in [0, 1] with normalize=True, or uint8 in [0, 255]."
        )
    if not warn or normalize or low < 0 or high <= 0:
        return False
    warnings.warn(
        f"{name} have values from {low:.4g} to {high:.4g}, none negative: if they are in [0, 1], pass normalize=True. "
        "This is said once.",
        stacklevel=6,  # the caller of the metric, behind two frames of ours and three of nn.Module
    )
    return True


def pad_to_multiple(images: Tensor, multiple: int, mode: str = "replicate") -> Tensor:
    """Repeat the last row and column until both sides are multiples: the library's one padding rule.

    Args:
        images: ``(N, C, H, W)``.
        multiple: Of which the sides will be.
        mode: ``"constant"`` for weights of pixels, which are 0 for what is added.

    Example:
        >>> pad_to_multiple(torch.zeros(1, 3, 33, 36), 4).shape
        torch.Size([1, 3, 36, 36])
    """
    height, width = images.shape[2:]
    if height % multiple == 0 and width % multiple == 0:
        return images
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode=mode)


def weights_of_padded(images: Tensor, multiple: int) -> Tensor | None:
    """Weights of the pixels that :func:`pad_to_multiple` gives: 1 for those of the images, 0 for what is added.

    Returns:
        ``(1, 1, H, W)`` of the padded size; None where nothing is added.

    Example:
        >>> weights_of_padded(torch.zeros(2, 3, 33, 36), 4)[0, 0, :, 0].nonzero().numel()
        33
    """
    ones = images.new_ones(1, 1, *images.shape[2:])
    weights = pad_to_multiple(ones, multiple, "constant")
    return None if weights is ones else weights


def read_image(file: str | os.PathLike[str] | IO[bytes]) -> Tensor:
    """Read an image file as uint8 ``(1, 3, H, W)``, :func:`upright` and in the colours of :func:`to_rgb`.

    Args:
        file: Its path, or the file itself, open for reading bytes.

    Raises:
        OSError: If the file is missing, is not an image that Pillow reads, or has 32 bits a channel.
    """
    with Image.open(file) as image:
        pixels = np.array(to_rgb(upright(image)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says, which is how viewers show it."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Give an image 8-bit red, green and blue; greyscale becomes grey, transparency is dropped.

    Greyscale of 16 bits keeps its upper 8.

    Raises:
        OSError: If it has 32 bits a channel, whose range is unknown.
    """
    if image.mode in ("I", "F"):
        raise OSError(f"the image has 32 bits a channel (mode {image.mode}); convert it to 8 or 16 bits first")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
