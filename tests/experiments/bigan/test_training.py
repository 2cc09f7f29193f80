"""Runs: what they write, what they learn, and that a kill changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from afv_metric.images.cache import load_images
from afv_metric.train.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.log import read_records
from afv_metric.train.settings import override
from experiments.bigan import training
from experiments.bigan.training import BiGANRecipe, BiGANState, export_run, iterate, train

CPU = torch.device("cpu")


def make_pixels(count: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def last(run: Path) -> dict[str, Any]:
    path = latest_checkpoint(run)
    assert path is not None
    return load_checkpoint(path)


def test_a_run_leaves_a_record(recipe: BiGANRecipe, images: Path, tmp_path: Path) -> None:
    assert train(recipe, images, tmp_path / "run", quiet=True) == tmp_path / "run"
    records = read_records(tmp_path / "run" / "stats.jsonl")
    assert [record["iteration"] for record in records] == [2, 4, 6]
    assert {"loss_d", "loss_eg", "image_error", "latent_error"} <= records[0].keys()
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["width"] == 4
    assert list(checkpoints(tmp_path / "run")) == [3, 6]
    grids = sorted((tmp_path / "run").glob("samples-*.png"))
    assert [path.name for path in grids] == ["samples-0000004.png", "samples-0000006.png"]
    with Image.open(grids[0]) as grid:  # 16 held-out images, 3 rows, and 2 pixels between all of them
        assert grid.size == (16 * 34 + 2, 3 * 34 + 2)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_as_if_it_never_stopped(
    recipe: BiGANRecipe, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe, images, tmp_path / "whole", quiet=True)

    def killed(state: BiGANState, *others: Any) -> dict[str, torch.Tensor]:
        if state.iteration == 5:  # after a checkpoint at 3 and a record at 4
            raise KeyboardInterrupt
        return iterate(state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(training, "iterate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, images, tmp_path / "killed", quiet=True)
    torch.manual_seed(99)  # whatever else drew random numbers in between
    train(recipe, images, tmp_path / "killed", quiet=True)
    whole, killed_once = last(tmp_path / "whole"), last(tmp_path / "killed")
    assert whole["iteration"] == killed_once["iteration"] == 6
    for name in ("bigan", "averaged_encoder", "averaged_generator"):
        assert all(torch.equal(value, killed_once[name][key]) for key, value in whole[name].items())
    first, second = (read_records(tmp_path / run / "stats.jsonl") for run in ("whole", "killed"))
    assert [record | {"seconds": 0} for record in first] == [record | {"seconds": 0} for record in second]


def test_a_run_can_be_made_longer_and_not_otherwise_changed(recipe: BiGANRecipe, images: Path, tmp_path: Path) -> None:
    train(replace(recipe, iterations=3), images, tmp_path, quiet=True)
    train(replace(recipe, iterations=4, log_interval=1), images, tmp_path, quiet=True)
    assert last(tmp_path)["iteration"] == 4
    with pytest.raises(ValueError, match=r"other settings: rate was 0.0002 and is now 0.1\. Give the same"):
        train(replace(recipe, rate=0.1), images, tmp_path, quiet=True)
    (images / "00.png").rename(images / "zz.png")
    try:
        with pytest.raises(ValueError, match="begun with other images"):
            train(recipe, images, tmp_path, quiet=True)
    finally:
        (images / "zz.png").rename(images / "00.png")


def test_numbers_that_are_not_finite_end_a_run_before_they_are_saved(
    recipe: BiGANRecipe, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergenceError, match="is not finite; begin again with lower learning rates"):
        train(replace(recipe, rate=1e30, log_interval=6), images, tmp_path, quiet=True)
    assert not checkpoints(tmp_path)


def test_each_side_descends_its_own_loss(recipe: BiGANRecipe) -> None:
    """A step on the same pairs again lowers the loss of the side that stepped, with the other one standing still."""
    for moved, name in (({"rate": 1e-12}, "loss_d"), ({"discriminator_rate": 1e-12}, "loss_eg")):
        settings = replace(recipe, augmentation="none", batch_size=16, **moved)
        state = BiGANState(settings, CPU)
        losses = []
        for _ in range(8):
            state.iteration = 0  # the same images and latents every time
            losses.append(float(iterate(state, settings, make_pixels(), CPU)[name]))
        assert losses[-1] < losses[0] - 0.01, name


def test_both_steps_are_taken_from_the_same_pairs(recipe: BiGANRecipe) -> None:
    state, calls = BiGANState(recipe, CPU), {"encoder": 0, "generator": 0, "discriminator": 0}

    def count(name: str) -> Any:
        return lambda *ignored: calls.update({name: calls[name] + 1})

    before = {name: value.clone() for name, value in state.bigan.named_parameters()}
    for name in calls:
        network: nn.Module = getattr(state.bigan, name)
        network.register_forward_hook(count(name))
    iterate(state, recipe, make_pixels(), CPU)
    assert calls == {"encoder": 1, "generator": 1, "discriminator": 2}
    still = {name for name, value in state.bigan.named_parameters() if torch.equal(value, before[name])}
    assert not still


def test_averages_follow_the_weights(recipe: BiGANRecipe) -> None:
    state = BiGANState(recipe, CPU)
    start = state.averaged_encoder.head.weight.clone()
    state.iteration = 1_000_000
    with torch.no_grad():
        state.bigan.get_parameter("encoder.head.weight").add_(1)
    state.update_averages(0.75)
    assert torch.allclose(state.averaged_encoder.head.weight, start + 0.25)


def test_averaged_networks_are_normalised_for_their_own_weights(
    recipe: BiGANRecipe, images: Path, tmp_path: Path
) -> None:
    train(replace(recipe, batch_size=32, rate=0.01), images, tmp_path, quiet=True)
    encoder = export_run(tmp_path, "mine").encoder
    seen: list[torch.Tensor] = []
    encoder.blocks[2].norm2.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    pixels = load_images(images, 32, quiet=True).images[:]
    encoder(pixels.float() / 127.5 - 1)
    assert seen[0].mean((0, 2, 3)).abs().max() < 0.3
    assert (seen[0].var((0, 2, 3)) - 1).abs().max() < 0.3


def test_bfloat16_is_near_float32(recipe: BiGANRecipe) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        settings = override(recipe, [f"precision={precision}"])
        losses.append(float(iterate(BiGANState(settings, CPU), settings, make_pixels(), CPU)["loss_d"]))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_averaged_encoder_is_exported(recipe: BiGANRecipe, images: Path, tmp_path: Path) -> None:
    train(recipe, images, tmp_path, quiet=True)
    trained, saved = export_run(tmp_path, "mine"), last(tmp_path)
    assert all(
        torch.equal(value, saved["averaged_encoder"][name]) for name, value in trained.encoder.state_dict().items()
    )
    assert not torch.equal(trained.encoder.head.weight, saved["bigan"]["encoder.head.weight"])
    assert (trained.name, trained.training["iterations"], trained.training["recipe"]["width"]) == ("mine", 6, 4)
    assert trained.training["data_fingerprint"] == saved["data"]


def test_there_is_nothing_to_export_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        export_run(tmp_path, "mine")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("depth=3", "expected NAME=VALUE .*; got 'depth=3'; did you mean 'width'"),
        ("width", "expected NAME=VALUE"),
        ("width=x", r"width must be a number \(int\), got 'x'"),
        ("width=0", "width must be positive, got 0"),
        ("rate=-1", "rate must be positive, got -1.0"),
        ("rate=nan", "rate must be positive, got nan"),
        ("average=1", r"average must be in \[0, 1\), got 1.0"),
        ("held_out=0", "held_out is a share of the images between 0 and 1"),
        ("batch_size=1", "batch_size must be at least 2 for batch norm, got 1"),
        ("augmentation=mirror", "augmentation must be one of none, flip, paper, multiscale; got 'mirror'"),
        ("precision=float16", "precision must be one of auto, float32, bfloat16; got 'float16'"),
    ],
)
def test_impossible_settings_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(BiGANRecipe(), [assignment])
