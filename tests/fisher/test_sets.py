"""Distances between sets, against batch-of-one autograd in float64."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from conftest import make_discriminator, make_images, make_statistics

from afv_metric import AFVDistance
from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import (
    BlockScores,
    SetComparison,
    block_scores,
    compare_sets,
    fisher_similarity,
    mean_scores,
    set_distance,
    similarity_at,
)
from afv_metric.fisher.statistics import FisherStatistics, LayerStatistics, collect_statistics


def _oracle_means(discriminator, images, output):
    return [(weight.mean(0), bias.mean(0)) for weight, bias in oracle.scores(discriminator, images, output)]


@pytest.mark.parametrize("output", ["logit", "sigmoid"])
@pytest.mark.parametrize("shape", [{}, {"image_size": 64}, {"slope": 0.0}])
def test_mean_scores_and_distance_agree_with_autograd_on_one_image_at_a_time(output, shape):
    discriminator = make_discriminator(**shape)
    engine = FisherEngine(discriminator.baked(), output)
    statistics, epsilon = make_statistics(discriminator, output), 0.03
    images = make_images(5, 40, 32, seed=3), make_images(3, 40, 32, seed=4)
    means = [mean_scores(engine, part.split(2)) for part in images]
    expected = [_oracle_means(discriminator, part, output) for part in images]
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


def test_batches_of_any_size_give_the_same_mean():
    engine = FisherEngine(make_discriminator())
    images = make_images(7)
    whole = mean_scores(engine, [images])
    parts = mean_scores(engine, iter([images[:3], images[3:3], images[3:4], images[4:]]))
    assert len(whole) == len(engine.weight_shapes)
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
    engine = FisherEngine(bundle.discriminator.baked(), bundle.output)
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


def _oracle_vectors(discriminator, images, statistics, epsilon):
    """Whitened scores of all images, divided by the root of P, (N, P)."""
    columns = []
    for scores, layer in zip(oracle.scores(discriminator, images), statistics.layers, strict=True):
        for u, variance in zip(scores, (layer.weight_variance, layer.bias_variance), strict=True):
            columns.append((u * oracle.inverse_root(variance, epsilon)).flatten(1))
    whitened = torch.cat(columns, 1)
    return whitened / whitened.shape[1] ** 0.5


def test_with_blocks_of_one_image_the_correction_is_the_u_statistic():
    discriminator, epsilon = make_discriminator(), 0.03
    engine, statistics = FisherEngine(discriminator.baked()), make_statistics(discriminator)
    sets = make_images(6, seed=3), make_images(4, seed=4)
    x, y = (_oracle_vectors(discriminator, images, statistics, epsilon) for images in sets)
    found = compare_sets(
        *(block_scores(engine, [[image[None]] for image in part]) for part in sets), statistics, epsilon
    )
    within = [
        sum(v[i] @ v[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for v, n in ((x, 6), (y, 4))
    ]
    unbiased = within[0] + within[1] - 2 * x.mean(0) @ y.mean(0)
    assert found.counts == (6, 4)
    assert found.distance == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()), rel=1e-9)
    assert found.corrected == pytest.approx(float(unbiased), rel=1e-9)
    assert found.biases == pytest.approx([float(v.var(0).sum() / len(v)) for v in (x, y)], rel=1e-9)


def test_blocks_of_unequal_sizes_count_by_their_images():
    discriminator, epsilon = make_discriminator(), 0.03
    engine, statistics = FisherEngine(discriminator.baked()), make_statistics(discriminator)
    sets, sizes = (make_images(7, seed=3), make_images(5, seed=4)), ([1, 4, 2], [3, 2])
    blocks = [[block.split(2) for block in part.split(size)] for part, size in zip(sets, sizes, strict=True)]
    found = compare_sets(*(block_scores(engine, [*part, []]) for part in blocks), statistics, epsilon)
    assert found.distance == pytest.approx(
        set_distance(*(mean_scores(engine, [part]) for part in sets), statistics, epsilon), rel=1e-9
    )
    for bias, part, size in zip(found.biases, sets, sizes, strict=True):
        vectors = _oracle_vectors(discriminator, part, statistics, epsilon)
        gaps = [len(block) * (block.mean(0) - vectors.mean(0)).square().sum() for block in vectors.split(size)]
        assert bias == pytest.approx(float(sum(gaps)) / (len(size) - 1) / len(part), rel=1e-9)


def test_of_two_samples_of_one_distribution_only_the_corrected_distance_is_centred_at_zero():
    engine, epsilon = FisherEngine(make_discriminator()), 0.03
    statistics = collect_statistics(engine, [make_images(300)])
    sets = [block_scores(engine, [[block] for block in make_images(12, seed=100 + i).split(2)]) for i in range(60)]
    found = [compare_sets(a, b, statistics, epsilon, resamples=50) for a, b in zip(sets[::2], sets[1::2], strict=True)]
    plain, corrected = (torch.tensor([getattr(one, key) for one in found]) for key in ("distance", "corrected"))
    error = float(corrected.std()) / len(found) ** 0.5
    assert abs(float(corrected.mean())) < 3 * error
    assert float(plain.mean()) > 10 * error


@pytest.mark.parametrize("distance", [0.0, 0.02, 0.3])
def test_nine_of_ten_intervals_and_more_hold_the_distance_and_are_no_wider_than_they_need(distance):
    size, per_block, blocks, trials = 50, 3, 32, 500
    torch.manual_seed(0)
    ones = torch.ones(size, 1, 1, 1, dtype=torch.float64)
    # The biases never differ, and count as one parameter more.
    layer = LayerStatistics(ones, ones, torch.zeros(1), torch.ones(1), torch.eye(1), torch.eye(1))
    statistics = FisherStatistics(2, (layer,))

    def sample(shift):
        scores = torch.randn(blocks, per_block, size, dtype=torch.float64) + shift
        means = [[(mean.view(-1, 1, 1, 1), torch.zeros(1, dtype=torch.float64))] for mean in scores.mean(1)]
        return BlockScores([per_block] * blocks, means)

    shift = (distance * (size + 1) / size) ** 0.5
    found = [compare_sets(sample(0), sample(shift), statistics, 0.0, resamples=300) for _ in range(trials)]
    hits = sum(one.interval[0] <= distance <= one.interval[1] for one in found)
    assert 0.9 * trials <= hits
    corrected = torch.tensor([one.corrected for one in found])
    assert float(corrected.mean()) == pytest.approx(distance, abs=4 * float(corrected.std()) / trials**0.5)
    width = sum(one.interval[1] - one.interval[0] for one in found) / trials
    assert 0.8 < width / (3.92 * float(corrected.std())) < 1.5


def test_the_seed_decides_on_the_interval_alone():
    engine = FisherEngine(make_discriminator())
    statistics = make_statistics(make_discriminator())
    sets = [block_scores(engine, [[image[None]] for image in make_images(4, seed=seed)]) for seed in (1, 2)]
    one, same, other = (compare_sets(*sets, statistics, 0.03, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.interval != other.interval
    assert one.corrected == other.corrected


def test_one_set_twice_is_at_zero_and_its_correction_below():
    engine = FisherEngine(make_discriminator())
    scores = block_scores(engine, [[image[None]] for image in make_images(5)])
    found = compare_sets(scores, scores, make_statistics(make_discriminator()), 0.03)
    assert found.distance == 0
    assert found.corrected == -sum(found.biases) < 0


def test_one_block_is_refused():
    engine = FisherEngine(make_discriminator())
    one, two = (block_scores(engine, [[make_images(1)], *more]) for more in ([[]], [[make_images(1)]]))
    with pytest.raises(ValueError, match=r"two or more, got \[2, 1\]"):
        compare_sets(two, one, make_statistics(make_discriminator()), 0.03)


def test_images_needed():
    found = SetComparison((100, 50), 0.05, (0.01, 0.02), (0.01, 0.03))
    assert found.images_for(0.1) == 1000  # each image adds 1 + 1 to 100 D
    assert SetComparison((100, 50), 0.05, (0.01, 0.02), (0.0, 0.03)).images_for(0.1) is None
    assert similarity_at(found.corrected) == pytest.approx(math.exp(-0.2))
    assert similarity_at(-1) == 1
