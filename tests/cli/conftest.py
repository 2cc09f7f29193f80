"""Images and folders of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_images import save_image


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with three pairs, one of them in a folder of its own."""
    for index, name in enumerate(["a.png", "b.png", "deep/c.png"]):
        save_image(tmp_path / "0" / name)
        save_image(tmp_path / "1" / name, seed=index, noise=5 + 10 * index)
    return tmp_path / "0", tmp_path / "1"


@pytest.fixture
def gallery(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A reference and five images, none of them in order of its distance."""
    images = [save_image(tmp_path / f"{noise}.png", noise, noise) for noise in (20, 5, 60, 0, 40)]
    return save_image(tmp_path / "reference.png"), images
