"""Tests of afv_metric.train.export on checkpoints made by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from afv_metric.bundles.bundle import load_bundle
from afv_metric.bundles.golden import golden_distances
from afv_metric.bundles.twin import random_twin
from afv_metric.fisher.forms import Term
from afv_metric.networks import Discriminator, Generator
from afv_metric.train.__main__ import main
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.export import export_run, find_checkpoint
from afv_metric.train.recipes import Recipe

RECIPE = Recipe(width=4, generator_width=4, latent_size=8, held_out=0.25, seed=3)
LATER = {"name", "r1", "generator_steps", "discriminator_steps", "held_out", "monitor_interval", "monitor_samples"}
LATER |= {"keep_best"}  # settings that a recipe of version 0.1 had not


def earlier_recipe(**changes: object) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(RECIPE).items() if name not in LATER} | changes


def make_checkpoint(path: Path, iteration: int, recipe: Recipe = RECIPE, **changes: object) -> Path:
    """What training leaves, as far as an export reads it; with other weights for every iteration."""
    torch.manual_seed(iteration)
    networks = {
        "averaged_discriminator": Discriminator(recipe.discriminator).baked().state_dict(),
        "averaged_generator": Generator(recipe.generator).state_dict(),
    }
    record = {"recipe": dataclasses.asdict(recipe), "iteration": iteration, "seconds": 90.0 * iteration}
    torch.save(networks | record | changes, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has kept three checkpoints, the second of which is the best."""
    for iteration in (100, 200, 300):
        make_checkpoint(
            tmp_path / f"checkpoint-{iteration:07d}.pt", iteration, data="64 images, c0ffee", rate_factor=0.5
        )
    lines = [
        {"iteration": 100 * (i + 1), "fisher_similarity/held_out": value} for i, value in enumerate((0.1, 0.3, 0.2))
    ]
    (tmp_path / "monitors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "machines.json").write_text('[{"processor": "Z80", "threads": 1}]')
    return tmp_path


# Checkpoints and recipes


def test_any_checkpoint_is_found(run: Path) -> None:
    assert find_checkpoint(run).name == "checkpoint-0000300.pt"
    assert find_checkpoint(run, "best").name == "checkpoint-0000200.pt"
    assert find_checkpoint(run, 100) == find_checkpoint(run, "100") == run / "checkpoint-0000100.pt"
    assert find_checkpoint(run / "checkpoint-0000100.pt") == run / "checkpoint-0000100.pt"


def test_a_checkpoint_that_is_not_there(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint '150'; it keeps those of the iterations 100, 200, 300"):
        find_checkpoint(run, "150")
    (run / "monitors.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="known where monitors have measured"):
        find_checkpoint(run, "best")
    with pytest.raises(ValueError, match='"latest", "best" or an iteration'):
        find_checkpoint(run, "newest")
    with pytest.raises(FileNotFoundError, match="train first"):
        find_checkpoint(tmp_path_factory.mktemp("empty"))


def test_recipes_of_other_versions() -> None:
    assert read_recipe(dataclasses.asdict(RECIPE)) == RECIPE
    earlier = earlier_recipe()
    assert read_recipe(earlier) == dataclasses.replace(RECIPE, held_out=0.0)
    with pytest.raises(ValueError, match="settings teacher are unknown: a newer afv_metric"):
        read_recipe({**earlier, "teacher": "vgg"})


# Bundles


def test_a_bundle_says_where_it_comes_from(run: Path) -> None:
    exported = export_run(run, "mine", samples=30, seed=5, quiet=True)
    assert exported.training == {
        "iterations": 300,
        "hours": 7.5,
        "data_fingerprint": "64 images, c0ffee",
        "rate_factor": 0.5,
        "machines": [{"processor": "Z80", "threads": 1}],
        "recipe": dataclasses.asdict(RECIPE),
    }
    assert (exported.statistics.count, exported.sampling["seed"], exported.licence) == (30, 5, {"weights": "unstated"})
    saved = torch.load(run / "checkpoint-0000300.pt")
    for name, value in saved["averaged_generator"].items():
        assert torch.equal(exported.generator.state_dict()[name], value)
    for name, value in saved["averaged_discriminator"].items():
        assert torch.equal(exported.discriminator.state_dict()[name], value)


def test_the_command_takes_the_checkpoint_and_all_settings(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    settings = "--form local --levels .5 .5 --blocks --terms texture:0:3:2 --pooling 3 --epsilon .1"
    about = ["--licence", "CC0-1.0", "--data-name", "holiday pictures"]
    command = ["export", str(run), "--out", str(out), "--checkpoint", "best", "--samples", "10", "--quiet"]
    assert main([*command, *settings.split(), *about]) == 0
    exported = load_bundle(out)
    assert (exported.training["iterations"], exported.training["data"]) == (200, "holiday pictures")
    assert (exported.form, exported.levels, exported.epsilon, exported.pooling) == ("local", (0.5, 0.5), 0.1, 3.0)
    assert (exported.blocks, exported.terms) == (None, (Term("texture", 0, (3,), 2.0),))
    assert exported.licence == {"weights": "CC0-1.0"}
    assert exported.output == "logit"
    assert exported.golden["distances"] == golden_distances(exported)


def test_a_run_of_version_0_1_is_exported(tmp_path: Path) -> None:
    recipe = earlier_recipe(loss="least-squares", seed=1)
    make_checkpoint(tmp_path / "checkpoint-0000005.pt", 5)
    path = make_checkpoint(tmp_path / "checkpoint-0000007.pt", 7)
    torch.save(torch.load(path) | {"recipe": recipe}, path)
    exported = export_run(tmp_path, "old", samples=10, quiet=True)
    assert exported.training["iterations"] == 7
    assert exported.training["recipe"] == recipe  # what was recorded, and nothing made up
    assert exported.output == "sigmoid"
    untrained = random_twin(exported)
    torch.manual_seed(1)
    assert torch.equal(untrained.discriminator.head.weight, Discriminator(RECIPE.discriminator).baked().head.weight)
    assert untrained.golden == {}


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is no checkpoint of a run"):
        export_run(tmp_path / "other.pt", "mine", samples=10, quiet=True)
