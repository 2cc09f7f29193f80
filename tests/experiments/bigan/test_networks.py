"""Shapes, reach and normalisation of the convolutional networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from afv_metric.networks import Generator, GeneratorConfig
from experiments.bigan.networks import Encoder, EncoderConfig, JointDiscriminator


def make_encoder(width: int = 4, latent_size: int = 8) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(width, latent_size)).eval()


def test_encoder_and_generator_fit_each_other() -> None:
    encoder, generator = make_encoder(), Generator(GeneratorConfig(4, 8)).eval()
    latents = torch.randn(3, 8)
    assert encoder(generator(latents)).shape == latents.shape


def test_maps_of_any_size_end_in_the_latents_of_a_small_one() -> None:
    encoder = make_encoder()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = encoder.maps(images)
    assert [layer.shape[2] for layer in maps] == [16, 8, 4, 4]
    assert torch.equal(encoder.head(maps[-1]).flatten(1), encoder(images))
    sizes = [tuple(layer.shape[2:]) for layer in encoder.maps(torch.zeros(1, 3, 64, 40))]
    assert sizes == [(32, 20), (16, 10), (8, 5), (8, 5)]
    assert sizes[-1] == (64 // encoder.stride, 40 // encoder.stride)


def test_maps_are_the_activations_of_normalised_sums() -> None:
    encoder = make_encoder()
    block = encoder.blocks[0]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    seen: list[torch.Tensor] = []
    block.norm2.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    maps = encoder.maps(images)[0]
    assert torch.equal(maps, torch.where(seen[0] < 0, 0.2 * seen[0], seen[0]))


def test_an_encoder_in_training_normalises_over_the_batch() -> None:
    encoder = make_encoder().train()
    seen: list[torch.Tensor] = []
    encoder.blocks[1].norm2.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    encoder(torch.rand(16, 3, 32, 32) * 2 - 1)
    assert seen[0].mean((0, 2, 3)).abs().max() < 1e-4
    assert (seen[0].var((0, 2, 3)) - 1).abs().max() < 0.01


def make_discriminator(**settings: Any) -> JointDiscriminator:
    torch.manual_seed(0)
    return JointDiscriminator(4, 8, hidden=16, **settings).eval()


def test_every_layer_of_the_discriminator_is_spectrally_normalised() -> None:
    discriminator = make_discriminator().train()
    for _ in range(30):  # power iterations, one a pass
        discriminator(torch.zeros(1, 3, 32, 32), torch.zeros(1, 8))
    layers = [layer for layer in discriminator.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4 * 3 + 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_the_gain_scales_the_logit() -> None:
    pairs = torch.rand(3, 3, 32, 32), torch.randn(3, 8)
    assert torch.allclose(make_discriminator(gain=6.0)(*pairs), 3 * make_discriminator(gain=2.0)(*pairs))


def test_the_discriminator_sees_the_image_its_arrangement_and_the_latents() -> None:
    discriminator = make_discriminator(gain=100.0)
    images, latents = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 8)
    logits = discriminator(images, latents)
    assert logits.shape == (2,)
    assert not torch.allclose(discriminator(images.roll(8, 2), latents), logits, rtol=1e-3)
    assert not torch.allclose(discriminator(images, latents.flip(0)), logits, rtol=1e-3)


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert make_discriminator()(torch.zeros(2, 3, 32, 32), torch.zeros(2, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"latent_size": -1}, "latent_size must be at least 1, got -1"),
        ({"slope": 1.0}, r"slope must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**settings)
