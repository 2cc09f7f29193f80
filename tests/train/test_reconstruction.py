import pytest
import torch

from afv_metric.networks import Discriminator, DiscriminatorConfig
from afv_metric.train.reconstruction import Decoder, reconstruction_error


@pytest.mark.parametrize("image_size", [32, 64])
def test_maps_become_images_of_their_size(image_size):
    discriminator = Discriminator(DiscriminatorConfig(width=8, image_size=image_size))
    images = torch.rand(2, 3, image_size, image_size) * 2 - 1
    decoded = Decoder(discriminator)(discriminator.last_maps(images))
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_the_error_by_hand():
    assert reconstruction_error(torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.25)).item() == 0.75


def test_images_can_be_rebuilt():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=8, slope=0.2))
    decoder = Decoder(discriminator)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, size=(32, 32), mode="bilinear")
    optimizer = torch.optim.Adam([*discriminator.blocks.parameters(), *decoder.parameters()], 1e-2)
    errors = []
    for _ in range(60):
        error = reconstruction_error(decoder(discriminator.last_maps(images)), images)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 2


def test_the_discriminator_is_told_what_to_keep():
    discriminator = Discriminator(DiscriminatorConfig(width=8))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    reconstruction_error(Decoder(discriminator)(discriminator.last_maps(images)), images).backward()
    trained = [weight.grad is not None and bool(weight.grad.any()) for weight in discriminator.blocks.parameters()]
    assert all(trained)
    assert discriminator.head.bias.grad is None
