"""Two images and their map in one picture, which a notebook can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_images import TINY_BUNDLE, measure, save_image

from afv_metric import AFVDistance
from afv_metric.images import read_image
from afv_metric.notebook import show


def test_images_and_map_are_side_by_side(tmp_path: Path) -> None:
    files = [save_image(tmp_path / f"{noise}.png", noise=noise, size=(48, 40)) for noise in (0, 20)]
    picture = show(*files, weights=TINY_BUNDLE)
    assert picture.size == (3 * 7 * 48 + 2 * 8, 7 * 40)
    pixels = np.asarray(picture)
    for place, file in enumerate(files):
        left = place * (7 * 48 + 8)
        original = read_image(file)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels[3::7, left + 3 : left + 7 * 48 : 7], original)
    assert picture.info["distance"] == pytest.approx(measure(*files), rel=1e-5)
    values = AFVDistance(TINY_BUNDLE, spatial=True)(*map(read_image, files))
    assert picture.info["largest"] == pytest.approx(float(values.max()), rel=1e-5)
    assert picture._repr_png_().startswith(b"\x89PNG")  # what IPython asks for


def test_tensors_are_shown_in_their_range() -> None:
    grey = torch.full((1, 32, 32), 0.25)
    assert np.asarray(show(grey, grey, normalize=True, weights=TINY_BUNDLE))[0, 0].tolist() == [64, 64, 64]
    with pytest.raises(ValueError, match="one image each was expected, got 2 and 1"):
        show(torch.zeros(2, 3, 32, 32), grey, weights=TINY_BUNDLE, check=False)
