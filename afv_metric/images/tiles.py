"""Squares of images: the middle one, which all sizes have in common, and tiles that cover a large one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["Tiling", "by_pillow", "resize_and_center_crop"]


@dataclass(frozen=True)
class Tiling:
    """How a large image becomes many squares, so that its texture is seen as it is.

    Squares of the native image cover all of it, those of the image at half its size as well, and so on down to the
    middle square of the whole, which is all that there is of an image whose shorter side is below twice the square's.

    Attributes:
        most: Tiles per image at most, evenly spread over places and scales.
        least_deviation: Tiles with a smaller standard deviation, in levels of 0 to 255, are empty and left out, such as
            the black borders of scans.
        weighting: ``"area"``: every tile counts alike, and so an image by its area, up to ``most`` tiles; ``"image"``:
            every image counts alike, and its tiles share its weight.
        cache_gb: Bound on the size of all tiles in units of 10^9 bytes; where it needs be, all images give fewer. None:
            16, but one tile of each image at least.

    Raises:
        ValueError: If ``most`` is below 1, or the weighting unknown.

    Example:
        >>> grain = np.random.default_rng(0).integers(0, 256, (256, 128, 1), np.uint8)
        >>> len(Tiling().cut([grain], 32))  # 8 x 4 tiles, 4 x 2 at half the size, the middle square
        41
    """

    most: int = 1024
    least_deviation: float = 2.0
    weighting: Literal["area", "image"] = field(default="area", repr=False)  # of no effect on what is cached
    cache_gb: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.most < 1:
            raise ValueError(f"an image gives at least one tile, got {self.most}")
        if self.weighting not in ("area", "image"):
            raise ValueError(f'the weighting must be "area" or "image", got {self.weighting!r}')

    def most_in_cache(self, tile_bytes: int) -> int:
        """How many tiles keep to the bound."""
        return int(1e9 * (self.cache_gb or 16) / tile_bytes)

    def bounded(self, images: int, tile_bytes: int) -> Tiling:
        """The tiling for which the tiles of so many images keep to the bound.

        Raises:
            ValueError: If a bound was given that has no room for a tile of each.
        """
        most = self.most_in_cache(tile_bytes) // max(images, 1)
        if most < 1 and self.cache_gb is not None:
            raise ValueError(f"{self.cache_gb:g} GB (--cache-gb) have no room for a tile of each of {images:,} images")
        return replace(self, most=min(self.most, max(most, 1)))

    def cut(self, parts: Iterable[NDArray[Any]], size: int) -> list[NDArray[Any]]:
        """The tiles of an image, which may come in parts; the middle square of the first alone if all are empty.

        Parts ``(H, W, C)`` are taken one after the other, and at most twice :attr:`most` tiles kept at a time.
        """
        tiles: list[NDArray[Any]] = []
        middle: list[NDArray[Any]] = []
        seen, every = 0, 1
        for part in parts:
            middle = middle or [resize_and_center_crop(part, size)]
            for tile in self._tiles_of(part, size):
                if seen % every == 0:
                    tiles.append(tile.copy())
                seen += 1
                if len(tiles) > 2 * self.most:
                    tiles, every = tiles[::2], 2 * every
        tiles = tiles or middle
        count = min(self.most, len(tiles))
        return [tiles[place * len(tiles) // count] for place in range(count)]

    def _tiles_of(self, pixels: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
        """Tiles that are not empty, native ones first."""

        def candidates(level: NDArray[Any]) -> Iterator[NDArray[Any]]:
            while min(level.shape[:2]) >= 2 * size:
                tops, lefts = (
                    np.linspace(0, side - size, -(-side // size)).round().astype(int) for side in level.shape[:2]
                )
                yield from (level[top : top + size, left : left + size] for top in tops for left in lefts)
                level = by_pillow(lambda image: image.reduce(2), level)
            yield resize_and_center_crop(pixels, size)

        for tile in candidates(pixels):
            planes = np.moveaxis(tile, 2, 0).reshape(tile.shape[2], -1)  # four times as fast as over two axes
            if planes.std(1).max() >= self.least_deviation:
                yield tile


def resize_and_center_crop(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """The middle square of an image ``(H, W, C)``, scaled to ``size``: the rule of training, sets and experiments.

    It shrinks by area averages. A smaller image is enlarged: by repeating pixels if it fits a whole number of times, so
    that averages of 2x2 pixels give a 32x32 image back exactly, else bicubically.

    Example:
        >>> ramp = np.arange(8, dtype=np.uint8)[None, :, None].repeat(4, 0)
        >>> resize_and_center_crop(ramp, 4)[0, :, 0].tolist()
        [2, 3, 4, 5]
    """
    shorter = min(pixels.shape[:2])
    repeats = shorter >= size or size % shorter == 0
    method = Image.Resampling.BOX if repeats else Image.Resampling.BICUBIC
    return by_pillow(lambda image: ImageOps.fit(image, (size, size), method), pixels)


def by_pillow(change: Callable[[Image.Image], Image.Image], pixels: NDArray[Any]) -> NDArray[Any]:
    """Change an image of any number of channels, which Pillow does alike for all of them."""
    if pixels.shape[2] == 3:
        return np.asarray(change(Image.fromarray(pixels)))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(pixels.shape[2])]
    return np.stack([np.asarray(change(plane)) for plane in planes], -1)
