"""Maps in colours."""

from __future__ import annotations

import numpy as np
import torch

from afv_metric.heat_map import RAMP, colour_map


def test_colours_grow_lighter() -> None:
    luminance = np.array(RAMP) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 20).all()


def test_one_scale_for_several_maps() -> None:
    grey = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    values = torch.tensor([[0.0, 2.0]])
    assert (colour_map(values, grey, 4)[0, 1] < colour_map(values, grey)[0, 1]).all()
    np.testing.assert_array_equal(colour_map(values, grey, 4)[0, 1], colour_map(values / 2, grey, 2)[0, 1])
