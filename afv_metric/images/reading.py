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

import io
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from afv_metric.images.colour import with_channels
from afv_metric.images.formats import (
    DataRange,
    Frames,
    ImageError,
    Raw,
    check_data_range,
    frames_of_array,
    frames_of_file,
    frames_of_picture,
)
from afv_metric.images.listing import Picture
from afv_metric.images.tiles import resize_and_center_crop

__all__ = ["MOST_PIXELS", "DataRange", "ImageError", "Reader", "count_frames", "percentile_range", "read_image"]

MOST_PIXELS = 178_956_970  # where Pillow refuses, too
Source = str | os.PathLike[str] | IO[bytes] | NDArray[Any] | Image.Image
_Array = NDArray[Any]
_USUAL = ((0, 1), (-1, 1), (0, 255), (0, 1023), (0, 4095), (0, 16383), (0, 65535), (-1024, 3071), (-32768, 32767))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """The rules by which files become tensors, see :mod:`afv_metric.images.reading`.

    Attributes:
        data_range: Values that are black and white in images deeper than 8 bits; needed where the format defines none.
        channels: 3: grey is repeated; 1: colours become their luma; another number: must be that of the file; None:
            whatever the file has.
        frame: Number of the frame, page or slice, from 0; negative numbers count from the end; None: the first, and
            of a volume the middle one.
        window: Whether a DICOM file's own window is its range.
        background: Red, green and blue behind transparent pixels, in [0, 255].
        colour_management: Whether embedded profiles are converted to sRGB.
        most_pixels: Images of more are refused.
    """

    data_range: DataRange | None = None
    channels: int | None = 3
    frame: int | None = None
    window: bool = False
    background: tuple[int, int, int] = (128, 128, 128)
    colour_management: bool = True
    most_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.data_range is not None:
            check_data_range(self.data_range)
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")

    def read(self, source: Source, *, name: str | None = None, square: int | None = None) -> Tensor:
        """Read an image, or its middle square.

        Args:
            source: Path, file open for reading bytes, array ``(H, W)`` or ``(H, W, C)``, or Pillow's image.
            name: Name of the file for errors; its suffix marks arrays and the formats of extras. Default: the path.
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
        with self._open(source, name, square) as (frames, name):
            return self._finished(frames.load(self._chosen(frames, name)), name)

    def parts(self, source: Source, name: str) -> Iterator[_Array]:
        """All that a file shows, as one array or several, each as :meth:`levels` reads it.

        These are the slices of a volume, the images of an array, or bands of rows of a large TIFF, which is not read
        whole (with tifffile, from the extra ``geo``); of animations and pages the first.
        """
        with self._open(source, name) as (frames, name):
            raws: Iterable[Raw]
            if self.frame is None and frames.alike:
                raws = map(frames.load, range(frames.number()))
            elif self.frame is None and frames.bands:
                raws = frames.bands()
            else:
                raws = [frames.load(self._chosen(frames, name))]
            yield from (self._finished(raw, name) for raw in raws)

    def refuse_large(self, size: Sequence[int], name: str) -> None:
        """Raise :class:`ImageError` if an image of this width and height has too many pixels."""
        if size[0] * size[1] > self.most_pixels:
            raise ImageError(
                name,
                f"is {size[0]}x{size[1]} pixels, more than the {self.most_pixels:,} that are read; if you trust the "
                f"file, raise the limit with --most-pixels {size[0] * size[1]} (most_pixels in Python)",
            )

    @contextmanager
    def _open(self, source: Source, name: str | None = None, square: int | None = None) -> Iterator[tuple[Frames, str]]:
        """Look into a source, and give every error of the decoders, which are of all kinds, the name of the file."""
        if not isinstance(source, str | os.PathLike | np.ndarray | Image.Image) and not hasattr(source, "read"):
            raise TypeError(f"an image is a path, a file, an array or Pillow's image, got {type(source).__name__}")
        if name is None:
            own = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
            own = own or getattr(source, "filename", None)
            name = os.fsdecode(own) if isinstance(own, str | os.PathLike) else f"the {type(source).__name__}"
        try:
            with ExitStack() as stack:
                if isinstance(source, np.ndarray):
                    frames = frames_of_array(source, name, self)
                elif isinstance(source, Image.Image):
                    frames = frames_of_picture(source, name, self)
                else:
                    if isinstance(source, str | os.PathLike):
                        source = stack.enter_context(open(source, "rb"))
                    file = source if source.seekable() else io.BytesIO(source.read())
                    frames = frames_of_file(file, name, self, square)
                yield frames, name
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageError(name, "is no image that Pillow reads; convert it, to PNG or TIFF say") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                raise
            reason = str(error) or type(error).__name__
            raise ImageError(name, f"is damaged, or of a kind that cannot be decoded: {reason}") from error

    def _chosen(self, frames: Frames, name: str) -> int:
        if self.frame is None:
            return frames.usual
        count = frames.number()
        if not -count <= self.frame < count:
            raise ImageError(name, f"has {count} frames, 0 to {count - 1}; frame {self.frame} was asked for")
        return self.frame % count

    def _finished(self, raw: Raw, name: str) -> _Array:
        """Levels of 0 to 255, uint8 ``(H, W, C)``."""
        levels = raw.finish(self._scaled(raw, name))
        fitting = with_channels(levels, self.channels)
        if fitting is None:
            has = f"has {levels.shape[2]} channels, expected {self.channels}"
            raise ImageError(name, f"{has}; choose channels, or give channels={levels.shape[2]}")
        return fitting

    def _scaled(self, raw: Raw, name: str) -> _Array:
        values, full = raw.values, raw.full
        if values.dtype == np.bool_:
            return values.astype(np.uint8) * 255
        if values.dtype == np.uint8:
            return values
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low + high):
            count = int((~np.isfinite(values)).sum())
            raise ImageError(name, f"has {count} values that are not finite numbers; replace them first")
        declared = raw.window or self.data_range
        chosen = declared or full
        if chosen is None:
            raise _undeclared(name, low, high, None)
        black, white = chosen
        span = white - black
        if declared is None:
            if low < black:
                raise _undeclared(name, low, high, None)
            unused = white - high > 0.75 * span
            if black < 0:  # signed: what is used lies around the middle
                unused = max(high - black, white - low) < 0.625 * span
            if unused and not raw.certain and low < high:
                raise _undeclared(name, low, high, white)
        if black > high or white < low:
            _log.warning("%s: all values, %g to %g, lie outside the range %g to %g", name, low, high, black, white)
        scaled = (values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32) - black) * (255 / span)
        return np.asarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))


def _undeclared(name: str, low: float, high: float, most: float | None) -> ImageError:
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
    with Reader()._open(source) as (frames, _):
        return frames.number()


def percentile_range(
    sources: Iterable[Source | Picture], low: float = 0.1, high: float = 99.9, *, reader: Reader | None = None
) -> DataRange:
    """The range between two percentiles of all values of a set of images, to be declared for each of them.

    The images are of one kind. All are read, by the other rules of ``reader``; those that cannot be are passed over.

    Raises:
        ValueError: If there is no image deeper than 8 bits, or all values are equal.

    Example:
        >>> ramp = np.linspace(0, 1, 10_000).reshape(100, 100)
        >>> percentile_range([ramp], 10, 90)
        (0.1, 0.9)
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles are two numbers in [0, 100], the lower one first, got {low:g} and {high:g}")
    rules = replace(reader or Reader(), channels=None, data_range=(0, 1))  # any: values are taken as they are
    samples, broken = list[_Array](), None
    for source in sources:
        try:
            image, name = (source.open(), source.name) if isinstance(source, Picture) else (source, None)
            with rules._open(image, name) as (frames, name):
                for raw in frames.bands() if frames.bands else [frames.load(rules._chosen(frames, name))]:
                    if raw.values.dtype.itemsize > 1:
                        flat = raw.values.ravel()[:: 1 + raw.values.size // 20_000].astype(np.float64)
                        samples.append(flat[np.isfinite(flat)])
        except (ImageError, OSError) as error:
            broken = error
    if not samples:
        raise broken or ValueError("percentiles are for images deeper than 8 bits, and there is none")
    black, white = (float(f"{value:.6g}") for value in np.percentile(np.concatenate(samples), (low, high)))
    check_data_range((black, white))
    return black, white
