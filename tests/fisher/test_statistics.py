import oracle
import pytest
import torch
from conftest import make_discriminator, make_images
from hypothesis import given
from hypothesis import strategies as st

from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import collect_statistics, inverse_root, inverse_root_matrix


@pytest.mark.parametrize("output", ["logit", "sigmoid"])
def test_statistics_are_those_of_the_oracle(output):
    discriminator, images = make_discriminator(3), make_images(5)
    statistics = collect_statistics(FisherEngine(discriminator.baked(), output), images.split(2))
    assert statistics.count == 5
    for layer, (weight, bias) in zip(statistics.layers, oracle.scores(discriminator, images, output), strict=True):
        torch.testing.assert_close(layer.weight_mean, weight.mean(0))
        torch.testing.assert_close(layer.weight_variance, weight.var(0, correction=0))
        torch.testing.assert_close(layer.bias_mean, bias.mean(0))
        torch.testing.assert_close(layer.bias_variance, bias.var(0, correction=0), atol=1e-15, rtol=1e-7)


def test_kronecker_factors_are_second_moments_of_the_untied_network():
    discriminator, images = make_discriminator(3), make_images(2)
    statistics = collect_statistics(FisherEngine(discriminator.baked()), [images])
    untied = [oracle.untied_scores(discriminator, image[None]) for image in images]
    for index, layer in enumerate(statistics.layers):
        outer = torch.cat([one[index] for one in untied])  # positions, C_out, C_in, offsets
        centre = outer[..., outer.shape[-1] // 2]
        # E over positions of |delta a^T|_F^2 for independent delta and a would be the product of the traces; here the
        # traces of delta delta^T and a a^T are compared through vectors recovered from the outer product itself.
        deltas = centre.norm(dim=2)
        inputs = next(s.inputs for s in _signals(discriminator, images) if s.layer == index)
        lengths = inputs.norm(dim=1).flatten()
        torch.testing.assert_close((deltas / lengths[:, None]).square().mean(0), layer.delta_factor.diagonal())
        torch.testing.assert_close(lengths.square().mean(), layer.input_factor.trace())
        torch.testing.assert_close(layer.input_factor, layer.input_factor.T)


def _signals(discriminator, images):
    return FisherEngine(discriminator.baked()).signals(images)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_shards_merge_to_the_whole(sizes):
    engine = FisherEngine(make_discriminator(2))
    images = make_images(sum(sizes))
    whole = collect_statistics(engine, [images])
    shards = [collect_statistics(engine, [part]) for part in images.split(sizes)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    assert merged.count == whole.count
    for one, other in zip(merged.layers, whole.layers, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-16)


def test_statistics_are_accumulated_in_float64():
    engine = FisherEngine(make_discriminator(2).float())
    statistics = collect_statistics(engine, [make_images(2).float()])
    assert {value.dtype for layer in statistics.layers for value in layer} == {torch.float64}


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        collect_statistics(FisherEngine(make_discriminator(2)), [])


def test_epsilon_policy_is_relative_and_gives_no_weight_to_no_information():
    variance = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    root = inverse_root(variance, 0.03)
    torch.testing.assert_close(root, 1 / (variance + 0.03 * 5 / 3).sqrt())
    torch.testing.assert_close(inverse_root(variance * 100, 0.03), root / 10)
    assert inverse_root(torch.zeros(4), 0.03).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_inverse_root_of_a_factor(rank):
    torch.manual_seed(0)
    half = torch.randn(5, rank, dtype=torch.float64)
    factor = half @ half.T
    root = inverse_root_matrix(factor, 0.1)
    expected = oracle.inverse_root_matrix(factor, 0.1)
    torch.testing.assert_close(root, expected, rtol=1e-6, atol=1e-6)
    if rank == 0:
        assert not root.any()
