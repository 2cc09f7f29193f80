import numpy as np
import pytest
from PIL import Image

from afv_metric.train.recipes import Recipe


@pytest.fixture(scope="session")
def recipe():
    """The smallest run that does everything once."""
    return Recipe(
        negatives=0.5,
        width=4,
        generator_width=4,
        latent_size=8,
        batch_size=8,
        iterations=6,
        precision="float32",
        held_out=0.25,
        monitor_samples=8,
        log_interval=2,
        monitor_interval=6,
        checkpoint_interval=3,
        sample_interval=4,
        milestone_interval=5,
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A flat folder of 64 images of noise."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
