"""Networks of other than three channels, from the files to the loss."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.bundles.bundle import load_bundle, save_bundle
from afv_metric.bundles.golden import golden_pairs
from afv_metric.bundles.twin import random_twin
from afv_metric.bundles.validate import validate_bundle
from afv_metric.cli import main
from afv_metric.images import Reader
from afv_metric.notebook import show
from afv_metric.testing import assert_images_close
from afv_metric.train.adapt import adapt_bundle
from afv_metric.train.card import decorate_bundle
from afv_metric.train.export import export_run
from afv_metric.train.loop import train
from afv_metric.train.state import State


def save_files(folder, channels):
    """Grey pictures, or arrays of more channels."""
    folder.mkdir()
    for index in range(64):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, channels), np.uint8)
        if channels == 1:
            Image.fromarray(pixels[..., 0]).save(folder / f"{index}.png")
        else:
            np.save(folder / f"{index}.npy", pixels)
    return folder


@pytest.mark.parametrize("channels", [1, 5])
def test_from_training_to_the_loss(channels, recipe, tmp_path, capsys):
    recipe = dataclasses.replace(recipe, channels=channels, iterations=2)
    run = train(recipe, save_files(tmp_path / "data", channels), tmp_path / "run", quiet=True)
    exported = export_run(run, "mine", samples=400, quiet=True)
    folder = save_bundle(exported, tmp_path / "mine", partial(decorate_bundle, run=run))
    report = validate_bundle(folder, samples=400)
    assert {check.name for check in report.checks if check.passed is False} <= {"generator"}, report  # hardly trained
    bundle = load_bundle(folder, generator=True)
    assert bundle.discriminator.blocks[0].conv1.in_channels == bundle.generator.to_image.out_channels == channels

    suffix = "png" if channels == 1 else "npy"
    pair = [tmp_path / "data" / f"{index}.{suffix}" for index in (0, 1)]
    assert main(["compare", *map(str, pair), "--weights", str(folder), "--quiet"]) == 0
    printed = float(capsys.readouterr().out.split()[-2])
    metric = AFVDistance(folder)
    first, second = (Reader(channels=channels).read(path) for path in pair)
    assert metric(first, second).item() == pytest.approx(printed, rel=1e-5)

    image = (first / 127.5 - 1).requires_grad_()
    metric(image, second / 127.5 - 1).sum().backward()
    assert image.grad.shape == (1, channels, 64, 64)
    assert image.grad.abs().amax((0, 2, 3)).gt(0).all()
    assert random_twin(bundle).channels == channels
    assert_images_close(*pair, at_most=1.001 * printed, weights=folder)
    assert show(*pair, weights=folder).info["distance"] == pytest.approx(printed, rel=1e-3)
    with pytest.raises(AssertionError, match=f"is {printed:.6g}"):
        assert_images_close(*pair, at_most=printed / 2, weights=folder, heat_map=tmp_path / "map.png")

    judged = "".join(f"{index}.{suffix},{index + 1}.{suffix},{index}\n" for index in range(4))
    (tmp_path / "data" / "scores.csv").write_text("reference,distorted,distance\n" + judged)
    evaluated = ["eval", "--pairs", str(tmp_path / "data" / "scores.csv"), "--metric", "afv", "--weights", str(folder)]
    assert main([*evaluated, "--quiet", "--html", str(tmp_path / "eval.html")]) == 0
    assert main([*evaluated, "--metric", "afv", "l2", "--quiet"]) == 2
    assert "must be evaluated one by one" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"this bundle is of {channels} channels?, got 3"):
        metric(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


def test_files_of_other_channels_are_refused_by_name(tmp_path, capsys):
    paths = [tmp_path / f"{index}.npy" for index in range(2)]
    for path in paths:
        np.save(path, np.zeros((32, 32, 5), np.uint8))
    assert main(["compare", *map(str, paths)]) == 2
    assert "0.npy: cannot be read: it has 5 channels, expected 3" in capsys.readouterr().err


def test_grey_images_start_from_a_network_of_colours(bundle, recipe):
    recipe = dataclasses.replace(recipe, slope=bundle.discriminator.config.slope, spectral_norm=False, channels=1)
    shapes = {"width": bundle.discriminator.config.width, "generator_width": bundle.generator.config.width}
    recipe = dataclasses.replace(recipe, **shapes, latent_size=bundle.generator.config.latent_size)
    recipe = dataclasses.replace(recipe, strided_stem=bundle.discriminator.config.strided_stem)
    state = State(recipe, torch.device("cpu"))
    state.start_from(bundle)
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    expected = bundle.discriminator.logit(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(state.averaged_discriminator.logit(grey), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_bundle_is_adapted_to_other_channels(channels, bundle, tmp_path):
    data = save_files(tmp_path / "data", channels)
    adapted = adapt_bundle(bundle, data, "mine", samples=70, channels=channels, quiet=True)
    metric = AFVDistance(load_bundle(save_bundle(adapted, tmp_path / "mine")))
    assert (metric(*golden_pairs(channels)) > 0).all()


def test_bands_of_a_tiff_are_kept_as_they_are(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for bands in (4, 5):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 32, bands), np.uint8)
        tifffile.imwrite(tmp_path / f"{bands}.tif", pixels, photometric="rgb")
        read = Reader(channels=bands).read(tmp_path / f"{bands}.tif")
        assert np.array_equal(read[0].permute(1, 2, 0), pixels)
