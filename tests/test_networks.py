import pytest
import torch
from conftest import make_discriminator, make_images
from hypothesis import given
from hypothesis import strategies as st
from oracle import logit
from torch.nn import functional as F

from afv_metric.networks import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    PooledConv2d,
    UpsampledConv2d,
)


def _values_and_gradients(function, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def _assert_same(layer, plain, maps):
    """A layer and its plain form agree in values and in gradients, for input, weight and bias."""

    def fused(x, w, b):
        return torch.func.functional_call(layer, {"weight": w, "bias": b}, x)

    leaves = maps, layer.weight, layer.bias
    for a, b in zip(_values_and_gradients(fused, *leaves), _values_and_gradients(plain, *leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9))
def test_pooled_convolution_is_convolution_then_pooling(inputs, outputs, height, width):
    layer = PooledConv2d(inputs, outputs, 3, padding=1).double()
    maps = torch.randn(2, inputs, height, width, dtype=torch.float64)
    _assert_same(layer, lambda x, w, b: F.avg_pool2d(F.conv2d(x, w, b, padding=1), 2), maps)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_upsampled_convolution_is_doubling_then_convolution(inputs, outputs, height, width):
    layer = UpsampledConv2d(inputs, outputs, 3, padding=1).double()
    maps = torch.randn(2, inputs, height, width, dtype=torch.float64)
    _assert_same(layer, lambda x, w, b: F.conv2d(F.interpolate(x, scale_factor=2), w, b, padding=1), maps)


@pytest.mark.parametrize(("image_size", "slope"), [(32, 0.0), (32, 0.2), (64, 0.2)])
def test_discriminator_is_the_plain_network(image_size, slope):
    discriminator = make_discriminator(image_size=image_size, slope=slope)
    images = make_images(2, 64, 48)
    expected = torch.stack([logit(discriminator, image[None]) for image in images])
    torch.testing.assert_close(discriminator.logit(images), expected, rtol=1e-12, atol=1e-12)


def test_parameter_counts_are_those_of_the_paper():
    def count(width):
        return sum(p.numel() for p in make_discriminator(width).parameters())

    assert [round(count(width) / 1e3) for width in (32, 64, 128)] == [94, 373, 1483]


@pytest.mark.parametrize("head", ["pooled", "position"])
def test_head_shapes_and_equal_logit(head):
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=4, head=head)).eval()
    images = torch.rand(2, 3, 40, 36)
    assert discriminator(images).shape == ((2, 1) if head == "pooled" else (2, 90))
    torch.testing.assert_close(discriminator.logit(images), discriminator.baked().logit(images))


def test_baking_keeps_logits_and_leaves_the_network_alone():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=4, gain=8.0)).train()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    plain = discriminator.baked()
    assert discriminator.training
    assert not plain.training
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain.logit(images), discriminator.eval().logit(images))


@pytest.mark.parametrize("spectral_norm", [True, False])
def test_a_network_starts_from_a_baked_one(spectral_norm):
    source = Discriminator(DiscriminatorConfig(width=4, gain=8.0)).eval()
    images = torch.rand(2, 3, 32, 32)
    source(images.requires_grad_(False))
    for _ in range(50):  # let the power iteration settle, so that the norm of a normalised weight is 1
        source.train()(images)
    source.eval()
    target = Discriminator(DiscriminatorConfig(width=4, gain=8.0, spectral_norm=spectral_norm))
    target.load_baked(source.baked().state_dict())
    torch.testing.assert_close(target.eval().logit(images), source.logit(images), rtol=1e-3, atol=1e-3)


def test_starting_from_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        Discriminator(DiscriminatorConfig(width=4)).load_baked(make_discriminator(5).state_dict())


@pytest.mark.parametrize("image_size", [32, 64])
def test_generator_shapes_and_range(image_size):
    generator = Generator(GeneratorConfig(width=6, latent_size=5, image_size=image_size))
    images = generator(generator.sample_latents(3))
    assert images.shape == (3, 3, image_size, image_size)
    assert images.abs().max() <= 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_and_autocast_agree(memory_format):
    torch.manual_seed(0)
    discriminator, generator = (
        Discriminator(DiscriminatorConfig(width=8)).eval(),
        Generator(GeneratorConfig(width=8)).eval(),
    )
    latents = generator.sample_latents(2)
    expected = discriminator(generator(latents))
    discriminator, generator = (net.to(memory_format=memory_format) for net in (discriminator, generator))
    torch.testing.assert_close(discriminator(generator(latents)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = discriminator(generator(latents))
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "image_size must be 32 or 64, got 48"),
        ({"width": 0}, "width must be at least 1"),
        ({"slope": 1.0}, r"slope must be in \[0, 1\)"),
        ({"head": "both"}, 'head must be "pooled" or "position"'),
        ({"gain": 0.0}, "gain must be positive"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)


def test_impossible_latents_are_refused():
    with pytest.raises(ValueError, match="latent_size must be at least 1"):
        GeneratorConfig(latent_size=0)
