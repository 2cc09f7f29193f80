"""Small images for the tests of the commands, and the distances that the library finds between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.images import read_image

TINY_BUNDLE = str(Path(__file__).parent / "data" / "tiny-bundle")
QUIET = ["--weights", TINY_BUNDLE, "--quiet"]


def save_image(path: Path, seed: int = 0, noise: float = 0, size: tuple[int, int] = (48, 40)) -> Path:
    """A smooth picture of the given width and height, with noise; the seed is the noise's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 5, size[1]))
    smooth = 128 + 80 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2)
    noisy = smooth + noise * np.random.default_rng(seed).normal(size=smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


def measure(first: Path, second: Path, **settings: object) -> float:
    metric = AFVDistance(TINY_BUNDLE, **settings)  # type: ignore[arg-type]
    return float(metric(read_image(first), read_image(second)))
