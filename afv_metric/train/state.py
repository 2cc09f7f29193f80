"""All that training changes: what a checkpoint holds."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from afv_metric.bundles.bundle import Bundle
from afv_metric.distributed import average, sync_batch_norm
from afv_metric.networks import Discriminator, Generator
from afv_metric.train.recipes import Recipe

__all__ = ["State"]

_NUMBERS = ("iteration", "seconds", "rate_factor")


class State:
    """The two networks, their optimizers and their averages.

    Random numbers are no part of it: each is a function of seed, iteration and process, see :mod:`.loop`.

    Attributes:
        discriminator, generator: D and G, in training.
        averaged_discriminator: Polyak average of D's baked weights: the metric.
        averaged_generator: Polyak average of G, in evaluation mode.
        iteration: Iterations done.
        seconds: Time they took.
        rate_factor: Factor on both learning rates, below 1 after the run was rolled back.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
        self.discriminator = Discriminator(recipe.discriminator).to(**layout)
        self.generator = Generator(recipe.generator).to(**layout)
        sync_batch_norm(self.generator)
        self.restart_averages()
        adam: dict[str, Any] = {"betas": (recipe.beta1, recipe.beta2), "foreach": True}
        weights = self.discriminator.parameters(), self.generator.parameters()
        self.discriminator_optimizer = torch.optim.Adam(weights[0], recipe.discriminator_rate, **adam)
        self.generator_optimizer = torch.optim.Adam(weights[1], recipe.generator_rate, **adam)
        scaled = recipe.precision == "float16"
        self.discriminator_scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.generator_scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.iteration = 0
        self.seconds = 0.0
        self.rate_factor = 1.0

    def restart_averages(self) -> None:
        """Let both averages begin at the present weights."""
        self.averaged_discriminator = self.discriminator.baked().requires_grad_(False)
        self.averaged_generator = deepcopy(self.generator).requires_grad_(False).eval()

    def start_from(self, bundle: Bundle) -> None:
        """Give both networks the weights of a bundle, which may be for images of other channels.

        Raises:
            ValueError: If the bundle has no generator, or its networks have other shapes.
        """
        if bundle.generator is None:
            raise ValueError("to start from a bundle its generator is needed: load_bundle(..., generator=True)")
        bundle = bundle.for_channels(self.discriminator.config.channels)
        assert bundle.generator is not None
        try:
            self.discriminator.load_baked(bundle.discriminator.state_dict())
            self.generator.load_state_dict(bundle.generator.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the networks of the bundle {bundle.name} have other shapes than the recipe: "
                f"{bundle.discriminator.config} and {bundle.generator.config}"
            ) from error
        self.restart_averages()

    def modules(self) -> dict[str, Any]:
        """Everything with a ``state_dict``, by name."""
        return {name: value for name, value in vars(self).items() if hasattr(value, "state_dict")}

    def to_checkpoint(self, recipe: Recipe) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        saved: dict[str, Any] = {name: value.state_dict() for name, value in self.modules().items()}
        return saved | {name: getattr(self, name) for name in _NUMBERS} | {"recipe": asdict(recipe)}

    def from_checkpoint(self, saved: dict[str, Any]) -> None:
        """Take up what :meth:`to_checkpoint` gave."""
        for name, value in self.modules().items():
            value.load_state_dict(saved[name])
        vars(self).update({name: saved[name] for name in _NUMBERS})

    def lower_rates(self, factor: float) -> None:
        """Multiply both learning rates."""
        self.rate_factor *= factor
        for optimizer in (self.discriminator_optimizer, self.generator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def step(self, name: str, loss: Tensor) -> None:
        """One step of the ``"discriminator"`` or the ``"generator"``, on gradients averaged over all processes."""
        optimizer, scaler = getattr(self, f"{name}_optimizer"), getattr(self, f"{name}_scaler")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        average(weight.grad for weight in getattr(self, name).parameters() if weight.grad is not None)
        scaler.step(optimizer)
        scaler.update()

    @torch.no_grad()
    def update_averages(self, recipe: Recipe) -> None:
        """Move both averages towards the present weights."""
        # Early on the horizon of the average grows with the run, so that it forgets the random start.
        ramp = (1 + self.iteration) / (10 + self.iteration)
        baked = self.discriminator.baked_state()
        names, averages = zip(*self.averaged_discriminator.named_parameters(), strict=True)
        share = 1 - min(recipe.discriminator_average, ramp)
        torch._foreach_lerp_(averages, [baked[name] for name in names], share)
        share = 1 - min(recipe.generator_average, ramp)
        torch._foreach_lerp_(list(self.averaged_generator.parameters()), list(self.generator.parameters()), share)
        for kept, buffer in zip(self.averaged_generator.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(buffer)

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        weights = [*self.discriminator.parameters(), *self.generator.parameters()]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())
