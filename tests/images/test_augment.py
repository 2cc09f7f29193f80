import pytest
import torch
from conftest import fake_gpu

from afv_metric.images import augment as augmentation
from afv_metric.images.augment import augment


@pytest.mark.parametrize("name", ["none", "flip", "paper", "multiscale"])
@pytest.mark.parametrize("size", [32, 64])
def test_crops_have_the_right_size_and_range(name, size):
    torch.manual_seed(0)
    images = torch.rand(40, 3, 2 * size, 2 * size) * 2 - 1
    crops = augment(images, size, name)
    assert crops.shape == (40, 3, size, size)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert crops.abs().max() <= 1
    assert torch.equal(augment(images, size, name), crops) == (name == "none")


@pytest.mark.parametrize("name", ["none", "flip", "paper"])
def test_images_may_be_on_another_device_than_the_random_numbers(name):
    with fake_gpu():
        crops = augment(torch.zeros(4, 3, 64, 64, device="cuda"), 32, name)
    assert crops.device.type == "cuda"


@pytest.mark.parametrize(
    ("name", "mean", "pixel", "next_draw"),
    [
        ("none", -0.0011388026440626062, -0.09215684235095978, 0.004263520240783691),
        ("flip", -0.0011388026440626062, -0.09215684235095978, 0.1808772087097168),
        ("paper", -0.000789667636935418, 0.013725504279136658, 0.1622423529624939),
        ("multiscale", -0.00036230309465286786, 0.20000003278255463, 0.33071810007095337),
    ],
)
def test_the_random_stream_stays_as_it_is(name, mean, pixel, next_draw):
    """Runs that were begun with an earlier version go on with the same crops."""
    pixels = torch.randint(256, (24, 3, 64, 64), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    images = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    crops = augment(images, 32, name)
    assert torch.rand(()).item() == next_draw
    assert crops.double().mean().item() == pytest.approx(mean, abs=1e-8)
    assert crops[7, 1, 3, 5].item() == pytest.approx(pixel, abs=1e-6)


def test_flips_are_flips():
    images = torch.rand(32, 3, 64, 64) * 2 - 1
    plain, flipped = augment(images, 32, "none"), augment(images, 32, "flip")
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(3) == flipped).flatten(1).all(1)
    assert (same | mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_paper_crops_are_shifted_by_at_most_four_pixels_and_turned():
    torch.manual_seed(0)
    images = torch.zeros(64, 3, 64, 64)
    images[:, :, 32:34, 32:34] = 1.0  # one pixel, at 16 of 32
    crops = augment(images, 32, "paper")
    places = crops[:, 0].flatten(1).argmax(1)
    rows, columns = places // 32, places % 32
    assert (crops[:, 0].flatten(1).sum(1) == 1).all()
    assert min(rows.min(), columns.min()) >= 11
    assert max(rows.max(), columns.max()) <= 20
    assert len(places.unique()) > 20


def test_native_crops_are_windows_of_the_image():
    image = torch.arange(64.0 * 64).view(1, 1, 64, 64).expand(5, 3, -1, -1)
    crops = augmentation._random_crop(image, 32)
    assert (crops[..., 1:] - crops[..., :-1] == 1).all()
    assert (crops[..., 1:, :] - crops[..., :-1, :] == 64).all()
    assert len(crops[:, 0, 0, 0].unique()) > 1
