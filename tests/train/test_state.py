import dataclasses

import pytest
import torch

from afv_metric.train.state import State

CPU = torch.device("cpu")


def test_averages_are_outside_of_autograd(recipe):
    state = State(recipe, CPU)
    state.update_averages(recipe)
    averages = (*state.averaged_discriminator.parameters(), *state.averaged_generator.parameters())
    assert not any(average.requires_grad for average in averages)


def test_the_average_moves_by_its_decay(recipe):
    recipe = dataclasses.replace(recipe, generator_average=0.75, discriminator_average=0.5, spectral_norm=False)
    state = State(recipe, CPU)
    state.iteration = 1_000
    before = state.generator.norm.weight.detach().clone(), state.discriminator.head.weight.detach().clone()
    with torch.no_grad():
        state.generator.norm.weight += 4.0
        state.discriminator.head.weight += 2.0
    state.update_averages(recipe)
    torch.testing.assert_close(state.averaged_generator.norm.weight, before[0] + 1.0)
    torch.testing.assert_close(state.averaged_discriminator.head.weight, (before[1] + 1.0) * recipe.gain)


def test_without_averaging_the_metric_is_the_latest_network(recipe):
    recipe = dataclasses.replace(recipe, discriminator_average=0.0)
    state = State(recipe, CPU)
    state.step("discriminator", state.discriminator(torch.rand(2, 3, 32, 32)).mean())
    state.update_averages(recipe)
    for name, value in state.discriminator.baked_state().items():
        assert torch.equal(state.averaged_discriminator.state_dict()[name], value)


def test_a_checkpoint_holds_everything(recipe):
    state = State(recipe, CPU)
    state.step("discriminator", state.discriminator(torch.rand(2, 3, 32, 32)).mean())
    state.lower_rates(0.25)
    state.iteration, state.seconds = 7, 1.5
    saved = state.to_checkpoint(recipe)
    other = State(dataclasses.replace(recipe, seed=1), CPU)
    other.from_checkpoint(saved)
    assert (other.iteration, other.seconds, other.rate_factor) == (7, 1.5, 0.25)
    assert other.discriminator_optimizer.param_groups[0]["lr"] == recipe.discriminator_rate / 4
    for name, module in state.modules().items():
        for key, value in module.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(other.modules()[name].state_dict()[key], value), (name, key)


def test_weights_that_are_not_finite_are_seen(recipe):
    state = State(recipe, CPU)
    assert state.is_finite()
    with torch.no_grad():
        state.discriminator.head.bias.fill_(torch.nan)
    assert not state.is_finite()


def test_a_bundle_of_another_shape_is_refused(recipe, bundle):
    with pytest.raises(ValueError, match="have other shapes than the recipe"):
        State(dataclasses.replace(recipe, width=5), CPU).start_from(bundle)
    with pytest.raises(ValueError, match="its generator is needed"):
        State(recipe, CPU).start_from(dataclasses.replace(bundle, generator=None))
