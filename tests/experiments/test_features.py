from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments.features import PixelFeatures, PooledFeatures, store


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_float(images):
    return images / 127.5 - 1


def test_pooled_features_are_what_the_logit_is_linear_in(bundle, images):
    features = PooledFeatures(bundle)
    pooled = features(as_float(images))
    head = bundle.discriminator.head
    expected = bundle.discriminator.logit(as_float(images))
    logits = F.linear(pooled, head.weight.flatten(1), head.bias)[:, 0]
    torch.testing.assert_close(logits, expected.flatten(), rtol=1e-4, atol=1e-5)
    assert features.size == pooled.shape[1]


def test_pooled_features_of_every_block_end_with_those_of_the_last(bundle, images):
    last, every = PooledFeatures(bundle), PooledFeatures(bundle, every_block=True)
    pooled = every(as_float(images))
    assert pooled.shape == (7, every.size) == (7, 4 * last.size)
    assert torch.equal(pooled[:, -last.size :], last(as_float(images)))
    maps = F.leaky_relu(bundle.discriminator.blocks[0](as_float(images)), bundle.discriminator.config.slope)
    torch.testing.assert_close(pooled[:, : last.size], maps.mean((2, 3)))


def test_pooled_features_are_float32_under_autocast_and_of_images_of_any_size(bundle):
    with torch.autocast("cpu", torch.bfloat16):
        pooled = PooledFeatures(bundle)(torch.rand(2, 3, 41, 50) * 2 - 1)
    assert pooled.dtype == torch.float32
    assert pooled.isfinite().all()


def test_stored_features_are_half_precision_in_memory_or_in_a_file(tmp_path, images):
    features = PixelFeatures(32)
    expected = as_float(images).flatten(1).half()
    assert torch.equal(store(features, images), expected)
    mapped = store(features, images, tmp_path / "pixels.f16", batch_size=2)
    assert torch.equal(mapped, expected)
    assert np.array_equal(np.fromfile(tmp_path / "pixels.f16", np.float16), expected.flatten().numpy())


def test_stored_features_have_the_range_of_half_precision(images):
    class Large(PixelFeatures):
        def forward(self, images):
            return super().forward(images) * 1e9

    stored = store(Large(32), images)
    assert stored.isfinite().all()
    assert stored.abs().max() == 65504


def test_no_half_file_is_left(tmp_path, images):
    def fail(batch):
        raise OSError("gone")

    fail.size = 3
    with pytest.raises(OSError, match="gone"):
        store(fail, images, tmp_path / "features.f16")
    assert list(tmp_path.iterdir()) == []
