"""What image files hold, before their values become levels of 0 to 255: a function per kind of file."""

from __future__ import annotations

import gzip
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from afv_metric.images.colour import apply_orientation, over, split_alpha, to_srgb
from afv_metric.images.listing import ARRAYS, DICOM, HEIF, NIFTI

if TYPE_CHECKING:
    from afv_metric.images.reading import Reader

__all__ = [
    "DataRange", "Frames", "ImageError", "Raw", "check_data_range", "frames_of_array", "frames_of_file",
    "frames_of_picture",
]  # fmt: skip

_Array = NDArray[Any]
_opening = threading.Lock()
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_WHOLE = 1 << 25  # pixels; a larger TIFF comes in bands of about so many


class ImageError(ValueError):
    """An image that cannot be read.

    Attributes:
        name: The file.
        reason: What was expected, what came, and how to mend it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


DataRange = tuple[float, float]
"""Values that become black and white."""


def check_data_range(data_range: DataRange) -> None:
    """Raise ValueError unless the first value is below the second, and both are finite."""
    low, high = data_range
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"a range of data is LOW HIGH with LOW below HIGH, got {low} and {high}")


def _unchanged(levels: _Array) -> _Array:
    return levels


class Raw(NamedTuple):
    """The values of a frame."""

    values: _Array  # (H, W, C) of any real type
    full: DataRange | None = None  # range that the format defines
    certain: bool = False  # whether the file says so, rather than the type of its numbers
    window: DataRange | None = None  # range that was asked for, before any other
    finish: Callable[[_Array], _Array] = _unchanged  # what is left to do with the levels: polarity, colours, alpha


class Frames(NamedTuple):
    """What is in a file."""

    number: Callable[[], int]  # counts the frames, pages or slices
    load: Callable[[int], Raw]
    usual: int = 0  # which one, if nothing is said
    alike: bool = False  # whether training takes all of them, as slices of a volume
    bands: Callable[[], Iterator[Raw]] | None = None  # the first one in bands of rows, if it is large


def frames_of_file(file: IO[bytes], name: str, rules: Reader, square: int | None) -> Frames:
    """Look into a file, which must stay open: by its suffix, else by what it begins with.

    With ``square`` a JPEG that is much larger is reduced while it is decoded, to at least twice that side.
    """
    lower = name.lower()
    if lower.endswith(ARRAYS):
        return frames_of_array(_load_array(file, name), name, rules)
    if lower.endswith(NIFTI):
        return _nifti(file, name, rules)
    if lower.endswith(HEIF):
        return frames_of_picture(_extra("pillow_heif", "heif", name).HeifImageFile(file), name, rules)
    start = file.read(132)
    file.seek(0)
    if lower.endswith(DICOM) or start[128:] == b"DICM":
        return _dicom(file, name, rules)
    try:
        image = _opened(file)
    except UnidentifiedImageError:
        if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
        return _tiff(file, name, rules)
    if image.format == "TIFF" and rules.channels not in (None, 1, 3):  # bands that are no colours
        return _tiff(file, name, rules)
    frames = frames_of_picture(image, name, rules, file, square)
    if image.format == "TIFF" and math.prod(image.size) > _WHOLE and find_spec("tifffile"):
        return frames._replace(bands=_tiff(file, name, rules).bands)
    return frames


def frames_of_array(values: _Array, name: str, rules: Reader) -> Frames:
    """Look at an array ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``."""

    def load(index: int) -> Raw:
        rules.refuse_large(stack.shape[2:0:-1], name)
        return Raw(stack[index])

    stack = values[None, ..., None] if values.ndim == 2 else values[None] if values.ndim == 3 else values
    if stack.ndim != 4 or not stack.size or stack.shape[3] > 64:
        first = " (channels come last)" if values.ndim == 3 and values.size and values.shape[0] < 5 else ""
        raise ImageError(
            name, f"holds an array of shape {values.shape}; (H, W), (H, W, C) or (N, H, W, C) is an image{first}"
        )
    _refuse_complex(values.dtype, name)
    return Frames(lambda: len(stack), load, alike=True)


def frames_of_picture(
    image: Image.Image, name: str, rules: Reader, file: IO[bytes] | None = None, square: int | None = None
) -> Frames:
    """Look at an image that Pillow has opened, from ``file`` if from any."""

    def load(index: int) -> Raw:
        if rules.frame is not None:
            with _unlimited():
                image.seek(index)
        rules.refuse_large(image.size, name)
        inverted, unsigned, full, certain = _depth(image)
        tile: Any = getattr(image, "tile", None)
        deep = image.mode in _DEEP
        wide = not deep and bool(tile) and ";16" in str(tile[0][3])  # of which Pillow gives the upper 8 bits only
        if wide and rules.data_range and file is not None:
            return _tiff(file, name, rules).load(index) if image.format == "TIFF" else _wide_png(file, rules)
        if square is not None:
            image.draft(None, (2 * square, 2 * square))
        image.load()
        turned = apply_orientation(image)  # after loading, which turns a TIFF

        def finish(plain: Image.Image, alpha: _Array | None) -> _Array:
            if rules.colour_management:
                plain = to_srgb(plain, name)
            levels = np.asarray(plain if plain.mode in ("L", "RGB") else plain.convert("RGB"))
            return over(levels if levels.ndim == 3 else levels[..., None], alpha, rules.background)

        def finish_deep(levels: _Array) -> _Array:
            plain = Image.fromarray(255 - levels[..., 0] if inverted else levels[..., 0])
            plain.info = {key: value for key, value in image.info.items() if key != "transparency"}
            clear = image.info.get("transparency")
            alpha = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
            return finish(plain, alpha)

        if deep:
            values = np.asarray(turned)
            values = values.view(np.uint32) if unsigned else values
            return Raw(values[..., None], full, certain, finish=finish_deep)
        levels = finish(*split_alpha(turned))
        return Raw(levels * np.uint16(257), (0, 65535)) if wide else Raw(levels)

    return Frames(lambda: getattr(image, "n_frames", 1), load)


def _tiff(file: IO[bytes], name: str, rules: Reader) -> Frames:
    """TIFF files beyond Pillow."""

    def load(index: int) -> Raw:
        page = tiff.pages[index]
        rules.refuse_large((page.imagewidth, page.imagelength), name)
        with _silent("tifffile"):
            values = page.asarray()
        values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
        return raw(page, values[..., None] if values.ndim == 2 else values)

    def raw(page: Any, values: _Array) -> Raw:
        full: DataRange | None = None
        if values.dtype.kind == "u" and values.dtype.itemsize == 2:
            full = (0, 2 ** int(np.max(page.bitspersample)) - 1)

        def finish(levels: _Array) -> _Array:
            levels = 255 - levels if int(page.photometric) == 0 else levels
            alpha = page.extrasamples and int(page.extrasamples[-1]) in (1, 2)
            if alpha and levels.shape[2] in (2, 4) and levels.shape[2] != rules.channels:
                return over(levels[..., :-1], levels[..., -1], rules.background)
            return levels

        return Raw(values, full, finish=finish)

    def bands() -> Iterator[Raw]:
        page, handle = tiff.pages[0], tiff.filehandle
        planes, height = (page.samplesperpixel, page.chunks[-2]) if page.planarconfig == 2 else (1, page.chunks[0])
        chunks = np.arange(len(page.dataoffsets)).reshape(planes, -(-page.imagelength // height), -1)
        rows = max(_WHOLE // page.imagewidth // height, 1)
        for first in range(0, chunks.shape[1], rows):
            top, chosen = first * height, chunks[:, first : first + rows].ravel()
            bottom = min(top + rows * height, page.imagelength)
            band = np.zeros((bottom - top, page.imagewidth, page.samplesperpixel), page.dtype)
            places = [[sizes[index] for index in chosen] for sizes in (page.dataoffsets, page.databytecounts)]
            for data, index in handle.read_segments(*places, indices=chosen.tolist()):
                values, (plane, _, row, column, _), _ = page.decode(data, index, jpegtables=page.jpegtables)
                if values is not None:  # a file may leave out what holds nothing
                    values = values[0, : bottom - row, : page.imagewidth - column]
                    place = band[row - top : row - top + len(values), column : column + values.shape[1]]
                    place[..., plane : plane + values.shape[2]] = values
            yield raw(page, band)

    tifffile = _extra("tifffile", "geo", name)
    file.seek(0)
    with _silent("tifffile"):
        tiff = tifffile.TiffFile(file)
        large = tiff.pages[0].imagewidth * tiff.pages[0].imagelength > _WHOLE
    return Frames(lambda: len(tiff.pages), load, bands=bands if large else None)


def _wide_png(file: IO[bytes], rules: Reader) -> Raw:
    from torch import frombuffer, uint8
    from torchvision.io import ImageReadMode, decode_image

    file.seek(0)
    data = frombuffer(bytearray(file.read()), dtype=uint8)
    values = decode_image(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    alpha = (values[..., -1] >> 8).astype(np.uint8) if colours < values.shape[2] else None
    return Raw(values[..., :colours], (0, 65535), finish=lambda levels: over(levels, alpha, rules.background))


def _dicom(file: IO[bytes], name: str, rules: Reader) -> Frames:
    def load(index: int) -> Raw:
        rules.refuse_large((data.Columns, data.Rows), name)
        values = pixels.pixel_array(data, index=index)
        if values.ndim == 3:  # colours, of 8 bits
            return Raw(values)
        bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
        low, high = sorted(float(value) for value in pixels.apply_rescale(ends, data))
        window = None
        if rules.window:
            if "WindowCenter" not in data:
                raise ImageError(name, "has no window of its own; declare a range instead, as in --range LOW HIGH")
            centre, width = (float(np.ravel(data[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
            window = (centre - width / 2, centre + width / 2)
            check_data_range(window)
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
        scaled = np.asarray(pixels.apply_rescale(values, data))[..., None]
        return Raw(scaled, (low, high), bits < 16, window, (lambda levels: 255 - levels) if inverted else _unchanged)

    pydicom = _extra("pydicom", "medical", name)
    pixels = import_module("pydicom.pixels")
    data = pydicom.dcmread(file)
    if "Rows" not in data:
        raise ImageError(name, "is a DICOM file without an image")
    return Frames(lambda: int(data.get("NumberOfFrames") or 1), load, alike=True)


def _nifti(file: IO[bytes], name: str, rules: Reader) -> Frames:
    def load(index: int) -> Raw:
        rules.refuse_large((width, height), name)
        place: tuple[Any, ...] = (..., *np.unravel_index(index, further, order="F"))
        with _silent("nibabel.global"):
            values = np.asarray(volume.dataobj[place])
        _refuse_complex(values.dtype, name)
        return Raw(np.rot90(values)[..., None])

    nibabel = _extra("nibabel", "medical", name)
    path = getattr(file, "name", None)
    with _silent("nibabel.global"):
        if isinstance(path, str) and path.lower().endswith(NIFTI):
            volume = nibabel.load(path, keep_file_open=True)  # reads the slice alone
        else:
            data = file.read()
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            volume = nibabel.Nifti1Image.from_bytes(data)
    width, height, *further = volume.shape
    return Frames(lambda: math.prod(further), load, usual=further[0] // 2 if further else 0, alike=True)


def _depth(image: Image.Image) -> tuple[bool, bool, DataRange | None, bool]:
    """What a file says of its numbers, and loading forgets: is 0 white, unsigned, the range, and is that certain."""
    tile: Any = getattr(image, "tile", None)
    inverted, unsigned, certain = False, False, False
    full: DataRange | None = None
    if image.mode.startswith("I;16"):
        full = (0, 65535)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        full = (0, 65535)
        certain = bool(tile) and tile[0][0] != "raw"  # scaled from the maximum that the header gives
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, kind = tags.get(258, (1,))[0], tags.get(339, (1,))[0]
        inverted = tags.get(262) == 0
        unsigned = image.mode == "I" and bits == 32 and kind == 1
        if image.mode in _DEEP and bits <= 16:
            full, certain = (0, 2**bits - 1 if kind == 1 else 2 ** (bits - 1) - 1), bits < 16
    return inverted, unsigned, full, certain


@contextmanager
def _unlimited() -> Iterator[None]:
    """Without Pillow's own limit of pixels, which is a setting of the process: one thread of ours at a time."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Without what a library logs of a damaged file: what matters it raises as well."""
    theirs = logging.getLogger(logger)
    with _opening:
        level = theirs.level
        theirs.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            theirs.setLevel(level)


def _opened(file: IO[bytes]) -> Image.Image:
    """Open a file with Pillow; the checksums of a PNG, which it ignores else, are verified."""
    with _unlimited():
        image: Image.Image = Image.open(file)
        if image.format == "PNG":
            image.verify()
            file.seek(0)
            image = Image.open(file)
        return image


def _load_array(file: IO[bytes], name: str) -> _Array:
    path = getattr(file, "name", None)
    mapped = isinstance(path, str) and name.lower().endswith(".npy")
    loaded = np.load(path if mapped else file, "r" if mapped else None)  # type: ignore[arg-type]
    if isinstance(loaded, np.ndarray):
        return loaded
    if len(loaded.files) != 1:
        raise ImageError(name, f"holds {len(loaded.files)} arrays ({', '.join(loaded.files[:5])}); expected one image")
    return np.asarray(loaded[loaded.files[0]])


def _extra(module: str, extra: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImageError(name, f"needs {module} to be read: pip install 'afv-metric[{extra}]'") from error


def _refuse_complex(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind not in "buif":
        raise ImageError(name, f"holds values of {dtype}; expected real numbers")
