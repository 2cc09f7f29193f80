import oracle
import pytest
import torch
from conftest import make_discriminator, make_images
from hypothesis import given
from hypothesis import strategies as st

from afv_metric.fisher.engine import FisherEngine
from afv_metric.networks import Discriminator, DiscriminatorConfig


def _scores(engine, images, weights=None):
    seen = engine(images, weights)
    return [engine.score(signals) for signals in engine.signals(seen, weighted=weights is not None)][::-1]


def _assert_same(ours, theirs, tolerance=1e-11):
    for (weight, bias), (expected_weight, expected_bias) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected_weight, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(bias, expected_bias, rtol=tolerance, atol=tolerance)


@given(
    count=st.integers(1, 3),
    width=st.integers(1, 5),
    height=st.sampled_from([32, 36, 48]),
    breadth=st.sampled_from([32, 40]),
    slope=st.sampled_from([0.0, 0.2]),
    energy=st.sampled_from(["logit", "sigmoid"]),
    seed=st.integers(0, 5),
)
def test_scores_are_the_gradients_of_autograd(count, width, height, breadth, slope, energy, seed):
    discriminator = make_discriminator(width, seed, slope=slope)
    images = make_images(count, height, breadth, seed)
    _assert_same(
        _scores(FisherEngine(discriminator.baked(), energy), images), oracle.scores(discriminator, images, energy)
    )


def test_scores_of_the_larger_network():
    discriminator = make_discriminator(3, image_size=64)
    images = make_images(2, 64, 72)
    _assert_same(_scores(FisherEngine(discriminator.baked()), images), oracle.scores(discriminator, images))


@pytest.mark.parametrize("energy", ["logit", "sigmoid"])
def test_scores_with_weighted_positions(energy):
    discriminator, images = make_discriminator(), make_images(2, 32, 40)
    weights = make_images(2, 8, 10, seed=3)[:, :1] + 1
    ours = _scores(FisherEngine(discriminator.baked(), energy), images, weights)
    _assert_same(ours, oracle.scores(discriminator, images, energy, weights))


def test_a_pass_that_stopped_early_has_no_energy():
    engine = FisherEngine(make_discriminator().baked())
    seen = engine(make_images(), depth=2)
    assert len(seen.blocks) == 2
    with pytest.raises(ValueError, match="no energy"):
        next(engine.signals(seen))


@pytest.mark.parametrize("layer", [None, *range(9)])
def test_gradients_of_some_inputs_are_pulled_back(layer):
    engine, images = FisherEngine(make_discriminator().baked()), make_images()
    seen = engine(images, depth=3)
    inputs = {signals.layer: signals.inputs for signals in engine.inputs(seen)}
    wanted = {} if layer is None else {layer: torch.randn_like(inputs[layer])}
    ours = engine.pull_back(seen, wanted)
    images.requires_grad_()
    seen = engine(images, depth=3)
    total = sum(
        (signals.inputs * wanted[signals.layer]).sum() for signals in engine.inputs(seen) if signals.layer in wanted
    )
    expected = torch.autograd.grad(total, images)[0] if wanted else torch.zeros_like(images)
    torch.testing.assert_close(ours, expected)


def test_float32_is_close_to_float64():
    discriminator, images = make_discriminator(8), make_images()
    exact = _scores(FisherEngine(discriminator.baked()), images)
    single = _scores(FisherEngine(discriminator.baked()).float(), images.float())
    for (weight, _), (expected, _) in zip(single, exact, strict=True):
        torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


def test_delta_does_not_depend_on_the_area():
    engine = FisherEngine(make_discriminator())
    tile = torch.full((1, 3, 64, 64), 0.3, dtype=torch.float64)
    small = list(engine.signals(engine(tile)))
    large = list(engine.signals(engine(tile.repeat(1, 1, 2, 2))))
    assert len(small) == len(engine.layers)
    for one, other in zip(small, large, strict=True):
        middle, middle2 = one.delta.shape[2] // 2, other.delta.shape[2] // 2
        torch.testing.assert_close(one.delta[..., middle, middle], other.delta[..., middle2, middle2])


def test_pull_back_is_the_gradient_of_an_objective_of_the_inputs():
    discriminator = make_discriminator()
    engine = FisherEngine(discriminator.baked())
    images = make_images(2, 32, 36).requires_grad_()
    with torch.enable_grad():
        inputs = {signals.layer: signals.inputs for signals in engine.inputs(engine(images))}
        objective = sum(value.sin().sum() for value in inputs.values())
    (expected,) = torch.autograd.grad(objective, images)
    of_inputs = {layer: value.detach().cos() for layer, value in inputs.items()}
    torch.testing.assert_close(engine.pull_back(engine(images.detach()), of_inputs), expected, rtol=1e-10, atol=1e-10)


def test_the_engine_has_buffers_and_no_parameters():
    engine = FisherEngine(make_discriminator())
    assert list(engine.parameters()) == []
    assert engine.state_dict() == {}
    assert engine.discriminator.head.weight.dtype == torch.float64


def test_networks_that_are_not_baked_are_refused():
    with pytest.raises(ValueError, match=r"give it discriminator\.baked\(\)"):
        FisherEngine(Discriminator(DiscriminatorConfig(width=2)))


def test_unknown_energy_is_refused():
    with pytest.raises(ValueError, match="energy must be"):
        FisherEngine(make_discriminator(2), "probability")
