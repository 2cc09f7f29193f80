import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance, load_bundle
from afv_metric.train import loop
from afv_metric.train.__main__ import main
from afv_metric.train.checkpoint import latest_checkpoint, load_checkpoint
from afv_metric.train.export import export_run, random_bundle
from afv_metric.train.loop import DivergenceError, train
from afv_metric.train.recipes import Recipe

RECIPE = Recipe(
    width=4,
    generator_width=4,
    latent_size=8,
    batch_size=8,
    iterations=6,
    precision="float32",
    log_interval=2,
    checkpoint_interval=3,
    sample_interval=4,
    milestone_interval=5,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def _train(recipe, images, out, **settings):
    return load_checkpoint(latest_checkpoint(train(recipe, images, out, quiet=True, **settings)))


def _assert_equal(one, other):
    """Bit by bit, but for the clock."""
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], dict):
            _assert_equal(one[name], other[name])
        elif isinstance(one[name], torch.Tensor):
            assert torch.equal(one[name], other[name]), name
        elif name not in ("seconds", "iterations"):
            assert one[name] == other[name], name


def test_a_run_leaves_what_it_should(images, tmp_path):
    train(RECIPE, images, tmp_path, quiet=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "latest.pt", "checkpoint-0000005.pt", "recipe.json", "stats.jsonl", "samples-0000004.png", "samples-0000006.png"
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert {"loss_d", "loss_g", "real", "fake", "corrupted", "seconds"} <= lines[0].keys()
    assert json.loads((tmp_path / "recipe.json").read_text()) == dataclasses.asdict(RECIPE)
    with Image.open(tmp_path / "samples-0000006.png") as grid:
        assert grid.size == (8 * 34 + 2, 8 * 34 + 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_run(images, tmp_path, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    whole = _train(recipe, images, tmp_path / "whole")
    train(dataclasses.replace(recipe, iterations=3), images, tmp_path / "parts", quiet=True)
    torch.manual_seed(12345)  # whatever happens in between
    parts = _train(recipe, images, tmp_path / "parts")
    _assert_equal(whole, parts)


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(images, tmp_path, monkeypatch):
    whole = _train(RECIPE, images, tmp_path / "whole")
    iterate, calls = loop._iterate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return iterate(*arguments)

    monkeypatch.setattr(loop, "_iterate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, images, tmp_path / "killed", quiet=True)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "killed" / "latest.pt")["iteration"] == 3
    _assert_equal(whole, _train(RECIPE, images, tmp_path / "killed"))


def test_other_settings_are_refused_and_named(images, tmp_path):
    train(dataclasses.replace(RECIPE, iterations=2), images, tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"gain was 8\.0 and is now 4\.0"):
        train(dataclasses.replace(RECIPE, gain=4.0), images, tmp_path, quiet=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "least-squares", "head": "pooled", "gain": 1.0, "slope": 0.0},
        {"gamma": 0.1, "noise_std": 0.1},
        {"negatives": 0.0, "augmentation": "paper"},
        {"spectral_norm": False, "augmentation": "none"},
        {"image_size": 64, "augmentation": "flip"},
    ],
)
def test_every_setting_can_be_switched(images, tmp_path, changes):
    recipe = dataclasses.replace(RECIPE, iterations=2, **changes)
    saved = _train(recipe, images, tmp_path)
    fresh = loop._State(recipe, torch.device("cpu"))
    for name in ("discriminator", "generator", "averaged_discriminator"):
        before, after = fresh.modules()[name].state_dict(), saved[name]
        assert any(not torch.equal(before[key], after[key]) for key in before), name
        assert all(value.isfinite().all() for value in after.values())


def test_training_learns_to_tell_images_from_generated_ones(tmp_path):
    folder = tmp_path / "smooth"
    folder.mkdir()
    torch.manual_seed(0)
    for index in range(64):
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), size=(64, 64), mode="bicubic")[0]
        Image.fromarray((smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    recipe = dataclasses.replace(
        RECIPE, width=8, iterations=40, log_interval=1, checkpoint_interval=40, discriminator_rate=2e-3, batch_size=16
    )
    train(recipe, folder, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    margins = [line["real"] - line["fake"] for line in lines]
    assert abs(margins[0]) < 0.5
    assert margins[-1] > 1


def test_divergence_stops_the_run_with_the_checkpoint_kept(images, tmp_path, monkeypatch):
    iterate, calls = loop._iterate, []

    def diverging(*arguments):
        calls.append(1)
        statistics = iterate(*arguments)
        return statistics | {"loss_d": torch.tensor(torch.nan)} if len(calls) > 3 else statistics

    monkeypatch.setattr(loop, "_iterate", diverging)
    with pytest.raises(DivergenceError, match="before iteration 4"):
        train(RECIPE, images, tmp_path, quiet=True)
    assert load_checkpoint(tmp_path / "latest.pt")["iteration"] == 3


def test_from_images_to_a_metric_by_the_command(images, tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "bundle"
    settings = ["width=4", "generator_width=4", "latent_size=8", "batch_size=8", "iterations=2"]
    assert main(["imagenet", "--data", str(images), "--out", run, "--quiet", "--set", *settings]) == 0
    arguments = ["--samples", "30", "--form", "fisher", "--levels", "0.5", "0.5", "--licence", "CC0", "--quiet"]
    assert main(["export", run, "--out", str(out), *arguments]) == 0
    bundle = load_bundle(out, generator=True)
    assert (out / "samples.png").exists()
    assert (bundle.statistics.count, bundle.form, bundle.levels, bundle.training["iterations"]) == (
        30,
        "fisher",
        (0.5, 0.5),
        2,
    )
    saved = load_checkpoint(tmp_path / "run" / "latest.pt")
    assert torch.equal(bundle.discriminator.head.weight, saved["averaged_discriminator"]["head.weight"])
    first, second = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert (AFVDistance(out)(first, second) > 0).all()

    again = str(tmp_path / "again")
    assert (
        main(["imagenet", "--data", str(images), "--out", again, "--quiet", "--init", str(out), "--set", *settings])
        == 0
    )
    assert main(["imagenet", "--data", str(images), "--out", again, "--quiet", "--set", "width=5"]) == 1
    assert "width was 4 and is now 5" in capsys.readouterr().err


def test_a_run_starts_from_a_bundle(images, tmp_path, bundle):
    recipe = dataclasses.replace(RECIPE, iterations=1, discriminator_rate=0.0, generator_rate=0.0)
    saved = _train(recipe, images, tmp_path, init=bundle)
    for name, value in bundle.generator.named_parameters():
        assert torch.equal(saved["generator"][name], value), name
    exported = export_run(tmp_path, "same", samples=10, quiet=True)
    for (name, value), (_, expected) in zip(
        exported.discriminator.named_parameters(), bundle.discriminator.named_parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0.1, atol=0.1, msg=name)


def test_averages_are_outside_of_autograd(images, tmp_path):
    recipe = dataclasses.replace(RECIPE, iterations=1)
    state = loop._State(recipe, torch.device("cpu"))
    state.update_averages(recipe)
    averages = (*state.averaged_discriminator.parameters(), *state.averaged_generator.parameters())
    assert not any(average.requires_grad for average in averages)


def test_export_without_a_run_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "bundle")]) == 1
    assert "no checkpoint in" in capsys.readouterr().err


def test_showing_a_recipe(capsys):
    assert main(["imagenet", "--show", "--set", "width=64"]) == 0
    assert json.loads(capsys.readouterr().out)["width"] == 64


def test_the_random_network_is_the_run_s_initialisation(images, tmp_path):
    train(dataclasses.replace(RECIPE, iterations=2), images, tmp_path, quiet=True)
    trained = export_run(tmp_path, "trained", samples=10, quiet=True)
    untrained = random_bundle(trained, samples=10)
    expected = loop._State(RECIPE, torch.device("cpu")).averaged_discriminator
    for name, value in expected.state_dict().items():
        assert torch.equal(untrained.discriminator.state_dict()[name], value)
    assert untrained.levels == trained.levels
