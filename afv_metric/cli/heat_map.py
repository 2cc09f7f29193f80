"""A map of the distance in colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from afv_metric.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["save_heat_map"]

# From black over violet and orange to pale yellow, ever lighter: a larger value never looks smaller.
_RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def save_heat_map(values: NDArray[np.float32], grey: NDArray[np.float32], file: Path) -> float:
    """Write the map of a distance as a PNG, blended over the greys of the image.

    Args:
        values: Distances at the pixels, ``(H, W)``.
        grey: The image, ``(H, W)`` in [0, 255].
        file: The PNG.

    Returns:
        The largest value, which is pale yellow.
    """
    import numpy as np
    from PIL import Image

    largest = float(values.max())
    relative = values / largest if largest > 0 else values
    stops = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(relative, stops, channel) for channel in zip(*_RAMP, strict=True)], 2)
    pixels = (0.65 * colours + 0.35 * grey[..., None]).round().astype(np.uint8)
    with atomic_write(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    return largest
