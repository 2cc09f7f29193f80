"""An assertion for tests of whatever draws images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_images import TINY_BUNDLE, measure, save_image

from afv_metric.images import read_image
from afv_metric.testing import assert_images_close


def test_the_message_says_what_is_wrong(tmp_path: Path) -> None:
    first, second = save_image(tmp_path / "a.png"), save_image(tmp_path / "b.png", noise=20)
    value = measure(first, second)
    assert_images_close(first, second, at_most=1.001 * value, weights=TINY_BUNDLE)
    heat_map = tmp_path / "new" / "map.png"
    with pytest.raises(AssertionError, match=rf"^the distance is {value:.4g}\d*, at most 1e-05 .*map.png shows where"):
        assert_images_close(first, second, at_most=1e-5, heat_map=heat_map, weights=TINY_BUNDLE)
    assert read_image(heat_map).shape == (1, 3, 40, 48)


def test_every_pair_of_a_batch_counts(tmp_path: Path) -> None:
    image = read_image(save_image(tmp_path / "a.png")) / 127.5 - 1
    batch = torch.cat([image, -image])
    with pytest.raises(AssertionError, match=r"\(pair 1 of 2\)"):
        assert_images_close(batch, image, at_most=0.01, heat_map=tmp_path / "map.png", weights=TINY_BUNDLE)
    # Under the map lies the image that is wrong.
    grey = read_image(tmp_path / "map.png")[0].float().mean(0).numpy()
    assert np.corrcoef(grey.ravel(), batch[1].mean(0).numpy().ravel())[0, 1] > 0


def test_not_a_number_does_not_pass(tmp_path: Path) -> None:
    image = torch.full((3, 32, 32), torch.nan)
    with pytest.raises((AssertionError, ValueError)):
        assert_images_close(image, image, at_most=1, weights=TINY_BUNDLE)
