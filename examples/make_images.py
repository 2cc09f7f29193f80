"""Draw the example images: a landscape that no camera saw, and four distortions of it.

    python examples/make_images.py [FOLDER]

Everything follows from one seed, so that the pictures are free of any licence but that of this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float64]

SIZE = 128
_SCALE = 4  # Drawn larger, then shrunk, for smooth edges.
_HORIZON = 0.62


def draw_landscape(seed: int = 21) -> Image.Image:
    """Hills behind a lake under a clouded evening sky, with trees on the shore."""
    random = np.random.default_rng(seed)
    side = SIZE * _SCALE
    y, x = np.mgrid[0:side, 0:side] / side
    picture = _draw_sky(x, y, random)
    layers = [(0.46, 0.16, (0.50, 0.50, 0.62)), (0.53, 0.10, (0.34, 0.40, 0.45)), (0.585, 0.05, (0.20, 0.27, 0.22))]
    for height, roughness, colour in layers:
        ridge = height + roughness * _fractal((side,), 1.6, random)
        texture = 1 + 0.22 * _fractal((side, side), 1.1, random)
        haze = np.clip((y - ridge[None]) * 3, 0, 1)[..., None]
        hill = np.array(colour) * texture[..., None] * (1 - 0.3 * haze) + 0.12 * haze
        picture = np.where((y > ridge[None])[..., None], hill, picture)
    picture = _plant_trees(picture, x, y, random)
    picture = _flood(picture, y, random)
    picture = _draw_shore(picture, y, random)
    pixels = (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BOX)


def distort(reference: Image.Image, seed: int = 1) -> dict[str, Image.Image]:
    """Distortions of an image, by name."""
    pixels = np.asarray(reference, dtype=np.float64)
    noise = np.random.default_rng(seed).normal(0, 25, pixels.shape)
    return {
        "blurred": reference.filter(ImageFilter.GaussianBlur(1)),
        "strongly-blurred": reference.filter(ImageFilter.GaussianBlur(4)),
        "noisy": _to_image(pixels + noise),
        "shifted": _to_image(pixels * [1.12, 1.0, 0.82] + [8, 0, -6]),
    }


def _fractal(shape: tuple[int, ...], slope: float, random: np.random.Generator) -> Array:
    """Noise whose amplitude falls with the frequency to the power of ``slope``; mean 0, largest deviation 1."""
    spectrum = np.fft.fftn(random.normal(size=shape))
    frequency = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    frequency.flat[0] = np.inf
    noise = np.fft.ifftn(spectrum / frequency**slope).real
    return np.asarray(noise / np.abs(noise).max())


def _draw_sky(x: Array, y: Array, random: np.random.Generator) -> Array:
    depth = np.clip(y / _HORIZON, 0, 1)[..., None]
    sky = np.array([0.22, 0.40, 0.68]) * (1 - depth) + np.array([0.98, 0.80, 0.58]) * depth
    distance = np.hypot(x - 0.68, y - 0.33)[..., None]
    sky = sky + np.array([0.9, 0.65, 0.35]) * 0.5 * np.exp(-((distance / 0.16) ** 2))
    sky = np.where(distance < 0.035, np.array([1.0, 0.96, 0.82]), sky)
    # Clouds are stretched sideways, lit from below.
    clouds = _fractal(x.shape, 1.6, random)[:, : len(x) // 4].repeat(4, 1) + 0.2 * _fractal(x.shape, 1.2, random)
    cover = np.clip(2.4 * clouds * (1 - 0.6 * depth[..., 0]) + 0.1, 0, 0.85)[..., None]
    lit = np.clip(0.75 + 2 * np.gradient(clouds, axis=0) * len(x) / 20, 0.5, 1.05)[..., None]
    return np.asarray(sky * (1 - cover) + cover * lit * np.array([0.98, 0.90, 0.86]))


def _plant_trees(picture: Array, x: Array, y: Array, random: np.random.Generator) -> Array:
    for place in np.sort(random.uniform(0, 1, 34)):
        height = random.uniform(0.04, 0.12) * (1.5 - abs(place - 0.2))
        foot = _HORIZON + 0.005
        rise = (foot - y) / height
        ragged = 1 + 0.4 * np.sin(rise * 40 + 40 * place) + 0.3 * _fractal((len(y),), 0.5, random)[:, None]
        inside = (rise > 0) & (rise < 1) & (np.abs(x - place) < 0.2 * height * (1 - rise) * ragged)
        shade = np.clip(0.75 + 10 * (x - place), 0.4, 1.5)[..., None]
        colour = np.array([0.13, 0.20, 0.12]) + 0.04 * random.normal(size=3)
        picture = np.where(inside[..., None], colour * shade, picture)
    return picture


def _flood(picture: Array, y: Array, random: np.random.Generator) -> Array:
    """Mirror what is above the horizon, displaced by waves that grow towards the viewer."""
    side = len(y)
    depth = np.clip((y - _HORIZON) / (1 - _HORIZON), 0, 1)
    waves = _fractal((side, side), 1.2, random)[:, ::2].repeat(2, 1)[:, :side]
    mirrored = 2 * _HORIZON - y + 0.14 * depth * waves - 0.01 * depth
    rows = np.clip((mirrored * side).astype(int), 0, side - 1)
    reflection = picture[rows, np.arange(side)[None]]
    glitter = np.clip(waves * (0.2 + depth), 0, 1)[..., None] * np.array([0.35, 0.30, 0.22])
    water = reflection * (0.78 - 0.25 * depth[..., None]) + np.array([0.01, 0.04, 0.07]) + glitter
    return np.where((y > _HORIZON)[..., None], water, picture)


def _draw_shore(picture: Array, y: Array, random: np.random.Generator) -> Array:
    side = len(y)
    bank = 0.93 + 0.06 * _fractal((side,), 1.5, random)
    grass = np.stack([_fractal((side, side), 0.7, random) for _ in range(2)], 2)
    colour = np.array([0.36, 0.38, 0.16]) * (1 + 1.1 * grass[..., :1]) + np.array([0.12, 0.02, -0.02]) * grass[..., 1:]
    shade = np.clip(0.6 + 6 * (y - bank[None]), 0.5, 1.1)[..., None]
    blades = bank[None] + 0.02 * random.uniform(-1, 0, side // 2).repeat(2)[None]
    return np.where((y > blades)[..., None], colour * shade, picture)


def _to_image(pixels: Array) -> Image.Image:
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def main(folder: Path) -> None:
    """Write the images."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = draw_landscape()
    for name, image in {"reference": reference, **distort(reference)}.items():
        image.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
