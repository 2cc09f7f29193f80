"""The experiment on digits, with a few small ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import mnist as bigan
from experiments.bigan.mnist import METHODS, Settings, load_digits, make_networks


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten kinds of 6x6 images: a bright line in a row or a column, and noise."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 300), ("test", 60)):
        labels = np.arange(count) % 10
        images = random.integers(0, 40, (count, 6, 6), np.uint8)
        for image, label in zip(images, labels, strict=True):
            line = image[label % 5] if label < 5 else image[:, label % 5]
            line += 200
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)
    return path


def run(data: Path, *arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    bigan.add_arguments(parser)
    options = parser.parse_args([str(data), "--width", "16", "--epochs", "1", *arguments])
    return bigan.run(argparse.Namespace(**vars(options), out=data.parent / "out", device="cpu", quiet=True, seed=0))


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_all_methods(data: Path) -> None:
    record = run(data)
    out = data.parent / "out"
    json.dumps(record, allow_nan=False)
    header, *rows = record["table"]
    assert header[:4] == ["method", "accuracy", "95 % interval", "published"]
    *rows, untrained, pixels = rows
    assert [row[0] for row in rows] == list(METHODS)
    assert [row[3] for row in rows] == ["97.39", "97.30", "97.44", "97.13", "97.58", "97.63"]
    assert (untrained[0], pixels[0]) == ("untrained encoder", "pixels")
    assert untrained[1] == f"{100 * record['yardsticks']['untrained encoder']:.2f}"
    assert record["yardsticks"]["pixels"] > 0.9
    assert all(isinstance(cell, str) and len(row) == len(header) for row in record["table"] for cell in row)
    assert {path.stem for path in (out / "networks").glob("*.pt")} == {"gan", *METHODS} - {"discriminator"}
    for method, row in zip(METHODS, rows, strict=True):
        written = json.loads((out / "methods" / f"{method}.json").read_text())
        assert written == record["methods"][method]
        assert row[1] == f"{100 * written['accuracy']:.2f}"
        assert written["accuracy"] > 0.5  # lines are told apart by random features already
        assert ("accuracy_code" in written) == (method != "discriminator")
        assert written["seconds"] > 0
        assert written["settings"]["epochs"] == 1
        assert "torch" in written["versions"]
    with Image.open(out / "reconstructions.png") as picture:
        assert picture.size == (20 * 6, 5 * 3 * 6 + 4 * 4)
    assert len(record["picture_rows"]) == 15


def test_finished_methods_are_skipped_and_the_gan_is_shared(data: Path) -> None:
    out = data.parent / "out"
    first = run(data, "--methods", "discriminator")
    trained = times(out, "networks/*.pt")
    assert list(trained) == ["gan.pt"]
    second = run(data, "--methods", "latent-regressor", "discriminator")
    assert times(out, "networks/gan.pt") == trained
    assert second["methods"]["discriminator"] == first["methods"]["discriminator"]
    assert second["methods"]["latent-regressor"]["seconds"] > first["methods"]["discriminator"]["seconds"]
    finished = times(out, "methods/*") | times(out, "networks/*.pt")
    assert run(data, "--methods", "latent-regressor") != second
    assert times(out, "methods/*") | times(out, "networks/*.pt") == finished
    with pytest.raises(ValueError, match="epochs is 1, asked for 2"):
        run(data, "--methods", "discriminator", "--epochs", "2")
    assert times(out, "methods/*") | times(out, "networks/*.pt") == finished


def test_measure_and_draw(data: Path) -> None:
    digits = load_digits(data)
    networks = make_networks("bigan", 36, Settings(width=16)).eval()
    numbers = bigan.measure(networks, digits)
    assert set(numbers) == {"accuracy", "accuracy_code", "reconstruction"}
    with torch.no_grad():
        again = networks.generator(networks.encoder(digits.test_images / 255))
    expected = (digits.test_images / 255 - again).norm(dim=1).mean().item()
    assert numbers["reconstruction"] == pytest.approx(expected, rel=1e-5)
    picture = np.asarray(bigan.draw(networks, digits))
    assert picture.shape == (18, 120)
    order = np.argsort(digits.test_labels.numpy(), kind="stable")
    first, last = (digits.test_images[int(index)].view(6, 6).numpy() for index in (order[0], order[-1]))
    np.testing.assert_array_equal(picture[:6, :6], first)
    np.testing.assert_array_equal(picture[:6, -6:], last)


@pytest.mark.parametrize("arguments", [("--epochs", "0"), ("--methods", "gan"), ("--precision", "float16")])
def test_refused_arguments(data: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(data, *arguments)
    assert arguments[0] in capsys.readouterr().err
