import pytest
import torch
from conftest import fake_gpu

from afv_metric.train import negatives
from afv_metric.train.negatives import corrupt

WAYS = ["_blur", "_add_noise", "_resample", "_quantise", "_mix_colours", "_bend"]


@pytest.mark.parametrize("count", [1, 6, 8, 32])
def test_every_image_is_corrupted_and_stays_in_range(count):
    torch.manual_seed(0)
    images = torch.rand(count, 3, 32, 32) * 2 - 1
    corrupted = corrupt(images)
    assert corrupted.shape == images.shape
    assert corrupted.abs().max() <= 1
    assert ((corrupted - images).abs().amax((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(("count", "parts"), [(32, [6, 6, 5, 5, 5, 5]), (8, [2, 2, 1, 1, 1, 1]), (3, [1, 1, 1])])
def test_the_ways_get_equal_parts(count, parts, monkeypatch):
    seen = []
    for name in WAYS:
        monkeypatch.setattr(negatives, name, lambda images, strength: seen.append(len(images)) or images)
    corrupt(torch.zeros(count, 3, 32, 32))
    assert seen == parts


@pytest.mark.parametrize("name", ["_blur", "_quantise", "_mix_colours"])
def test_images_may_be_on_another_device_than_the_random_numbers(name):
    with fake_gpu():
        assert getattr(negatives, name)(torch.zeros(2, 3, 32, 32, device="cuda"), 0.5).device.type == "cuda"
