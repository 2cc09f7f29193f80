"""From files, arrays and Pillow's images to tensors: one reader for scoring, sets, training and judged data.

All images become 8 bits per channel, as they are cached and compared. The rules, one per property:

- **Range.** 8-bit files define theirs, and so do most of 16 bits. Floating point, signed numbers and integers of 32
  bits have none, so that it must be declared (``data_range``); so must that of 16-bit files of which no value
  reaches the upper quarter of the range, as those of 10, 12 or 14 bits in 16 do. It is never taken from the values of
  an image. A declared range concerns these kinds alone: 8 bits stay 8 bits.
- **Bits and polarity** are those of the file: the maximum of a PGM, the bits and the white-as-zero of a TIFF, the
  rescaling and MONOCHROME1 of DICOM. Signed 16 bits without negative values run from 0 to 32767.
- **Colour.** An embedded profile (ICC, or gAMA and cHRM of PNG) is converted to sRGB; without one it is sRGB.
- **Transparency** is composed over a background, mid-grey unless said otherwise: neither black nor white vanishes.
- **Frames.** The first of an animation or of several pages, the middle slice of a volume, or the one asked for.
- **Orientation** is that of EXIF.
- **Damage.** Cut files and wrong checksums are refused.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from afv_metric.images.listing import ARRAYS, DICOM, HEIF, NIFTI, Picture
from afv_metric.images.tiles import resize_and_center_crop

__all__ = ["MOST_PIXELS", "DataRange", "ImageError", "Reader", "count_frames", "percentile_range", "read_image"]

MOST_PIXELS = 178_956_970  # where Pillow refuses, too
Source = str | os.PathLike[str] | IO[bytes] | NDArray[Any] | Image.Image
_Array = NDArray[Any]
_log = logging.getLogger(__name__)
_opening = threading.Lock()


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


@dataclass(frozen=True)
class DataRange:
    """Values that become black and white.

    Raises:
        ValueError: If ``low`` is not below ``high``, or one is not finite.

    Example:
        >>> DataRange(-1024, 3071)
        DataRange(low=-1024, high=3071)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the order."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"a range of data is LOW HIGH with LOW below HIGH, got {self.low} and {self.high}")


@dataclass(frozen=True)
class Reader:
    """The rules by which files become tensors, see :mod:`afv_metric.images.reading`.

    Attributes:
        data_range: Range of images deeper than 8 bits; needed where the format defines none. Two numbers become a
            :class:`DataRange`.
        channels: 3: grey is repeated; 1: colours become their luma; another number: must be that of the file; None:
            whatever the file has.
        frame: Number of the frame, page or slice, from 0; negative numbers count from the end; None: the first, and
            of a volume the middle one.
        window: Whether a DICOM file's own window is its range.
        background: Red, green and blue behind transparent pixels, in [0, 255].
        colour_management: Whether embedded profiles are converted to sRGB.
        most_pixels: Images of more are refused.
    """

    data_range: DataRange | tuple[float, float] | None = None
    channels: int | None = 3
    frame: int | None = None
    window: bool = False
    background: tuple[int, int, int] = (128, 128, 128)
    colour_management: bool = True
    most_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.data_range, tuple):
            object.__setattr__(self, "data_range", DataRange(*self.data_range))
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")

    @property
    def declared(self) -> tuple[float, float] | None:
        """The declared range as two numbers, as bundles keep it."""
        return (self.data_range.low, self.data_range.high) if isinstance(self.data_range, DataRange) else None

    def read(self, source: Source, *, name: str | None = None, square: int | None = None) -> Tensor:
        """Read an image, or its middle square.

        Args:
            source: Path, file open for reading bytes, array ``(H, W)`` or ``(H, W, C)``, or Pillow's image.
            name: Name of the file for errors; its suffix tells arrays and the formats of extras. Default: the path.
            square: Side in pixels of the square, see :func:`~afv_metric.images.tiles.resize_and_center_crop`.

        Returns:
            uint8 ``(1, C, H, W)``, in channels-last memory.

        Raises:
            ImageError: If it is no image, damaged, too large, or of a range that must be declared.
            OSError: If the file cannot be opened.
            TypeError: If the source is none of these.
        """
        levels = self.levels(source, name=name, square=square)
        if square is not None:
            levels = resize_and_center_crop(levels, square)
        return torch.from_numpy(np.array(levels, order="C")).permute(2, 0, 1)[None]

    def levels(self, source: Source, *, name: str | None = None, square: int | None = None) -> _Array:
        """The whole image as an array, uint8 ``(H, W, C)``, as :meth:`read` reads it.

        With ``square`` a JPEG that is much larger is reduced while it is decoded, to at least twice that side.
        """
        levels: _Array = self._named(source, name, square)
        return levels

    def parts(self, source: Callable[[], Source], name: str) -> Iterator[_Array]:
        """All that a file shows, as one array or several, each as :meth:`levels` reads it.

        These are the slices of a volume, the images of an array, or bands of rows of a TIFF that is too large to be
        read whole (with tifffile, from the extra ``geo``); of animations and pages the first.

        Args:
            source: Opens the file, once for each part.
            name: Name of the file.
        """
        if self.frame is None and name.lower().endswith((*NIFTI, *ARRAYS, *DICOM)):
            for frame in range(self.count_frames(source(), name=name)):
                yield replace(self, frame=frame).levels(source(), name=name)
        elif name.lower().endswith((".tif", ".tiff")) and find_spec("tifffile"):
            yield from self._bands(source(), name)
        else:
            yield self.levels(source(), name=name)

    def _bands(self, source: Any, name: str) -> Iterator[_Array]:
        tifffile = import_module("tifffile")
        try:
            with _silent("tifffile"), tifffile.TiffFile(source) as tiff:
                page = tiff.pages[0]
                large = page.imagewidth * page.imagelength > self.most_pixels and page.planarconfig == 1
                step = -(-_BAND // page.chunks[0]) * page.chunks[0]
                band, top = np.zeros((step, page.imagewidth, page.samplesperpixel), page.dtype), 0
                for values, (_, _, row, column, _), (_, height, width, _) in page.segments() if large else ():
                    if row >= top + step:
                        yield self._named(band, name, None)
                        band, top = np.zeros_like(band), top + step
                    place = band[row - top : row - top + height, column : column + width]
                    place[:] = values[0, : place.shape[0], : place.shape[1]]
        except tifffile.TiffFileError:
            large = False
        if large:
            yield self._named(band[: page.imagelength - top], name, None)
        else:
            if hasattr(source, "seek"):
                source.seek(0)
            yield self.levels(source, name=name)

    def count_frames(self, source: Source, *, name: str | None = None) -> int:
        """Number of frames, pages or slices, of which :meth:`read` takes one."""
        frames: list[int] = []
        counter = _FrameCounter(**{**vars(self), "channels": None, "frame": 0}, frames=frames)
        try:
            counter.read(source, name=name)
        except _CountedError:
            return frames[0]
        return 1

    def _named(self, source: Source, name: str | None, square: int | None) -> _Array:
        """Give every error of the decoders, which are of all kinds, the name of the file."""
        if not isinstance(source, str | os.PathLike | np.ndarray | Image.Image) and not hasattr(source, "read"):
            raise TypeError(f"an image is a path, a file, an array or Pillow's image, got {type(source).__name__}")
        if name is None:
            own = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
            own = own or getattr(source, "filename", None)
            name = os.fsdecode(own) if isinstance(own, str | os.PathLike) else f"the {type(source).__name__}"
        try:
            return self._levels_of(source, name, square)
        except (ImageError, _CountedError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageError(name, "is no image that Pillow reads; convert it, to PNG or TIFF say") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                raise
            reason = str(error) or type(error).__name__
            raise ImageError(name, f"is damaged, or of a kind that cannot be decoded: {reason}") from error

    def _levels_of(self, source: Source, name: str, square: int | None = None) -> _Array:
        """Levels of 0 to 255, uint8 ``(H, W, C)``."""
        if isinstance(source, np.ndarray):
            levels = self._of_array(source, name)
        elif isinstance(source, Image.Image):
            levels = self._of_pillow(source, name, None, None)
        elif isinstance(source, str | os.PathLike):
            with open(source, "rb") as opened:
                levels = self._of_file(opened, name, square)
        else:
            file = source if source.seekable() else io.BytesIO(source.read())
            levels = self._of_file(file, name, square)
        return _with_channels(levels, self.channels, name)

    def _of_file(self, file: IO[bytes], name: str, square: int | None) -> _Array:
        lower = name.lower()
        if lower.endswith(ARRAYS):
            return self._of_array(_load_array(file, name), name)
        if lower.endswith(NIFTI):
            return self._of_nifti(file, name)
        if lower.endswith(HEIF):
            images = _extra("pillow_heif", "heif", name).open_heif(file)
            self._refuse_large(images.size, name)
            return self._of_pillow(images[self._chosen(len(images), name)].to_pillow(), name, None, None)
        start = file.read(132)
        file.seek(0)
        if lower.endswith(DICOM) or start[128:] == b"DICM":
            return self._of_dicom(file, name)
        try:
            with _opened(file) as image:
                if image.format == "TIFF" and self.channels not in (None, 1, 3):  # bands that are no colours
                    file.seek(0)
                    return self._of_tiff(file, name)
                return self._of_pillow(image, name, file, square)
        except UnidentifiedImageError:
            if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                raise
            file.seek(0)
            return self._of_tiff(file, name)

    def _of_pillow(self, image: Image.Image, name: str, file: IO[bytes] | None, square: int | None) -> _Array:
        self._refuse_large(image.size, name)
        if self.frame is not None:
            with _quiet():
                image.seek(self._chosen(getattr(image, "n_frames", 1), name))
        depth = _depth(image)
        wide = ";16" in str(depth.raw) and image.mode not in _DEEP
        if wide and self.data_range and file is not None:  # of which Pillow gives the upper 8 bits only
            file.seek(0)
            return self._of_tiff(file, name) if image.format == "TIFF" else self._of_wide_png(file, name)
        if square is not None:
            image.draft(None, (2 * square, 2 * square))
        image.load()
        orientation = _orientation(image)  # after loading, which turns a TIFF
        if image.mode in _DEEP:
            values = np.asarray(image)
            values = values.view(np.uint32) if depth.unsigned else values
            levels = self._levels(values[..., None], name, depth.full, depth.certain)
            plain = Image.fromarray(255 - levels[..., 0] if depth.inverted else levels[..., 0])
            plain.info = {key: value for key, value in image.info.items() if key != "transparency"}
            clear = image.info.get("transparency")
            alpha = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
            image = plain
        else:
            image, alpha = _split_alpha(image)
        if self.colour_management:
            image = _to_srgb(image, name)
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        levels = np.asarray(image)
        if wide and 0 < levels.max() < 64:
            raise self._undeclared(name, 256 * int(levels.min()), 256 * int(levels.max()) + 255, 65535)
        return _turn(_over(levels if levels.ndim == 3 else levels[..., None], alpha, self.background), orientation)

    def _of_array(self, values: _Array, name: str) -> _Array:
        if values.ndim == 2:
            values = values[..., None]
        if values.ndim == 4:
            values = values[self._chosen(len(values), name)]
        elif self.frame is not None:
            self._chosen(1, name)
        if values.ndim != 3 or not values.size or values.shape[2] > 64:
            first = " (channels come last)" if values.ndim == 3 and values.size and values.shape[0] < 5 else ""
            raise ImageError(
                name, f"holds an array of shape {values.shape}; (H, W), (H, W, C) or (N, H, W, C) is an image{first}"
            )
        if values.dtype.kind not in "buif":
            raise ImageError(name, f"holds an array of {values.dtype}; expected real numbers")
        self._refuse_large((values.shape[1], values.shape[0]), name)
        return self._levels(values, name)

    def _of_tiff(self, file: IO[bytes], name: str) -> _Array:
        tifffile = _extra("tifffile", "geo", name)
        with _silent("tifffile"), tifffile.TiffFile(file) as tiff:
            page = tiff.pages[self._chosen(len(tiff.pages), name)]
            self._refuse_large((page.imagewidth, page.imagelength), name)
            values = page.asarray()
            values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
            values = values[..., None] if values.ndim == 2 else values
            full = None
            if values.dtype.kind == "u" and values.dtype.itemsize == 2:
                full = DataRange(0, 2 ** int(np.max(page.bitspersample)) - 1)
            levels = self._levels(values, name, full)
            if int(page.photometric) == 0:
                levels = 255 - levels
            alpha = page.extrasamples and int(page.extrasamples[-1]) in (1, 2)
            if alpha and levels.shape[2] in (2, 4) and levels.shape[2] != self.channels:
                levels = _over(levels[..., :-1], levels[..., -1], self.background)
            return levels

    def _of_wide_png(self, file: IO[bytes], name: str) -> _Array:
        from torchvision.io import ImageReadMode, decode_image

        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        values = decode_image(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
        colours = values.shape[2] - (values.shape[2] in (2, 4))
        alpha = (values[..., -1] >> 8).astype(np.uint8) if colours < values.shape[2] else None
        return _over(self._levels(values[..., :colours], name, DataRange(0, 65535)), alpha, self.background)

    def _of_dicom(self, file: IO[bytes], name: str) -> _Array:
        pydicom = _extra("pydicom", "medical", name)
        pixels = import_module("pydicom.pixels")
        data = pydicom.dcmread(file)
        if "Rows" not in data:
            raise ImageError(name, "is a DICOM file without an image")
        self._refuse_large((data.Columns, data.Rows), name)
        index = self._chosen(int(data.get("NumberOfFrames") or 1), name)
        values = pixels.pixel_array(data, index=index)
        if values.ndim == 3:  # colours, of 8 bits
            return self._levels(values, name)
        bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
        full = DataRange(*sorted(float(value) for value in pixels.apply_rescale(ends, data)))
        rules: Reader = self
        if self.window:
            if "WindowCenter" not in data:
                raise ImageError(name, "has no window of its own; declare a range instead, as in --range LOW HIGH")
            centre, width = (float(np.ravel(data[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
            rules = replace(self, data_range=DataRange(centre - width / 2, centre + width / 2))
        scaled = np.asarray(pixels.apply_rescale(values, data))[..., None]
        levels = rules._levels(scaled, name, full, certain=bits < 16)
        return 255 - levels if data.PhotometricInterpretation == "MONOCHROME1" else levels

    def _of_nifti(self, file: IO[bytes], name: str) -> _Array:
        nibabel = _extra("nibabel", "medical", name)
        path = getattr(file, "name", None)
        with _silent("nibabel.global"):
            if isinstance(path, str) and path.lower().endswith(NIFTI):
                volume = nibabel.load(path)  # reads the slice alone
            else:
                data = file.read()
                data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                volume = nibabel.Nifti1Image.from_bytes(data)
        width, height, *further = volume.shape
        self._refuse_large((width, height), name)
        middle = further[0] // 2 if further else 0
        index = self._chosen(math.prod(further), name, middle)
        place: tuple[Any, ...] = (..., *np.unravel_index(index, further, order="F"))
        values = np.asarray(volume.dataobj[place])
        if values.dtype.kind not in "buif":
            raise ImageError(name, f"holds voxels of {values.dtype}; expected real numbers")
        return self._levels(np.rot90(values)[..., None], name)

    def _levels(self, values: _Array, name: str, full: DataRange | None = None, certain: bool = False) -> _Array:
        """Scale values to 0 to 255.

        Args:
            values: ``(H, W, C)`` of any type.
            name: Name of the file.
            full: Range that the format defines.
            certain: Whether the file says so, rather than the type of its numbers.
        """
        if values.dtype == np.bool_:
            return values.astype(np.uint8) * 255
        if values.dtype == np.uint8:
            return values
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low + high):
            count = int((~np.isfinite(values)).sum())
            raise ImageError(name, f"has {count} values that are not finite numbers; replace them first")
        chosen = self.data_range or full
        if chosen is None:
            raise self._undeclared(name, low, high, None)
        assert isinstance(chosen, DataRange)
        span = chosen.high - chosen.low
        if self.data_range is None:
            if low < chosen.low:
                raise self._undeclared(name, low, high, None)
            unused = chosen.high - high > 0.75 * span
            if chosen.low < 0:  # signed: what is used lies around the middle
                unused = max(high - chosen.low, chosen.high - low) < 0.625 * span
            if unused and not certain and low < high:
                raise self._undeclared(name, low, high, chosen.high)
        if chosen.low > high or chosen.high < low:
            _log.warning(
                "%s: all values, %g to %g, lie outside the range %g to %g", name, low, high, *vars(chosen).values()
            )
        scaled = (values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32) - chosen.low) * (255 / span)
        levels: _Array = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return levels

    def _undeclared(self, name: str, low: float, high: float, most: float | None) -> ImageError:
        fitting = (ends for ends in _USUAL if ends[0] <= low and high <= ends[1])
        black, white = next(fitting, (math.floor(low), math.ceil(high)))
        why = "and its format defines no range"
        if most is not None:
            why = f"far from the {most:g} that its format allows, as images of fewer bits in 16 do"
        return ImageError(
            name,
            f"has values from {low:g} to {high:g}, {why}. Declare which values are black and white for all images, "
            f"for example --range {black} {white} (data_range=({black}, {white}) in Python).",
        )

    def _chosen(self, frames: int, name: str, default: int = 0) -> int:
        """Number of the frame to read."""
        if self.frame is None:
            return default
        if not -frames <= self.frame < frames:
            raise ImageError(name, f"has {frames} frames, 0 to {frames - 1}; frame {self.frame} was asked for")
        return self.frame % frames

    def _refuse_large(self, size: Sequence[int], name: str) -> None:
        if size[0] * size[1] > self.most_pixels:
            raise ImageError(
                name,
                f"is {size[0]}x{size[1]} pixels, more than the {self.most_pixels:,} that are read; if you trust the "
                f"file, raise the limit with --most-pixels {size[0] * size[1]} (most_pixels in Python)",
            )


def read_image(source: Source, **options: Any) -> Tensor:
    """Read an image as the commands do.

    Args:
        source: Path, file open for reading bytes, array ``(H, W)`` or ``(H, W, C)``, or Pillow's image.
        **options: Attributes of :class:`Reader`, such as ``data_range=(0, 4095)``, ``channels=None`` or ``frame=2``.

    Returns:
        uint8 ``(1, 3, H, W)``, ready for :class:`~afv_metric.metric.AFVDistance`; C channels if so asked.

    Raises:
        ImageError: If it is no image, damaged, too large, or of a range that must be declared.
        OSError: If the file cannot be opened.

    Example:
        >>> scan = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
        >>> read_image(scan, data_range=(0, 4095)).flatten()[[0, -1]]
        tensor([  0, 255], dtype=torch.uint8)
        >>> read_image(Image.new("L", (40, 32), 7)).shape
        torch.Size([1, 3, 32, 40])
    """
    return Reader(**options).read(source)


def count_frames(source: Source) -> int:
    """Number of frames of an animation, pages of a TIFF, images of an array, or slices of a volume.

    Example:
        >>> count_frames(np.zeros((5, 32, 32, 3), np.uint8))
        5
    """
    return Reader().count_frames(source)


def percentile_range(
    sources: Iterable[Source | Picture], low: float = 0.1, high: float = 99.9, *, reader: Reader | None = None
) -> DataRange:
    """The range between two percentiles of all values of a set of images, to be declared for each of them.

    Args:
        sources: Images of one kind, all of which are read; those that cannot be are passed over.
        low: Percentile that becomes black, in [0, 100].
        high: Percentile that becomes white.
        reader: Other rules to read them by.

    Returns:
        The range, to six digits.

    Raises:
        ValueError: If there is no image deeper than 8 bits, or all values are equal.

    Example:
        >>> ramp = np.linspace(0, 1, 10_000).reshape(100, 100)
        >>> percentile_range([ramp], 10, 90)
        DataRange(low=0.1, high=0.9)
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles are two numbers in [0, 100], the lower one first, got {low:g} and {high:g}")
    probe, broken = _Probe(**{**vars(reader or Reader()), "channels": None, "data_range": None}), None
    for source in sources:
        try:
            if isinstance(source, Picture):
                probe.read(source.open(), name=source.name)
            else:
                probe.read(source)
        except (ImageError, OSError) as error:
            broken = error
    if not probe.samples:
        raise broken or ValueError("percentiles are for images deeper than 8 bits, and there is none")
    ends = np.percentile(np.concatenate(probe.samples), (low, high))
    return DataRange(*(float(f"{value:.6g}") for value in ends))


@dataclass(frozen=True)
class _Probe(Reader):
    """Keeps a sample of the values before they are scaled."""

    samples: list[_Array] = field(default_factory=list)

    def _levels(self, values: _Array, name: str, full: DataRange | None = None, certain: bool = False) -> _Array:
        if values.dtype.itemsize > 1:
            flat = values.ravel()[:: 1 + values.size // 20_000].astype(np.float64)
            self.samples.append(flat[np.isfinite(flat)])
        return np.zeros(values.shape, np.uint8)


class _CountedError(Exception):
    """The frames are counted; nothing more is to be read."""


@dataclass(frozen=True)
class _FrameCounter(Reader):
    """Stops where a frame would be chosen."""

    frames: list[int] = field(default_factory=list)

    def _chosen(self, frames: int, name: str, default: int = 0) -> int:
        self.frames.append(frames)
        raise _CountedError


_BAND = 1024  # rows of a large TIFF that are read together
_USUAL = ((0, 1), (-1, 1), (0, 255), (0, 1023), (0, 4095), (0, 16383), (0, 65535), (-1024, 3071), (-32768, 32767))
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class _Depth(NamedTuple):
    """What a file says of its numbers, of which Pillow's mode does not tell all."""

    raw: Any
    full: DataRange | None
    certain: bool
    inverted: bool
    unsigned: bool


def _depth(image: Image.Image) -> _Depth:
    """Look at an image before it is loaded, which forgets it."""
    tile: Any = getattr(image, "tile", None)
    raw = tile[0][3] if tile else None
    full, certain, inverted, unsigned = None, False, False, False
    if image.mode.startswith("I;16"):
        full = DataRange(0, 65535)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        full = DataRange(0, 65535)
        certain = bool(tile) and tile[0][0] != "raw"  # scaled from the maximum that the header gives
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, kind = tags.get(258, (1,))[0], tags.get(339, (1,))[0]
        inverted = tags.get(262) == 0
        unsigned = image.mode == "I" and bits == 32 and kind == 1
        if image.mode in _DEEP and bits <= 16:
            full, certain = DataRange(0, 2**bits - 1 if kind == 1 else 2 ** (bits - 1) - 1), bits < 16
    return _Depth(raw, full, certain, inverted, unsigned)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's own limit and warnings, which are settings of the process: one thread of ours at a time."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
    with _quiet():
        image: Image.Image = Image.open(file)
        if image.format == "PNG":
            image.verify()
            file.seek(0)
            image = Image.open(file)
        return image


def _load_array(file: IO[bytes], name: str) -> _Array:
    loaded = np.load(file, allow_pickle=False)
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


def _with_channels(levels: _Array, channels: int | None, name: str) -> _Array:
    count = levels.shape[2]
    if channels in (None, count):
        return levels
    if count == 1 and channels == 3:
        return np.repeat(levels, 3, axis=2)
    if count == 3 and channels == 1:
        return np.asarray(Image.fromarray(levels).convert("L"))[..., None]
    raise ImageError(name, f"has {count} channels, expected {channels}; choose channels, or give channels={count}")


def _split_alpha(image: Image.Image) -> tuple[Image.Image, _Array | None]:
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


def _over(levels: _Array, alpha: _Array | None, background: tuple[int, int, int]) -> _Array:
    if alpha is None or alpha.min() == 255:
        return levels
    behind = np.array(background if levels.shape[2] == 3 else [round(sum(background) / 3)])
    weight = alpha[..., None].astype(np.int32)
    return ((levels * weight + behind * (255 - weight) + 127) // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing about the pixels
        return 1


def _turn(pixels: _Array, orientation: int) -> _Array:
    """Turn pixels as EXIF says, which is how viewers show them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_srgb(image: Image.Image, name: str) -> Image.Image:
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
