"""That a texture of the native resolution is seen with tiles, and is not with thumbnails."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.bundles.golden import golden_pairs
from afv_metric.images.tiles import Tiling
from afv_metric.train.export import export_run
from afv_metric.train.loop import train

SIDE, GRAIN = 640, 5  # thumbnails of 64 pixels are means of 10 x 10, in which a chequered grain of 5 vanishes


def save_images(folder, grain):
    """Smooth images, with a chequered grain if asked, whose mean over 10 x 10 pixels is 0."""
    folder.mkdir()
    dark = (np.indices((SIDE, SIDE)) // GRAIN).sum(0) % 2
    for index in range(64):
        small = Image.fromarray(np.random.default_rng(index).integers(80, 176, (6, 6), np.uint8))
        pixels = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
        pixels = pixels // 10 * 10 + grain * (40 * dark - 20)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png", compress_level=1)
    return folder


@pytest.mark.slow
def test_native_texture_changes_the_metric_with_tiles_and_not_with_thumbnails(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, iterations=12, monitor_interval=12, negatives=0.0)
    folders = [save_images(tmp_path / str(grain), grain) for grain in (0, 1)]
    change = {}
    for name, tiling in (("thumbnails", None), ("tiles", Tiling(most=40))):
        distances = []
        for grain, folder in enumerate(folders):
            run = train(recipe, folder, tmp_path / f"{name}-{grain}", tiling=tiling, quiet=True)
            metric = AFVDistance(export_run(run, "mine", samples=8, quiet=True))
            distances.append(metric(*golden_pairs()).mean().item())
        change[name] = abs(distances[1] / distances[0] - 1)
    assert change["thumbnails"] == 0 < 1e-3 < change["tiles"], change
