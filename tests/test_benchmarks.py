"""The benchmark of speed compares like with like: our Fisher distance and its rivals give the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

_FILE = Path(__file__).parents[1] / "benchmarks" / "speed.py"


@pytest.mark.parametrize("which", ["ours_in_eights", "vmap", "vmap_in_eights", "loop"])
def test_all_ways_to_the_fisher_distance_agree(which: str) -> None:
    specification = importlib.util.spec_from_file_location("speed", _FILE)
    assert specification is not None
    assert specification.loader is not None
    speed = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(speed)
    rivals = speed.Rivals(4)
    first, second = torch.rand(2, 9, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(
        getattr(rivals, which)(first, second), rivals.ours(first, second), rtol=1e-4, atol=1e-6, check_dtype=False
    )
