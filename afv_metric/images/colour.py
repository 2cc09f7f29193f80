"""Colours of images from Pillow: alpha, orientation, and profiles, which become sRGB."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

__all__ = ["apply_orientation", "over", "split_alpha", "to_srgb", "with_channels"]

_Array = NDArray[Any]
_log = logging.getLogger(__name__)


def split_alpha(image: Image.Image) -> tuple[Image.Image, _Array | None]:
    """An image in L, RGB, CMYK or LAB, and its alpha."""
    info, alpha = image.info, None
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        whole = image.convert("L") if image.mode == "1" else image
        whole = whole.convert("LA" if grey else "RGBA")
        alpha = np.asarray(whole.getchannel("A"))
        image = Image.merge("L" if grey else "RGB", whole.split()[:-1])
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if grey else "RGB")
    image.info = info
    return image, alpha


def over(levels: _Array, alpha: _Array | None, background: tuple[int, int, int]) -> _Array:
    """Levels ``(H, W, C)`` composed over a background by alpha ``(H, W)``."""
    if alpha is None or alpha.min() == 255:
        return levels
    behind = np.array(background if levels.shape[2] == 3 else [round(sum(background) / 3)])
    weight = alpha[..., None].astype(np.int32)
    return ((levels * weight + behind * (255 - weight) + 127) // 255).astype(np.uint8)


def apply_orientation(image: Image.Image) -> Image.Image:
    """Turned as EXIF says, which is how viewers show it."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image


def with_channels(levels: _Array, channels: int | None) -> _Array | None:
    """Grey repeated for three channels, luma of colours for one; None if there is no rule for the number."""
    count = levels.shape[2]
    if channels in (None, count):
        return levels
    if count == 1 and channels == 3:
        return np.repeat(levels, 3, axis=2)
    if count == 3 and channels == 1:
        return np.asarray(Image.fromarray(levels).convert("L"))[..., None]
    return None


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Convert the colours of an image in L, RGB, CMYK or LAB, by its profile."""
    profile = image.info.get("icc_profile")
    if image.mode == "LAB" or profile:
        try:
            transform = _transform(profile or b"", image.mode, threading.get_ident())
        except (ImageCms.PyCMSError, OSError) as error:
            _log.warning("%s: its colour profile cannot be used (%s); it is taken for sRGB", name, error)
            return image
        if transform is None:
            return image
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted.getchannel(0) if image.mode == "L" else converted
    gamma, chromaticity = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or not (gamma or chromaticity) or image.mode not in ("L", "RGB"):
        return image
    return _from_gamma(image, gamma, chromaticity)


@lru_cache(64)
def _transform(profile: bytes, mode: str, thread: int) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB, for one thread; None if that is next to no change, or the profile is of other modes."""
    given: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if mode != "LAB" else ImageCms.createProfile("LAB")
    if mode != "LAB" and given.profile.xcolor_space.strip() != {"L": "GRAY"}.get(mode, mode):
        return None
    transform = ImageCms.buildTransform(
        given,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode in ("CMYK", "LAB"):
        return transform
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    sample = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    converted = ImageCms.applyTransform(sample, transform)
    assert converted is not None
    change = np.asarray(converted).astype(int) - np.asarray(sample.convert("RGB"))
    return None if np.abs(change).max() <= 2 else transform


_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green and blue
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _from_gamma(image: Image.Image, gamma: float | None, chromaticity: Sequence[float] | None) -> Image.Image:
    """Convert by gAMA and cHRM of a PNG, where they differ from sRGB's."""
    levels = np.arange(256) / 255
    srgb = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    linear = srgb if not gamma or abs(gamma - 1 / 2.2) < 0.005 else levels ** (1 / gamma)
    matrix = np.eye(3)
    if chromaticity and image.mode == "RGB" and np.abs(np.subtract(chromaticity, _SRGB)).max() > 0.002:
        (here, white), (there, white_there) = (_to_xyz(points) for points in (chromaticity, _SRGB))
        cones = np.diag((_BRADFORD @ white_there) / (_BRADFORD @ white))
        matrix = np.linalg.inv(there) @ np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ here
    if linear is srgb and np.array_equal(matrix, np.eye(3)):
        return image
    values = linear[np.asarray(image)]
    if image.mode == "RGB":
        values = values @ matrix.T
    values = values.clip(0, 1)
    encoded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.rint(encoded * 255).astype(np.uint8))


def _to_xyz(points: Sequence[float]) -> tuple[_Array, _Array]:
    """Matrix from linear RGB to XYZ, and XYZ of white, of chromaticities as in cHRM."""
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(points[::2], points[1::2], strict=True))
    columns = np.stack(primaries, 1)
    return columns * np.linalg.solve(columns, white), white
