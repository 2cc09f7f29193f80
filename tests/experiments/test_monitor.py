"""Figures of training runs: what is trained, that it is gone on with, and what is drawn."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afv_metric.train import loop
from afv_metric.train.divergence import DivergenceError
from experiments import monitor
from experiments.monitor import draw, read_curves

pytest.importorskip("matplotlib")

TINY = [
    "width=4", "generator_width=4", "latent_size=8", "batch_size=8", "iterations=4", "precision=float32",
    "held_out=0.25", "monitor_samples=8", "log_interval=1", "monitor_interval=4", "checkpoint_interval=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def _options(data, out, *arguments, settings=TINY):
    parser = argparse.ArgumentParser()
    monitor.add_arguments(parser)
    options = parser.parse_args([str(data), *arguments, "--set", *settings])
    return argparse.Namespace(**vars(options), out=out, seed=3, device="cpu", quiet=True)


@pytest.fixture
def trained(monkeypatch):
    """Iterations that were trained, by the number of images."""
    iterate, counts = loop.iterate, {}

    def counting(state, recipe, images, device):
        counts[recipe.images] = counts.get(recipe.images, 0) + 1
        return iterate(state, recipe, images, device)

    monkeypatch.setattr(loop, "iterate", counting)
    return counts


@pytest.fixture
def _without_report(monkeypatch):
    """The report takes longer than these runs."""
    monkeypatch.setattr(monitor, "write_report", lambda runs, out: out)


def test_sizes_of_training_sets(data, tmp_path, monkeypatch, trained):
    options = _options(data, tmp_path, "--figure", "training-set-size", "--sizes", "16", "0")
    record = monitor.run(options)
    json.dumps(record, allow_nan=False)
    assert trained == {16: 4, 0: 4}
    recipes = {name: json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("images-16", "images-all")}
    assert [recipe["images"] for recipe in recipes.values()] == [16, 0]
    assert all(recipe["seed"] == 3 and recipe["name"] == "cifar10" for recipe in recipes.values())

    head, *rows = record["table"]
    assert [row[:2] for row in rows] == [["images-16", "4"], ["images-all", "4"]]
    last = json.loads((tmp_path / "images-16" / "monitors.jsonl").read_text().splitlines()[-1])
    assert rows[0][head.index("fisher_similarity/train")] == f"{last['fisher_similarity/train']:.4g}"

    assert record["runs"][0]["end"]["logit/held_out"] == last["logit/held_out"]
    lines = (tmp_path / "images-16" / "stats.jsonl").read_text().splitlines()
    variances = [json.loads(line)["sample_variance"] for line in lines]
    assert record["runs"][0]["end"]["sample_variance"] == pytest.approx(sum(variances) / 4)

    with Image.open(tmp_path / "training-set-size.png") as picture:
        assert picture.size == (4 * 4 * 120, 432)  # no panel for the Inception Score, which was not measured
    page = (tmp_path / "training-set-size.html").read_text()
    assert "images-16" in page
    assert "images-all" in page

    monkeypatch.setattr(monitor, "write_report", lambda runs, out: out)
    again = monitor.run(options)
    assert trained == {16: 4, 0: 4}, "finished runs were trained again"
    assert again == record


@pytest.mark.usefixtures("_without_report")
def test_an_interrupted_figure_goes_on(data, tmp_path, monkeypatch, trained):
    arguments = ("--figure", "training-set-size", "--sizes", "16", "24")
    whole = monitor.run(_options(data, tmp_path / "whole", *arguments))
    trained.clear()
    counting = loop.iterate

    def interrupted(state, recipe, images, device):
        if recipe.images == 24 and state.iteration == 3:
            raise KeyboardInterrupt
        return counting(state, recipe, images, device)

    monkeypatch.setattr(loop, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.run(_options(data, tmp_path / "parts", *arguments))
    monkeypatch.setattr(loop, "iterate", counting)
    assert not (tmp_path / "parts" / "training-set-size.png").exists()
    assert trained == {16: 4, 24: 3}
    resumed = monitor.run(_options(data, tmp_path / "parts", *arguments))
    assert trained == {16: 4, 24: 5}  # from the checkpoint at 2
    for one, other in zip(resumed["runs"], whole["runs"], strict=True):
        assert one["end"] == pytest.approx(other["end"], rel=1e-4)


@pytest.mark.usefixtures("_without_report")
def test_runs_whose_monitors_look_at_other_numbers_are_not_compared(data, tmp_path, trained):
    arguments = ("--figure", "training-set-size", "--sizes", "16", "0")
    monitor.run(_options(data, tmp_path, *arguments, settings=TINY))
    trained.clear()
    with pytest.raises(ValueError, match="would now on 4. Give --set monitor_samples=8"):
        monitor.run(_options(data, tmp_path, *arguments, settings=[*TINY, "monitor_samples=4"]))
    assert not trained


def test_a_run_that_diverges_is_part_of_the_figure(data, tmp_path, monkeypatch):
    iterate = loop.iterate

    def failing(state, recipe, images, device):
        if recipe.gamma and state.iteration == 3:
            raise DivergenceError("numbers are not finite")
        return iterate(state, recipe, images, device)

    monkeypatch.setattr(loop, "iterate", failing)
    record = monitor.run(_options(data, tmp_path, "--figure", "generator-pull", "--gammas", "0.5", "0"))
    assert [run["gamma"] for run in record["runs"]] == [0.5, 0.0]
    assert "numbers are not finite" in record["runs"][0]["failure"]
    assert record["runs"][1]["failure"] == ""
    assert [row[:2] for row in record["table"][1:]] == [["gamma-0.5, diverged", "3"], ["gamma-0", "4"]]
    assert json.loads((tmp_path / "gamma-0.5" / "recipe.json").read_text())["gamma"] == 0.5
    assert (tmp_path / "generator-pull.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["--sizes", "16", "0"], ["images=3"], r"give its values by --sizes, not by --set"),
        (["--sizes", "4", "0"], [], r"4 images, fewer than the 8 .* --set monitor_samples=4"),
        (["--sizes", "16", "-1"], [], r"images must not be negative"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(data, tmp_path, trained, arguments, settings, message):
    options = _options(data, tmp_path, "--figure", "training-set-size", *arguments, settings=TINY + settings)
    with pytest.raises(ValueError, match=message):
        monitor.run(options)
    assert not trained
    assert not list(tmp_path.iterdir())


def _write(folder: Path, name: str, *records: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_curves_are_finite_numbers_and_monitors_come_first(tmp_path):
    key, other = "fisher_similarity/train", "sample_variance"
    monitors = {"iteration": 0, "seconds": 0, key: 1.0, other: "x"}, {"iteration": 9, key: float("nan")}
    _write(tmp_path, "monitors", *monitors)
    _write(tmp_path, "stats", {"iteration": 5, "seconds": 1, key: 7.0, other: 2, "loss": 3.0})
    assert read_curves(tmp_path) == {key: [(0, 1.0)], other: [(5, 2)]}
    assert read_curves(tmp_path / "none") == {}


def test_the_picture_has_a_line_for_every_run_that_has_values(tmp_path, monkeypatch):
    from matplotlib.figure import Figure as Picture

    def curves(count):
        parts = {"train": 1.0, "generated": -1.0}
        return {f"logit/{part}": [(i, value * i) for i in range(count)] for part, value in parts.items()} | {
            "generator_drift": [(i, i / 4) for i in range(1, count)]
        }

    pictures = []
    monkeypatch.setattr(Picture, "savefig", lambda self, *_, **__: pictures.append(self))
    draw({"gamma-0": curves(9), "gamma-1": curves(5)}, tmp_path / "figure.png")
    logit, drift = pictures[0].axes
    assert (logit.get_title(), drift.get_title()) == ("logit (train, generated)", "generator drift")
    assert (logit.get_yscale(), drift.get_yscale()) == ("linear", "log")
    assert drift.get_lines()[1].get_xydata().tolist() == [[1, 0.25], [2, 0.5], [3, 0.75], [4, 1.0]]
    assert [line.get_linestyle() for line in logit.get_lines()] == ["-", ":", "-", ":"]
    assert len({line.get_color() for line in logit.get_lines()}) == 2
    assert [text.get_text() for text in pictures[0].legends[0].get_texts()] == ["gamma-0", "gamma-1"]


def test_runs_without_anything_to_draw_are_named(tmp_path):
    with pytest.raises(ValueError, match="has recorded what the figure shows"):
        draw({"gamma-0": {}}, tmp_path / "figure.png")
