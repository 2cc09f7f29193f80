"""Fixtures: the smallest run of a convolutional BiGAN, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.bigan.training import BiGANRecipe


@pytest.fixture(scope="session")
def recipe() -> BiGANRecipe:
    """The smallest run that does everything once."""
    return BiGANRecipe(
        width=4,
        generator_width=4,
        latent_size=8,
        hidden=16,
        batch_size=8,
        iterations=6,
        precision="float32",
        held_out=0.25,
        log_interval=2,
        checkpoint_interval=3,
        sample_interval=4,
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 64 images of one colour each and a little noise."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(64):
        pixels = generator.integers(0, 240, 3) + generator.integers(0, 16, (32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
