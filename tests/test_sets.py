"""Distances between sets, against batch-of-one autograd in float64."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from conftest import make_discriminator, make_images, make_statistics

from afv_metric import AFVDistance
from afv_metric.bundle import Bundle
from afv_metric.fisher import FisherEngine
from afv_metric.sets import fisher_similarity, mean_scores, set_distance
from afv_metric.statistics import collect_statistics


def _oracle_means(discriminator, images, energy):
    return [(weight.mean(0), bias.mean(0)) for weight, bias in oracle.scores(discriminator, images, energy)]


@pytest.mark.parametrize("energy", ["logit", "sigmoid"])
@pytest.mark.parametrize("shape", [{}, {"image_size": 64}, {"slope": 0.0}])
def test_mean_scores_and_distance_agree_with_autograd_on_one_image_at_a_time(energy, shape):
    discriminator = make_discriminator(**shape)
    engine = FisherEngine(discriminator.baked(), energy)
    statistics, epsilon = make_statistics(discriminator, energy), 0.03
    images = make_images(5, 40, 32, seed=3), make_images(3, 40, 32, seed=4)
    means = [mean_scores(engine, part.split(2)) for part in images]
    expected = [_oracle_means(discriminator, part, energy) for part in images]
    for ours, theirs in zip(means, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
    total, count = 0.0, 0
    for one, other, layer in zip(*expected, statistics.layers, strict=True):
        for u, v, variance in zip(one, other, (layer.weight_variance, layer.bias_variance), strict=True):
            total += float(((u - v) * oracle.inverse_root(variance, epsilon)).square().sum())
            count += variance.numel()
    distance = set_distance(*means, statistics, epsilon)
    assert distance == pytest.approx(total / count, rel=1e-9)
    assert fisher_similarity(*means, statistics, epsilon) == pytest.approx(math.exp(-10 * total / count), rel=1e-9)
    assert fisher_similarity(*means, statistics, epsilon, scale=0.5) == pytest.approx(math.exp(-total / count / 2))


def test_batches_of_any_size_give_the_same_mean():
    engine = FisherEngine(make_discriminator())
    images = make_images(7)
    whole = mean_scores(engine, [images])
    parts = mean_scores(engine, iter([images[:3], images[3:3], images[3:4], images[4:]]))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_the_mean_of_a_set_is_the_mean_of_the_statistics():
    discriminator = make_discriminator()
    statistics = make_statistics(discriminator)
    means = mean_scores(FisherEngine(discriminator), [make_images(6, seed=2)])
    for (weight, bias), layer in zip(means, statistics.layers, strict=True):
        torch.testing.assert_close(weight, layer.weight_mean)
        torch.testing.assert_close(bias, layer.bias_mean)


def test_sets_of_one_image_are_as_far_apart_as_the_images(bundle: Bundle):
    images = make_images(2).float()
    engine = FisherEngine(bundle.discriminator.baked(), bundle.energy)
    means = [mean_scores(engine, [image[None]]) for image in images]
    metric = AFVDistance(Bundle(**{**vars(bundle), "levels": (1.0,)}), form="fisher")
    expected = float(metric(images[:1], images[1:]))
    assert set_distance(*means, bundle.statistics, bundle.epsilon) == pytest.approx(expected, rel=1e-4)


def test_equal_sets_are_at_zero_and_similar(bundle: Bundle):
    means = mean_scores(FisherEngine(bundle.discriminator.baked()), [make_images(4).float()])
    assert set_distance(means, means, bundle.statistics, bundle.epsilon) == 0
    assert fisher_similarity(means, means, bundle.statistics, bundle.epsilon) == 1


def test_two_samples_of_one_distribution_differ_by_two_over_n():
    engine = FisherEngine(make_discriminator())
    epsilon = 0.03
    statistics = collect_statistics(engine, (make_images(100, seed=seed) for seed in range(5)))
    kept = []
    for layer in statistics.layers:
        for variance in (layer.weight_variance, layer.bias_variance):
            kept.append((variance * oracle.inverse_root(variance, epsilon).square()).flatten())
    share = float(torch.cat(kept).mean())
    assert 0.5 < share < 1
    count = 10
    means = [mean_scores(engine, [make_images(count, seed=seed)]) for seed in range(100, 140)]
    distances = [
        set_distance(one, other, statistics, epsilon) for one, other in zip(means[::2], means[1::2], strict=True)
    ]
    assert sum(distances) / len(distances) == pytest.approx(2 / count * share, rel=0.2)


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        mean_scores(FisherEngine(make_discriminator()), [make_images(0)])
