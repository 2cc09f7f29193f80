"""A distance as the strength of a known distortion: Gaussian blur, JPEG, or white noise.

What a distance amounts to depends on the image: noise is seen in the sky, blur in the grass. So the strengths are found
on the reference itself, whose distances to its own blurred, compressed and noisy copies are measured: exact for the
kinds that are there, on any image and for every form of the distance. How far other images would differ is in the
table of the bundle (``scale.json``, made by ``afv-metric calibrate``): percentiles of the same distances over natural
images, and of the distances between neighbouring steps. No judgement of people is in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afv_metric.files import atomic_write
from afv_metric.images.distort import Ladder, add_noise, blur, compress, make_steps

__all__ = ["FILE", "KINDS", "PHRASES", "Scale", "calibrate", "format_strength", "measure_ladders", "strength_at"]

FILE = "scale.json"
Measure = Callable[[Tensor, Tensor], Tensor]
Curves = Mapping[str, NDArray[np.float64]]
"""Distances at the strengths of each kind, which never fall."""

_PERCENTS = (10, 50, 90)
_NEIGHBOURS = np.linspace(0, 100, 21)

KINDS = {
    "blur": Ladder(
        blur, (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 4, 5, 6.5, 8), "blur, pixels"
    ),
    "jpeg": Ladder(compress, (95, 90, 85, 80, 75, 70, 65, 58, 50, 42, 35, 28, 22, 17, 13, 10, 7, 5), "JPEG quality"),
    "noise": Ladder(add_noise, (1, 1.5, 2, 3, 4, 5, 6.5, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80), "noise of 255"),
}
_STRENGTHS = {name: list(kind.strengths) for name, kind in KINDS.items()}
PHRASES = {"blur": "Gaussian blur of {} pixels", "jpeg": "JPEG quality {}", "noise": "white noise of {}/255"}
"""What a strength of each kind is called."""


def measure_ladders(
    measure: Measure, image: Tensor, seed: int = 0, neighbours: list[float] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Distances of an image, ``(1, 3, H, W)`` uint8, to its distorted copies, by kind: each at least the milder ones'.

    The seed is that of the noise. The distances between neighbouring steps are measured if ``neighbours`` takes them.

    Raises:
        ValueError: If the image has no three channels.
    """
    if image.shape[1] != 3:
        raise ValueError(f"a scale is for images of three channels, got {image.shape[1]}")
    pixels = image[0].permute(1, 2, 0).cpu().numpy()
    curves = {}
    for name, kind in KINDS.items():
        copies = torch.from_numpy(np.stack(make_steps(pixels, kind, seed))).permute(0, 3, 1, 2).to(image.device)
        with torch.no_grad():
            curves[name] = np.maximum.accumulate(measure(image, copies).double().cpu().numpy())
            if neighbours is not None:
                neighbours += measure(copies[:-1], copies[1:]).tolist()
    return curves


def strength_at(name: str, curve: NDArray[np.float64], distance: float) -> float | None:
    """The strength at which a kind of distortion has a distance; None if it is milder or stronger than the ladder.

    Example:
        >>> strength_at("noise", np.linspace(0, 1.7, 18), 0.75)
        8.944...
    """
    if not curve[0] < distance <= curve[-1]:
        return None
    return float(np.exp(np.interp(distance, curve, np.log(KINDS[name].strengths))))


def format_strength(name: str, curve: NDArray[np.float64], distance: float) -> str:
    """The strength as text, with ``<`` or ``>`` beyond the ladder.

    Example:
        >>> curve = np.linspace(0.1, 1.8, 18)
        >>> format_strength("noise", curve, 0.01), format_strength("noise", curve, 2), format_strength("jpeg", curve, 2)
        ('<1', '>80', '<5')
    """
    value, strengths = strength_at(name, curve, distance), KINDS[name].strengths
    if value is not None:
        return f"{value:.2g}"
    end = 0 if distance <= curve[0] else -1
    return f"{'<' if strengths[end] == min(strengths) else '>'}{strengths[end]:g}"


@dataclass(frozen=True)
class Scale:
    """The table of a bundle: distances of natural images to their distorted copies.

    Attributes:
        bundle: sha256 that identifies the bundle.
        form: Form of the distance, the bundle's default.
        images: Number of images.
        strengths: By kind, the strengths.
        distances: By kind, the 10th, 50th and 90th percentile of the distances over the images.
        neighbours: 21 percentiles, from 0 to 100, of the distances between neighbouring steps of all kinds.
    """

    bundle: str
    form: str
    images: int
    strengths: Mapping[str, list[float]]
    distances: Mapping[str, list[list[float]]]
    neighbours: list[float]

    def __post_init__(self) -> None:
        if self.strengths != _STRENGTHS or self.distances.keys() != KINDS.keys():
            raise ValueError("the strengths are not those of this release")
        shapes = {name: (len(_PERCENTS), len(strengths)) for name, strengths in _STRENGTHS.items()}
        tables = {name: np.array(rows, float) for name, rows in {**self.distances, "": [self.neighbours]}.items()}
        if {name: table.shape for name, table in tables.items()} != {**shapes, "": (1, len(_NEIGHBOURS))} or any(
            not np.isfinite(table).all() or (np.diff(table) < 0).any() for table in tables.values()
        ):
            raise ValueError("distances must be finite, never fall, and be as many as the strengths")

    def curves(self, percent: int = 50) -> Curves:
        """Percentile of the distances over the images, by kind; percent is 10, 50 or 90."""
        return {name: np.array(rows[_PERCENTS.index(percent)]) for name, rows in self.distances.items()}

    def percentile(self, distance: float) -> float:
        """Share, in percent, of the distances between neighbouring steps that are smaller."""
        return float(np.interp(distance, self.neighbours, _NEIGHBOURS))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the table into the folder of its bundle."""
        with atomic_write(Path(folder) / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return Path(folder) / FILE

    @classmethod
    def load(cls, folder: str | os.PathLike[str], bundle: str) -> Scale:
        """Read the table of the bundle in a folder, which a sha256 identifies.

        Raises:
            FileNotFoundError: If it has none.
            ValueError: If the table is damaged, or of another bundle.
        """
        file = Path(folder) / FILE
        try:
            scale = cls(**json.loads(file.read_bytes()))
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise ValueError(
                f"{file} is not a table of this release ({error}): make it by afv-metric calibrate"
            ) from error
        if scale.bundle != bundle:
            raise ValueError(f"{file} is of another bundle than the one beside it: make it by afv-metric calibrate")
        return scale


def calibrate(measure: Measure, images: Iterable[Tensor], *, bundle: str, form: str) -> Scale:
    """Make the table of a bundle from natural images, ``(1, 3, H, W)`` uint8 each, of any sizes.

    Raises:
        ValueError: If there are fewer than two images.
    """
    near: list[float] = []
    found = [measure_ladders(measure, image, seed, near) for seed, image in enumerate(images)]
    if len(found) < 2:
        raise ValueError(f"a scale needs two images at least, got {len(found)}")

    def percentiles(values: Any, percents: Any) -> Any:
        return np.vectorize(lambda value: float(f"{value:.6g}"))(np.percentile(values, percents, 0)).tolist()

    distances = {name: percentiles([curves[name] for curves in found], _PERCENTS) for name in KINDS}
    return Scale(bundle, form, len(found), _STRENGTHS, distances, percentiles(near, _NEIGHBOURS))
