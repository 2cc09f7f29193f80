"""The examples: the distance serves as a loss, and the pictures are those that their script draws."""

from __future__ import annotations

import csv
import importlib
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.images import read_image

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "examples" / "images"
TINY_BUNDLE = ROOT / "tests" / "data" / "tiny-bundle"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "reconstruct.py"))


@pytest.fixture
def target() -> torch.Tensor:
    pixels = read_image(PICTURES / "reference.png") / 127.5 - 1
    return torch.nn.functional.interpolate(pixels, size=(32, 40), mode="area")


# The gradient of the other two forms misses the jumps of the scores where a unit switches: their descent is rough.
@pytest.mark.parametrize(("form", "factor"), [("activation", 10), ("local", 2), ("fisher", 2)])
def test_reconstruction_lowers_the_distance(
    example: dict[str, Any], target: torch.Tensor, form: Any, factor: float
) -> None:
    metric = AFVDistance(TINY_BUNDLE, form=form, pooling=2)
    start = example["make_start"](target, "blur")
    image, distances = example["reconstruct"](metric, target, start, steps=60)
    assert len(distances) == 61
    assert distances[0] == pytest.approx(float(metric(start, target)), rel=1e-5)
    assert distances[-1] == pytest.approx(float(metric(image, target)), rel=1e-5)
    assert distances[0] > factor * distances[-1]
    assert image.shape == target.shape
    assert image.abs().max() <= 1
    assert not image.requires_grad


def test_starts_differ(example: dict[str, Any], target: torch.Tensor) -> None:
    blur, noise = (example["make_start"](target, kind) for kind in ("blur", "noise"))
    error = [float((start - target).square().mean()) for start in (blur, noise)]
    assert 0.001 < error[0] < 0.25 * error[1]
    assert abs(np.corrcoef(noise.flatten(), target.flatten())[0, 1]) < 0.1


def test_command_writes_its_results(
    example: dict[str, Any], target: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = (target[0].permute(1, 2, 0) * 127.5 + 127.5).round().byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "target.png")
    arguments = [str(tmp_path / "target.png"), "--start", "noise", "--steps", "5", "--weights", str(TINY_BUNDLE)]
    example["main"]([*arguments, "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "curve.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "activation"]
    assert [int(step) for step, _ in rows] == list(range(6))
    first, last = float(rows[0][1]), float(rows[-1][1])
    assert last < first
    strip = np.asarray(Image.open(tmp_path / "out" / "strip.png"))
    error = np.sqrt(np.square(strip[:, 40:80].astype(float) - pixels).mean())
    line = re.fullmatch(
        r"activation: distance (\S+) to (\S+), (\S+) times lower; (\S+) of 255 off\n", capsys.readouterr().out
    )
    assert line is not None
    assert [float(number) for number in line.groups()] == pytest.approx([first, last, first / last, error], rel=0.01)
    assert strip.shape == (32, 3 * 40, 3)
    np.testing.assert_array_equal(strip[:, 80:], pixels)
    assert (strip[:, :40] != strip[:, 40:80]).any()


def test_command_puts_forms_side_by_side(example: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    pixels = np.asarray(Image.open(PICTURES / "reference.png"))[:32, :32]
    Image.fromarray(pixels).save(tmp_path / "target.png")
    arguments = ["--steps", "3", "--weights", str(TINY_BUNDLE), "--forms", "fisher", "l2", "--out", str(tmp_path)]
    example["main"]([str(tmp_path / "target.png"), *arguments])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["fisher", "l2"]
    with (tmp_path / "curve.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "fisher", "l2"]
    assert float(rows[-1][2]) < float(rows[0][2])
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (32, 4 * 32, 3)
    np.testing.assert_array_equal(strip[:, 96:], pixels)
    assert (strip[:, 32:64] != strip[:, 64:96]).any()


def test_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "examples" / "make_images.py"))["main"](tmp_path)
    names = sorted(path.name for path in PICTURES.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 5
    assert sum((PICTURES / name).stat().st_size for name in names) < 300_000
    for name in names:
        drawn, kept = (np.asarray(Image.open(folder / name)).astype(float) for folder in (tmp_path, PICTURES))
        assert kept.shape == (128, 128, 3)
        # Other versions of NumPy and Pillow may round otherwise.
        assert np.abs(drawn - kept).mean() < 1


def test_metrics_of_piq_stand_beside_the_distance(capsys: Any) -> None:
    pytest.importorskip("piq")
    main = runpy.run_path(str(ROOT / "examples" / "with_piq.py"))["main"]
    main([str(PICTURES / f"{name}.png") for name in ("reference", "reference", "blurred", "strongly-blurred")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["AFV", "1", "-", "SSIM", "GMSD", "1", "-", "VIF"]
    values = np.array([[float(value) for value in row.split()[1:]] for row in rows])
    np.testing.assert_allclose(values[0], 0, atol=1e-6)
    assert (np.diff(values, axis=0) > 0).all()


@pytest.mark.parametrize(("name", "rows"), [("vae", 3), ("super_resolution", 4), ("inversion", 4)])
def test_training_with_the_loss(
    name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A few steps: one row of the table and the figure per loss, and of what there was before."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setitem(sys.modules, "lpips", None)  # would fetch weights
    code = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    monkeypatch.setitem(code["main"].__globals__, "read_patches", few_patches)
    arguments = ["--steps", "6", "--bundle", str(TINY_BUNDLE), "--out", str(tmp_path / "out" / "figure.png")]
    code["main"](arguments)
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert read_image(tmp_path / "out" / "figure.png").shape == (1, 3, rows * 64, 4 * 64)
    assert names[-2:] == ["L1", f"L1 + {code['PRESET']:g} distance"]
    assert len(names) == rows - 1  # the last row of the figure is the target


def few_patches(folder: Path, count: int, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches from the module that the examples share."""
    patches, tests = importlib.import_module("common").read_patches(folder, 8, side, seed)
    return patches, tests[:4]


def test_patches_for_tests_are_no_patches_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one picture, the left half is for tests; of ten, two of the pictures."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    read_patches = importlib.import_module("common").read_patches
    halves = np.zeros((80, 80, 3), np.uint8)
    halves[:, 40:] = 255
    Image.fromarray(halves).save(tmp_path / "0.png")
    patches, tests = read_patches(tmp_path, 6, 32, 0)
    assert patches.shape == (6, 3, 32, 32)
    assert tests.shape == (32, 3, 32, 32)
    assert patches.min() > 0.99  # bicubic weights sum to 1 but for rounding
    assert tests.max() < -0.99
    for level in range(10):
        Image.fromarray(np.full((48, 48, 3), 20 * level, np.uint8)).save(tmp_path / f"{level}.png")
    patches, tests = read_patches(tmp_path, 16, 32, 0)
    levels = [{round(float(value), 3) for value in found[:, 0, 0, 0]} for found in (patches, tests)]
    assert [len(found) for found in levels] == [8, 2]
    assert not levels[0] & levels[1]
