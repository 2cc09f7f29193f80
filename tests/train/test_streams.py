"""Training and whitening on streams."""

import dataclasses
import shutil

import pytest
import torch
from cli_images import TINY_BUNDLE
from shards import save_shards, serve

from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli import main
from afv_metric.images.reading import Reader
from afv_metric.images.tiles import Tiling
from afv_metric.train.checkpoint import load_checkpoint
from afv_metric.train.loop import train


@pytest.fixture
def settings(tmp_path, recipe):
    """An iteration draws 8 of the 64 images of a round, so that the fourth round begins at iteration 24."""
    paths = [path.as_uri() for path in save_shards(tmp_path, 60, 50)]
    recipe = dataclasses.replace(recipe, channels=1, iterations=26, checkpoint_interval=5)
    tiling = Tiling(most=1, cache_gb=64 * 64 * 64 / 1e9)
    return {"recipe": recipe, "data": paths, "reader": Reader(), "tiling": tiling, "quiet": True}


def test_a_run_that_goes_on_has_the_weights_of_one_that_was_never_stopped(settings, tmp_path, monkeypatch):
    whole = train(out=tmp_path / "whole", cache=tmp_path / "cache", **settings)
    shorter = {**settings, "recipe": dataclasses.replace(settings["recipe"], iterations=17)}
    for name, lost in (("kept", ()), ("lost", ("cache", "lost/stream.json"))):
        run = train(out=tmp_path / name, cache=tmp_path / "cache", **shorter)
        if lost:
            shutil.rmtree(tmp_path / lost[0])
            (tmp_path / lost[1]).unlink()
        train(out=run, cache=tmp_path / "cache", **settings)
        expected, found = (load_checkpoint(path / "checkpoint-0000026.pt") for path in (whole, run))
        for network in ("discriminator", "generator"):
            assert found[network].keys() == expected[network].keys()
            assert all(torch.equal(found[network][key], expected[network][key]) for key in expected[network])
    with pytest.raises(ValueError, match="begun with other images"):
        train(
            out=whole,
            **{
                **settings,
                "data": settings["data"][::-1],
                "recipe": dataclasses.replace(settings["recipe"], iterations=30),
            },
        )


def test_a_number_of_images_is_for_what_is_read_whole(settings, tmp_path):
    recipe = dataclasses.replace(settings["recipe"], images=50)
    with pytest.raises(ValueError, match="images=50 is for data that are read whole"):
        train(out=tmp_path / "run", cache=tmp_path / "cache", **{**settings, "recipe": recipe})


def test_from_a_server_to_a_bundle(tmp_path):
    pytest.importorskip("aiohttp")
    save_shards(tmp_path, 40, 40)
    with serve(tmp_path) as host:
        common = ["--data", f"{host}/train-0000.tar", f"{host}/train-0001.tar", "--init", TINY_BUNDLE, "--quiet"]
        small = ["iterations=1", "batch_size=4", "monitor_samples=4", "precision=float32"]
        assert main(["adapt", *common, "--out", str(tmp_path / "adapted"), "--samples", "70"]) == 0
        assert main(["train", "folder", *common, "--out", str(tmp_path / "run"), "--set", *small]) == 0
    assert load_bundle(tmp_path / "adapted").statistics.count == 70
