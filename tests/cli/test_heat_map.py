"""Maps in colours."""

from __future__ import annotations

import numpy as np
import pytest

from afv_metric.cli import heat_map as cli

Capture = pytest.CaptureFixture[str]


def test_colours_grow_lighter() -> None:
    luminance = np.array(cli._RAMP) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 20).all()
