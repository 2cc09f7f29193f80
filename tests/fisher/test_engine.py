import copy
import pickle

import oracle
import pytest
import torch
from conftest import make_discriminator, make_images
from hypothesis import given
from hypothesis import strategies as st

from afv_metric.fisher.engine import FisherEngine
from afv_metric.networks import Discriminator, DiscriminatorConfig


def _scores(engine, images, weights=None):
    return [engine.score(signals) for signals in engine.signals(images, weights)][::-1]


def _assert_same(ours, theirs, tolerance=1e-11):
    for (weight, bias), (expected_weight, expected_bias) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected_weight, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(bias, expected_bias, rtol=tolerance, atol=tolerance)


@given(
    count=st.integers(1, 3),
    width=st.sampled_from([1, 3, (2, 3, 4, 5)]),
    strided_stem=st.booleans(),
    height=st.sampled_from([32, 36, 48]),
    breadth=st.sampled_from([32, 40]),
    slope=st.sampled_from([0.0, 0.2]),
    output=st.sampled_from(["logit", "sigmoid"]),
    seed=st.integers(0, 5),
)
def test_scores_are_the_gradients_of_autograd(count, width, strided_stem, height, breadth, slope, output, seed):
    discriminator = make_discriminator(width, seed, slope=slope, strided_stem=strided_stem)
    images = make_images(count, height, breadth, seed)
    _assert_same(
        _scores(FisherEngine(discriminator.baked(), output), images), oracle.scores(discriminator, images, output)
    )


def test_scores_of_the_larger_network():
    discriminator = make_discriminator(3, image_size=64)
    images = make_images(2, 64, 72)
    _assert_same(_scores(FisherEngine(discriminator.baked()), images), oracle.scores(discriminator, images))


@pytest.mark.parametrize("output", ["logit", "sigmoid"])
def test_scores_with_weighted_positions(output):
    discriminator, images = make_discriminator(), make_images(2, 32, 40)
    weights = make_images(2, 8, 10, seed=3)[:, :1] + 1
    ours = _scores(FisherEngine(discriminator.baked(), output), images, weights)
    _assert_same(ours, oracle.scores(discriminator, images, output, weights))


def test_logits_are_those_of_the_network():
    discriminator, images = make_discriminator((2, 3, 4, 5), strided_stem=True), make_images(2, 32, 40)
    torch.testing.assert_close(FisherEngine(discriminator).logit(images), discriminator.logit(images))


@pytest.mark.parametrize("strided_stem", [False, True])
def test_reductions_are_those_of_the_maps(strided_stem):
    engine = FisherEngine(make_discriminator(2, image_size=64, strided_stem=strided_stem))
    for layer, maps in engine.inputs(make_images(1, 64, 64)):
        assert 64 // maps.shape[2] == engine.reduction(layer)


def test_the_forward_pass_goes_no_further_than_it_is_asked(monkeypatch):
    engine, convolved = FisherEngine(make_discriminator(2)), []
    convolve = engine._convolve
    monkeypatch.setattr(engine, "_convolve", lambda layer, maps: convolved.append(layer) or convolve(layer, maps))
    assert next(inputs for layer, inputs in engine.inputs(make_images()) if layer == 3).shape == (3, 2, 16, 16)
    assert convolved == [0, 1, 2]


def test_a_factor_scales_delta():
    engine, images = FisherEngine(make_discriminator(2)), make_images(2)
    plain = engine.signals(images)
    scaled = engine.signals(images, factor=torch.tensor([2.0, -1.0], dtype=torch.float64))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other.delta, one.delta * torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))


def test_float32_is_close_to_float64():
    discriminator, images = make_discriminator(8), make_images()
    exact = _scores(FisherEngine(discriminator.baked()), images)
    single = _scores(FisherEngine(discriminator.baked()), images.float())
    for (weight, _), (expected, _) in zip(single, exact, strict=True):
        torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


def test_delta_does_not_depend_on_the_area():
    engine = FisherEngine(make_discriminator())
    tile = torch.full((1, 3, 64, 64), 0.3, dtype=torch.float64)
    small = list(engine.signals(tile))
    large = list(engine.signals(tile.repeat(1, 1, 2, 2)))
    assert len(small) == len(engine.weight_shapes)
    for one, other in zip(small, large, strict=True):
        middle, middle2 = one.delta.shape[2] // 2, other.delta.shape[2] // 2
        torch.testing.assert_close(one.delta[..., middle, middle], other.delta[..., middle2, middle2])


def test_the_weights_are_copies_that_follow_the_images():
    discriminator, images = make_discriminator(2), make_images(1)
    engine = FisherEngine(discriminator)
    before = engine.logit(images)
    single = engine.logit(images.float())
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
    assert single.dtype == torch.float32
    assert torch.equal(engine.logit(images), before)
    assert torch.equal(copy.deepcopy(engine).logit(images), before)
    assert torch.equal(pickle.loads(pickle.dumps(engine)).logit(images), before)


def test_networks_that_are_not_baked_are_refused():
    with pytest.raises(ValueError, match=r"give it discriminator\.baked\(\)"):
        FisherEngine(Discriminator(DiscriminatorConfig(width=2)))


def test_unknown_output_is_refused():
    with pytest.raises(ValueError, match="output must be"):
        FisherEngine(make_discriminator(2), "probability")
