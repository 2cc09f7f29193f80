"""Distortion ladders: steps differ in strength only, are counted rightly, and come out the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric.images.distort import compress
from bapps_eval.metrics import Choice, make_metrics
from experiments import ladders

ROOT = Path(__file__).parents[2]
TINY_BUNDLE = ROOT / "tests" / "data" / "tiny-bundle"
KINDS = ["blur", "noise", "jpeg", "jpeg-off-grid", "resampling", "contrast", "shift"]


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


@pytest.fixture(scope="module")
def pixels() -> Any:
    with Image.open(ROOT / "examples" / "images" / "reference.png") as image:
        return np.asarray(image.convert("RGB").resize((48, 40)))


@pytest.fixture
def folder(tmp_path: Path, pixels: Any) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        # Of two sizes, as photographs are.
        image = np.roll(pixels, 7 * number, 1)[: 40 - 4 * (number % 2)]
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def steps_of(pixels: Any, kind: str, seed: tuple[int, int] = (0, 0)) -> Any:
    return np.stack(ladders.make_steps(pixels, ladders.LADDERS[kind], seed)).astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_moves_farther_from_the_original(pixels: Any, kind: str) -> None:
    steps = ladders.make_steps(pixels, ladders.LADDERS[kind], (0, 0))
    assert len(steps) == (4 if kind == "shift" else 6)
    assert {(step.shape, step.dtype) for step in steps} == {(pixels.shape, np.dtype(np.uint8))}
    errors = [np.square(step - pixels.astype(float)).mean() for step in steps]
    assert errors[0] > 0
    assert errors == sorted(set(errors))


def test_noise_is_the_same_in_all_steps_of_an_image() -> None:
    grey = np.full((40, 48, 3), 128, np.uint8)
    noise = steps_of(grey, "noise") - 128
    strengths = ladders.LADDERS["noise"].strengths
    for step, sigma in zip(noise[:3], strengths, strict=False):
        assert step.std() == pytest.approx(sigma, rel=0.05)
        # Rounding to 8 bits is all that differs.
        assert np.abs(step - noise[3] * sigma / strengths[3]).max() < 1
    for other in ((0, 1), (1, 0)):
        assert abs(np.corrcoef(noise[3].ravel(), steps_of(grey, "noise", other)[3].ravel() - 128)[0, 1]) < 0.1


def test_jpeg_off_grid_compresses_a_jpeg_file_anew(pixels: Any) -> None:
    original = compress(pixels, 70, None)
    on_grid, off_grid = (steps_of(original, kind)[1] for kind in ("jpeg", "jpeg-off-grid"))
    # What was compressed like this before hardly changes, unless the blocks are others.
    errors = [np.square(step - original).mean() for step in (on_grid, off_grid)]
    assert 0 < 5 * errors[0] < errors[1]
    rising = np.square(steps_of(original, "jpeg-off-grid") - original).mean((1, 2, 3))
    assert (np.diff(rising) > 0).all()


def test_shift_goes_one_way_and_mirrors_the_border(pixels: Any) -> None:
    directions = set()
    for seed in range(20):
        steps = steps_of(pixels, "shift", (seed, 0))
        found = [
            turns
            for turns in range(4)
            if all(
                (np.rot90(step, turns)[:, distance:] == np.rot90(pixels, turns)[:, :-distance]).all()
                and (np.rot90(step, turns)[:, 0] == np.rot90(pixels, turns)[:, distance]).all()
                for distance, step in enumerate(steps, 1)
            )
        ]
        assert len(found) == 1
        directions.add(found[0])
    assert directions == {0, 1, 2, 3}


def test_contrast_ends_near_the_mean_grey_and_blur_keeps_the_mean(pixels: Any) -> None:
    contrast = steps_of(pixels, "contrast")
    losses = ladders.LADDERS["contrast"].strengths
    for step, loss in zip(contrast, losses, strict=True):
        assert step.std() == pytest.approx((1 - loss) * pixels.std(), abs=1)
    assert steps_of(pixels, "blur").mean((1, 2, 3)) == pytest.approx([pixels.mean()] * 6, abs=2)


def test_images_are_evenly_spread(folder: Path) -> None:
    def names(count: int) -> list[str]:
        return [path.name for path in ladders.choose_images(folder, count)]

    assert names(1) == ["0.png"]
    assert names(3) == ["0.png", "1.png", "3.png"]
    assert names(5) == [f"{number}.png" for number in range(5)]
    for count in (0, 6):
        with pytest.raises(ValueError, match=rf"from 1 to .*, 5; got {count}"):
            names(count)


def test_ties_and_nan_are_not_ordered_rightly() -> None:
    distances = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [2.0, 1.0, np.nan]])
    assert ladders.count_ordered(distances) == [1, 2]


def rising(first: float = 1.0) -> dict[str, np.ndarray]:
    """Distances of two images that rise by 1 in every kind, over a yardstick of 2 and 4."""
    kinds = {kind: np.array([first + np.arange(len(ladder.strengths))] * 2) for kind, ladder in ladders.LADDERS.items()}
    return {**kinds, "yardstick": np.array([[2.0], [4.0]])}


def test_order_gives_shares_and_counts() -> None:
    measured = {"one": rising() | {"jpeg": np.array([[1.0, 2.0, 1.5], [1.0, 2.0, 3.0]])}, "another": rising()}
    header, one, another = (line.split() for line in ladders.format_order(measured).splitlines())
    assert header == KINDS
    full = ["1.000", "10/10"]
    assert one == ["one", *full * 2, "0.750", "3/4", *full * 3, "1.000", "6/6"]
    assert another == ["another", *full * 6, "1.000", "6/6"]


def test_sizes_are_relative_to_a_blur_of_sigma_1() -> None:
    measured = {"one": rising() | {"shift": np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])}}
    assert ladders.relative_sizes(measured["one"])["blur"] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    lines = [line.split() for line in ladders.format_sizes(measured).splitlines()]
    assert lines[1][1:7] == [".33", ".67", "1.00", "1.33", "1.67", "2.00"]
    assert " ".join(lines[2]) == "shift relative to blur of sigma 1 1 pixel 2 pixels 1 pixel is more in"
    assert lines[3] == ["one", "1.000", "1.333", "50%"]


def test_sizes_of_plain_images_are_undefined() -> None:
    kinds = rising() | {"yardstick": np.zeros((2, 1))}
    assert np.isnan(ladders.relative_sizes(kinds)["shift"]).all()


def test_measured_distances_are_those_of_the_metric(folder: Path, pixels: Any) -> None:
    metrics = make_metrics(["l2"], Choice())
    paths = ladders.choose_images(folder, 2)
    measured = ladders.measure(metrics, paths, seed=3, quiet=True)["l2"]
    expected = {kind: (2, 4 if kind == "shift" else 6) for kind in KINDS} | {"yardstick": (2, 1)}
    assert {kind: values.shape for kind, values in measured.items()} == expected
    for kind in KINDS:
        errors = np.square(steps_of(pixels, kind, (3, 0)) - pixels).mean((1, 2, 3)) / 127.5**2
        np.testing.assert_allclose(measured[kind][0], errors, rtol=1e-5)


def test_command_prints_the_table_and_writes_its_results(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--images", str(folder), "--count", "2", "--weights", str(TINY_BUNDLE), "--quiet", "--peers", "l2"]
    printed, written = [], []
    for more in (["--picture", str(tmp_path / "curves.png")], []):
        results = tmp_path / f"{len(written)}.json"
        ladders.main([*arguments, "--forms", "local", "activation", "--json", str(results), *more])
        printed.append(capsys.readouterr())
        written.append(json.loads(results.read_text()))
    assert printed[0] == printed[1]
    assert written[0] == written[1]
    (bundle,) = make_metrics(["afv:activation"], Choice([str(TINY_BUNDLE)]))
    lines = printed[0].out.splitlines()
    assert any(f"sha256 {bundle.bundle_hash}" in line for line in lines)
    assert [line.split()[0] for line in lines[-3:]] == [bundle.name.replace("activation", "local"), bundle.name, "l2"]
    assert written[0]["images"] == ["0.png", "2.png"]
    assert written[0]["bundle"]["hash"] == bundle.bundle_hash
    blur = written[0]["metrics"]["l2"]["blur"]
    assert (blur["ordered"], blur["pairs"], blur["ordered_to_next_step"]) == (10, 10, [2] * 5)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 900


def test_picture_shows_each_metric_relative_to_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    original = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *rest, **more: (drawn.append(self), original(self, *rest, **more))
    )
    lengths = {kind: len(ladder.strengths) for kind, ladder in ladders.LADDERS.items()}
    rising = {kind: np.arange(1.0, length + 1) * np.array([[1], [3]]) for kind, length in lengths.items()}
    flat = {kind: np.zeros((2, length)) for kind, length in lengths.items()}
    ladders.draw({"afv/x/local": rising, "l2": flat}, tmp_path / "curves.png")
    *panels, last = drawn[0].axes
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["afv/x/local", "l2"]
    assert [axes.get_title() for axes in panels] == KINDS
    for axes, length in zip(panels, lengths.values(), strict=True):
        lines = [np.asarray(line.get_ydata()) for line in axes.lines]
        np.testing.assert_allclose(lines[0], np.arange(1, length + 1) / length)
        np.testing.assert_array_equal(lines[1], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--count", "9"], "--count must be from 1"), (["--images", "nowhere"], "nowhere")],
)
def test_wrong_arguments_are_named(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ladders.main(["--images", str(folder), *arguments])
    assert message in capsys.readouterr().err


def test_picture_without_matplotlib_says_what_to_install(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        ladders.main(["--images", str(folder), "--picture", str(tmp_path / "curves.png")])
    assert "afv-metric[plots]" in capsys.readouterr().err
