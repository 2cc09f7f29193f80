"""Six ways to learn features of digits, at small sizes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.bigan import mnist
from experiments.bigan.mnist import (
    BATCH_SIZE,
    LATENTS,
    METHODS,
    Networks,
    Precision,
    Settings,
    encode,
    load_digits,
    make_networks,
    nearest_neighbour_accuracy,
    train,
)

UNITS = ("gan", *(method for method in METHODS if method != "discriminator"))
PIXELS = 16
SMALL = Settings(epochs=2, width=12)


def make_images(count: int = 2 * BATCH_SIZE + 7) -> Tensor:
    """Two kinds of images: bright on the left, bright on the right."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 90, (count, 4, 4), dtype=torch.uint8, generator=generator)
    images[::2, :, :2] += 150
    images[1::2, :, 2:] += 150
    return images.flatten(1)


def finish(unit: str, checkpoint: Path, settings: Settings = SMALL) -> Networks:
    networks = make_networks(unit, PIXELS, settings)
    train(networks, unit, make_images(), settings, checkpoint=checkpoint)
    return networks


def weights(networks: Networks) -> Tensor:
    return torch.cat([value.double().flatten() for value in networks.state_dict().values()])


@pytest.mark.parametrize("unit", UNITS)
def test_start(unit: str) -> None:
    networks = make_networks(unit, PIXELS, Settings(width=400))
    generator = networks.generator
    assert generator.second.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(name.endswith("bias") for name, _ in networks.named_parameters())
    assert (networks.encoder is None) == (unit == "gan")
    assert (networks.discriminator is None) == (unit in ("latent-regressor", "autoencoder-l2", "autoencoder-l1"))
    if networks.discriminator:
        assert networks.discriminator.out.weight.eq(0).all()
        assert networks.discriminator.hidden.second.in_features == 400 + (LATENTS if unit == "bigan" else 0)
    if networks.encoder:
        assert networks.encoder.out.weight.eq(0).all() == unit.endswith("regressor")


@pytest.mark.parametrize(("unit", "start"), [("gan", (1, 1)), ("bigan", (1, 1)), ("joint-latent-regressor", (1, 1.25))])
def test_losses_of_a_game_at_the_start(unit: str, start: tuple[float, float]) -> None:
    networks = make_networks(unit, PIXELS, SMALL)
    losses = mnist._UNITS[unit].losses(networks, torch.rand(9, PIXELS), torch.rand(9, LATENTS) * 2 - 1)
    assert [loss.item() / math.log(2) for loss in losses] == pytest.approx(start, rel=1e-5)


def test_losses_of_one_side() -> None:
    images, latents = torch.rand(9, PIXELS), torch.rand(9, LATENTS) * 2 - 1
    regressor = make_networks("latent-regressor", PIXELS, SMALL)
    torch.nn.init.normal_(regressor.encoder.out.weight)
    (loss,) = mnist._UNITS["latent-regressor"].losses(regressor, images, latents)
    share = (regressor.encoder(regressor.generator(latents)) + 1) / 2
    torch.testing.assert_close(loss, F.binary_cross_entropy(share, (latents + 1) / 2))
    loss.backward()
    assert all(weight.grad is None for weight in regressor.generator.parameters())
    for unit, power in (("autoencoder-l2", 2), ("autoencoder-l1", 1)):
        networks = make_networks(unit, PIXELS, SMALL)
        (loss,) = mnist._UNITS[unit].losses(networks, images, latents)
        error = (networks.generator(networks.encoder(images)) - images).abs() ** power
        torch.testing.assert_close(loss, error.sum(1).mean())


@pytest.mark.parametrize("unit", UNITS)
def test_train_moves_what_it_should_and_depends_on_the_seed_alone(unit: str, tmp_path: Path) -> None:
    before = make_networks(unit, PIXELS, SMALL)
    torch.manual_seed(1)
    networks = finish(unit, tmp_path / "one.pt")
    torch.manual_seed(2)
    again = finish(unit, tmp_path / "two.pt")
    assert torch.equal(weights(networks), weights(again))
    assert not torch.equal(weights(networks), weights(finish(unit, tmp_path / "three.pt", SMALL._replace(seed=1))))
    assert not networks.training
    moved = {
        name.partition(".")[0]
        for (name, old), new in zip(before.named_parameters(), networks.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {name for name in ("encoder", "generator", "discriminator") if getattr(networks, name)} - (
        {"generator"} if unit == "latent-regressor" else set()
    )


@pytest.mark.parametrize("unit", ["bigan", "latent-regressor"])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL._replace(epochs=3)
    whole = finish(unit, tmp_path / "whole.pt", settings)
    monkeypatch.setattr(mnist, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    train_epoch = mnist._train_epoch
    passed = []

    def stop_at_the_third(*arguments: object) -> None:
        passed.append(arguments)
        if len(passed) == 3:
            raise KeyboardInterrupt
        train_epoch(*arguments)

    monkeypatch.setattr(mnist, "_train_epoch", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finish(unit, tmp_path / "parts.pt", settings)
    resumed = finish(unit, tmp_path / "parts.pt", settings)
    assert len(passed) == 4
    assert torch.equal(weights(resumed), weights(whole))
    assert not resumed.training
    finish(unit, tmp_path / "parts.pt", settings)
    assert len(passed) == 4


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    finish("gan", tmp_path / "gan.pt", SMALL._replace(seed=5))
    before = (tmp_path / "gan.pt").read_bytes()
    with pytest.raises(ValueError, match="seed is 5, asked for 0"):
        finish("gan", tmp_path / "gan.pt")
    assert (tmp_path / "gan.pt").read_bytes() == before


@pytest.mark.parametrize("count", [1001, 1010])
def test_averages_over_uneven_numbers_are_those_of_all(count: int) -> None:
    norm = torch.nn.BatchNorm1d(1)
    networks = SimpleNamespace(features=norm, eval=norm.eval)
    images = torch.zeros(count, 1, dtype=torch.uint8)
    images[1000:] = 255
    mnist._settle(networks, "latent-regressor", images, torch.Generator())
    torch.testing.assert_close(norm.running_mean, images.float().mean(0) / 255, rtol=0.01, atol=0)


def test_features_are_normalised_by_all_images(tmp_path: Path) -> None:
    networks = finish("bigan", tmp_path / "bigan.pt")
    before = networks.features.second(F.leaky_relu(networks.features.first(make_images() / 255), 0.2))
    torch.testing.assert_close(networks.features.norm.running_mean, before.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(networks.features.norm.running_var, before.var(0), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("unit", ["autoencoder-l2", "joint-latent-regressor"])
def test_the_generator_is_normalised_by_what_it_sees(unit: str, tmp_path: Path) -> None:
    networks = finish(unit, tmp_path / "networks.pt")
    with torch.no_grad():
        codes = networks.encoder(make_images() / 255)
        latents = torch.rand(50_000, LATENTS, generator=torch.Generator().manual_seed(7)) * 2 - 1
        spreads = [networks.generator.first(inputs).var(0) for inputs in (codes, latents)]
    seen, unseen = spreads if unit == "autoencoder-l2" else spreads[::-1]
    spread = networks.generator.first_norm.running_var
    assert (spread / seen).log().abs().max() < 0.35
    assert (spread / unseen).log().abs().max() > 1


def test_learning_rate() -> None:
    rates = [mnist._rate(epoch, 400) for epoch in range(400)]
    assert rates[:200] == [2e-4] * 200
    assert rates[-1] == pytest.approx(2e-6)
    assert np.diff(np.log(rates[199:])) == pytest.approx(np.full(200, -math.log(100) / 200))
    assert mnist._rate(0, 1) == pytest.approx(2e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_autoencoder_learns(precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "_RATE", 5e-3)
    images = make_images()
    errors = []
    for epochs in (1, 60):
        settings = Settings(epochs=epochs, width=32, precision=precision)
        networks = finish("autoencoder-l2", tmp_path / f"{epochs}.pt", settings)
        again = encode(torch.nn.Sequential(networks.encoder, networks.generator), images)
        errors.append((again - images / 255).square().sum(1).mean().item())
    assert errors[1] < errors[0] / 3


def test_nearest_neighbour_accuracy_against_all_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    training, test = torch.randn(300, 5, generator=generator) + 40, torch.randn(2100, 5, generator=generator) + 40
    labels, others = torch.randint(3, (300,), generator=generator), torch.randint(3, (2100,), generator=generator)
    nearest = torch.cdist(test.double(), training.double()).argmin(1)
    expected = (labels[nearest] == others).double().mean().item()
    assert nearest_neighbour_accuracy(training, labels, test, others) == pytest.approx(expected, abs=1e-9)
    assert nearest_neighbour_accuracy(training, labels, training, labels) == 1


def write(path: Path, **changes: object) -> Path:
    arrays: dict[str, object] = {
        "train_images": np.zeros((BATCH_SIZE, 4, 4), np.uint8),
        "train_labels": np.arange(BATCH_SIZE) % 10,
        "test_images": np.ones((5, 4, 4), np.uint8),
        "test_labels": np.arange(5, dtype=np.uint8),
    }
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_load_digits(tmp_path: Path) -> None:
    digits = load_digits(write(tmp_path / "a.npz"))
    assert digits.train_images.shape == (BATCH_SIZE, 16)
    assert digits.test_images.dtype == torch.uint8
    assert digits.test_labels.tolist() == [0, 1, 2, 3, 4]
    with np.load(tmp_path / "a.npz") as file:
        names = ("x_train", "y_train", "x_test", "y_test")
        np.savez(tmp_path / "keras.npz", **{new: file[old] for new, old in zip(names, digits._fields, strict=True)})
    for one, other in zip(digits, load_digits(tmp_path / "keras.npz"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "expected train_images, train_labels"),
        ({"test_labels": np.zeros(4, int)}, "expected 5 integers"),
        ({"test_labels": np.zeros(5)}, "expected 5 integers"),
        ({"train_images": np.zeros((BATCH_SIZE, 4, 4))}, "expected uint8"),
        ({"test_images": np.zeros((5, 16), np.uint8)}, "expected uint8"),
        ({"test_images": np.zeros((5, 3, 3), np.uint8)}, r"test images \(3, 3\)"),
        ({"train_images": np.zeros((9, 4, 4), np.uint8), "train_labels": np.zeros(9, int)}, "at least 128"),
        ({"test_labels": np.array([{}] * 5, dtype=object)}, "no .npz file of plain arrays"),
    ],
)
def test_load_digits_refuses(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_digits(write(tmp_path / "a.npz", **changes))


def test_load_digits_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected an \.npz file"):
        load_digits(tmp_path / "a.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match="no .npz file of plain arrays"):
        load_digits(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="a single array"):
        load_digits(tmp_path / "one.npy")
    whole = write(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no .npz file of plain arrays"):
        load_digits(tmp_path / "cut.npz")
