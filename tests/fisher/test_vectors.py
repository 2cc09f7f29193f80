from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from afv_metric import AFVDistance
from afv_metric.fisher.vectors import PixelFeatures, PooledFeatures, ScoreFeatures, Sketch, extract, store


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_float(images):
    return images / 127.5 - 1


def test_scores_are_the_vectors_of_eq_6_whose_distance_is_the_fisher_form(bundle, images):
    metric = AFVDistance(bundle, form="fisher")
    features = ScoreFeatures(bundle)
    vectors = features(as_float(images))
    assert vectors.shape == (7, features.size)
    torch.testing.assert_close(vectors * features.size**0.5, metric.score_vectors(images), rtol=1e-4, atol=1e-4)
    finest = AFVDistance(replace(bundle, levels=(1.0,)), form="fisher")
    expected = finest(images[:1].expand(7, -1, -1, -1), images)
    torch.testing.assert_close((vectors[:1] - vectors).square().sum(1), expected, rtol=1e-4, atol=1e-6)


def test_what_is_padded_has_no_weight(bundle):
    odd = torch.randint(256, (2, 3, 33, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors, expected = ScoreFeatures(bundle)(as_float(odd)), AFVDistance(bundle, form="fisher").score_vectors(odd)
    torch.testing.assert_close(vectors * vectors.shape[1] ** 0.5, expected, rtol=1e-4, atol=1e-4)


def test_sketches_keep_inner_products_in_expectation(bundle, images):
    vectors = ScoreFeatures(bundle)(as_float(images))
    products = vectors @ vectors.T
    scale = vectors.norm(dim=1)
    errors = []
    for seed in range(30):
        sketched = ScoreFeatures(bundle, sketch=256, seed=seed)(as_float(images))
        assert sketched.shape == (7, 256)
        errors.append((sketched @ sketched.T - products) / (scale[:, None] * scale))
    errors = torch.stack(errors)
    spread = errors.std(0)
    assert spread.max() < 1.5 * (2 / 256) ** 0.5
    assert (errors.mean(0).abs() < 4 * spread / 30**0.5 + 1e-6).all()


def test_a_sketch_depends_on_its_seed_alone(bundle, images):
    first, again, other = (ScoreFeatures(bundle, sketch=64, seed=seed)(as_float(images)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_sketch_adds_every_number_once():
    sketch = Sketch(50, 8, seed=0)
    columns = sketch(torch.eye(50))
    assert torch.equal(columns.abs().sum(1), torch.ones(50))
    assert len(columns.abs().argmax(1).unique()) == 8


def test_sketches_are_no_shorter_than_a_number(bundle):
    with pytest.raises(ValueError, match="got 0"):
        ScoreFeatures(bundle, sketch=0)


def test_pooled_features_are_what_the_energy_is_linear_in(bundle, images):
    features = PooledFeatures(bundle)
    pooled = features(as_float(images))
    head = bundle.discriminator.head
    expected = bundle.discriminator.logit(as_float(images))
    energies = F.linear(pooled, head.weight.flatten(1), head.bias)[:, 0]
    torch.testing.assert_close(energies, expected.flatten(), rtol=1e-4, atol=1e-5)
    assert features.size == pooled.shape[1]


def test_pooled_features_of_every_block_end_with_those_of_the_last(bundle, images):
    last, every = PooledFeatures(bundle), PooledFeatures(bundle, every_block=True)
    pooled = every(as_float(images))
    assert pooled.shape == (7, every.size) == (7, 4 * last.size)
    assert torch.equal(pooled[:, -last.size :], last(as_float(images)))
    maps = F.leaky_relu(bundle.discriminator.blocks[0](as_float(images)), bundle.discriminator.config.slope)
    torch.testing.assert_close(pooled[:, : last.size], maps.mean((2, 3)))


def test_features_are_float32_under_autocast(bundle, images):
    pictures = as_float(images)
    with torch.autocast("cpu", torch.bfloat16):
        for features in (ScoreFeatures(bundle), ScoreFeatures(bundle, sketch=16), PooledFeatures(bundle)):
            assert features(pictures).dtype == torch.float32


def test_features_are_of_images_of_any_size(bundle):
    images = torch.rand(2, 3, 41, 50) * 2 - 1
    assert ScoreFeatures(bundle)(images).isfinite().all()
    assert PooledFeatures(bundle)(images).isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_extracting_does_not_depend_on_batches(bundle, images, batch_size):
    features = ScoreFeatures(bundle)
    together = torch.cat(list(extract(features, images, batch_size=batch_size)))
    torch.testing.assert_close(together, features(as_float(images)), rtol=1e-4, atol=1e-6)


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
