from dataclasses import replace

import pytest
import torch

from afv_metric import AFVDistance
from afv_metric.fisher.vectors import ScoreFeatures, Sketch, extract


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


def test_features_are_float32_under_autocast(bundle, images):
    pictures = as_float(images)
    with torch.autocast("cpu", torch.bfloat16):
        for features in (ScoreFeatures(bundle), ScoreFeatures(bundle, sketch=16)):
            assert features(pictures).dtype == torch.float32


def test_features_are_of_images_of_any_size(bundle):
    images = torch.rand(2, 3, 41, 50) * 2 - 1
    assert ScoreFeatures(bundle)(images).isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_extracting_does_not_depend_on_batches(bundle, images, batch_size):
    features = ScoreFeatures(bundle)
    together = torch.cat(list(extract(features, images, batch_size=batch_size)))
    torch.testing.assert_close(together, features(as_float(images)), rtol=1e-4, atol=1e-6)
