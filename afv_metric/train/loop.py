"""The training loop: one step of the generator and one of the discriminator an iteration."""

from __future__ import annotations

import json
import logging
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from afv_metric.bundle import Bundle
from afv_metric.files import replacing
from afv_metric.networks import Discriminator, Generator
from afv_metric.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from afv_metric.train.data import augment, load_images
from afv_metric.train.losses import discriminator_loss, generator_loss, pull_to_average
from afv_metric.train.negatives import corrupt
from afv_metric.train.recipes import Recipe

__all__ = ["DivergenceError", "save_grid", "train"]

_AVERAGE_EVERY = 4  # iterations; the averages move too slowly for more to matter
_log = logging.getLogger(__name__)


class DivergenceError(RuntimeError):
    """Training produced non-finite losses; the last checkpoint is from before that."""


class _State:
    """All that training changes: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
        self.discriminator = Discriminator(recipe.discriminator).to(**layout)
        self.generator = Generator(recipe.generator).to(**layout)
        self.restart_averages()
        betas = (recipe.beta1, recipe.beta2)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), recipe.discriminator_rate, betas, foreach=True
        )
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), recipe.generator_rate, betas, foreach=True
        )
        self.iteration = 0
        self.seconds = 0.0

    def restart_averages(self) -> None:
        self.averaged_discriminator = self.discriminator.baked().requires_grad_(False)
        self.averaged_generator = deepcopy(self.generator).requires_grad_(False).eval()

    def modules(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if hasattr(value, "state_dict")}

    def to_checkpoint(self, recipe: Recipe) -> dict[str, Any]:
        saved: dict[str, Any] = {name: value.state_dict() for name, value in self.modules().items()}
        saved |= {"iteration": self.iteration, "seconds": self.seconds, "recipe": asdict(recipe)}
        saved["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            saved["random_cuda"] = torch.cuda.get_rng_state_all()
        return saved

    def from_checkpoint(self, saved: dict[str, Any]) -> None:
        for name, value in self.modules().items():
            value.load_state_dict(saved[name])
        self.iteration, self.seconds = saved["iteration"], saved["seconds"]
        torch.set_rng_state(saved["random"])
        if torch.cuda.is_available() and "random_cuda" in saved:
            torch.cuda.set_rng_state_all(saved["random_cuda"])

    @torch.no_grad()
    def update_averages(self, recipe: Recipe) -> None:
        # Early on the horizon of the average grows with the run, so that it forgets the random start.
        ramp = (1 + self.iteration) / (10 + self.iteration)
        current = self.discriminator.baked_state()
        for name, average in self.averaged_discriminator.named_parameters():
            decay = min(recipe.discriminator_average, ramp)
            average.lerp_(current[name], 1 - decay**_AVERAGE_EVERY)
        decay = min(recipe.generator_average, ramp)
        for mean, weight in zip(self.averaged_generator.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay**_AVERAGE_EVERY)
        for kept, buffer in zip(self.averaged_generator.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(buffer)


def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    init: Bundle | None = None,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Path:
    """Train a discriminator and a generator, or go on with a run that was interrupted.

    Args:
        recipe: All settings. A run can only be resumed with the settings it began with, except its length and
            its intervals.
        data: Folder of images.
        out: Folder of the run; a checkpoint in it is resumed.
        init: Bundle, with its generator, whose two networks a new run starts from.
        device: Where to train.
        quiet: Show no progress bars.

    Returns:
        The folder of the run, with ``latest.pt``, ``stats.jsonl``, ``recipe.json`` and ``samples-*.png``.

    Raises:
        ValueError: If the folder holds a run with other settings, naming them, or the data are too few.
        DivergenceError: If a loss is not finite.
    """
    device, out = torch.device(device), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state = _State(recipe, device)
    checkpoint = latest_checkpoint(out)
    if checkpoint is not None:
        saved = load_checkpoint(checkpoint)
        _refuse_other_settings(recipe, saved["recipe"])
    images = load_images(data, 2 * recipe.image_size, quiet=quiet)
    if checkpoint is not None:
        state.from_checkpoint(saved)
        _log.info("resuming %s at iteration %d", out, state.iteration)
    elif init is not None:
        _start_from(state, init)
    with replacing(out / "recipe.json") as temporary:
        temporary.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    fixed_latents = state.generator.sample_latents(64, generator=torch.Generator().manual_seed(recipe.seed))

    bar = tqdm(total=recipe.iterations, initial=state.iteration, desc="training", disable=quiet, unit="it")
    began = time.monotonic() - state.seconds
    with bar:
        while state.iteration < recipe.iterations:
            statistics = _iterate(state, recipe, images, device)
            state.iteration += 1
            state.seconds = time.monotonic() - began
            bar.update()
            if state.iteration % recipe.log_interval == 0:
                _log_statistics(out, state, statistics)
                bar.set_postfix({name: f"{float(value):.2f}" for name, value in statistics.items()})
            if state.iteration % recipe.sample_interval == 0:
                save_grid(state.averaged_generator, fixed_latents, out / f"samples-{state.iteration:07d}.png")
            milestone = state.iteration % recipe.milestone_interval == 0
            if milestone or state.iteration % recipe.checkpoint_interval == 0:
                save_checkpoint(out, state.to_checkpoint(recipe), milestone=milestone)
    save_checkpoint(out, state.to_checkpoint(recipe))
    save_grid(state.averaged_generator, fixed_latents, out / f"samples-{state.iteration:07d}.png")
    return out


def _start_from(state: _State, bundle: Bundle) -> None:
    """Give both networks the weights of a bundle."""
    if bundle.generator is None:
        raise ValueError("to start from a bundle its generator is needed: load_bundle(..., generator=True)")
    try:
        state.discriminator.load_baked(bundle.discriminator.state_dict())
        state.generator.load_state_dict(bundle.generator.state_dict())
    except RuntimeError as error:
        shapes = bundle.discriminator.config, bundle.generator.config
        raise ValueError(
            f"the networks of the bundle {bundle.name} have other shapes than the recipe: {shapes[0]} and {shapes[1]}"
        ) from error
    state.restart_averages()


def _iterate(state: _State, recipe: Recipe, images: Tensor, device: torch.device) -> dict[str, Tensor]:
    """One iteration; returns the losses and mean energies."""
    discriminator, generator = state.discriminator, state.generator
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    chosen = torch.randint(len(images), (recipe.batch_size,))
    real = augment(images[chosen].to(device).float() / 127.5 - 1, recipe.image_size, recipe.augmentation)

    discriminator.requires_grad_(False)
    latents = generator.sample_latents(recipe.batch_size)
    with bfloat16:
        fake = generator(latents)
        energies = discriminator(fake)
    loss_generator = generator_loss(recipe.loss, energies.float())
    if recipe.gamma:
        with torch.no_grad():
            averaged = state.averaged_generator(latents)
        loss_generator = loss_generator + recipe.gamma * pull_to_average(fake.float(), averaged, recipe.noise_std)
    _step(state.generator_optimizer, loss_generator)

    discriminator.requires_grad_(True)
    kinds = [real, fake.detach().float()]
    corrupted = round(recipe.negatives * recipe.batch_size)
    if corrupted:
        kinds.append(corrupt(real[torch.randperm(len(real))[:corrupted]]))
    with bfloat16:
        energies = discriminator(torch.cat(kinds))
    of_real, *of_negatives = energies.float().split([len(kind) for kind in kinds])
    loss_discriminator = discriminator_loss(recipe.loss, of_real, of_negatives)
    _step(state.discriminator_optimizer, loss_discriminator)

    if state.iteration % _AVERAGE_EVERY == 0:
        state.update_averages(recipe)
    statistics = {"loss_d": loss_discriminator, "loss_g": loss_generator, "real": of_real.mean()}
    statistics |= {name: of.mean() for name, of in zip(("fake", "corrupted"), of_negatives, strict=False)}
    return {name: value.detach() for name, value in statistics.items()}


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _refuse_other_settings(recipe: Recipe, saved: dict[str, Any]) -> None:
    free = {"iterations", "log_interval", "checkpoint_interval", "milestone_interval", "sample_interval"}
    differences = [
        f"{name} was {saved.get(name)!r} and is now {value!r}"
        for name, value in asdict(recipe).items()
        if name not in free and saved.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"the run was begun with other settings: {'; '.join(differences)}. "
            "Give the same settings, or another --out for a new run."
        )


def _log_statistics(out: Path, state: _State, statistics: dict[str, Tensor]) -> None:
    line: dict[str, float] = {"iteration": state.iteration, "seconds": round(state.seconds, 1)}
    line |= {name: float(value) for name, value in statistics.items()}
    if not all(torch.isfinite(value) for value in statistics.values()):
        raise DivergenceError(
            f"training diverged before iteration {state.iteration}: {line}. The last checkpoint in {out} is intact; "
            "start again from it with lower learning rates."
        )
    with (out / "stats.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@torch.no_grad()
def save_grid(generator: Generator, latents: Tensor, path: Path) -> None:
    """Write the images of some latents as one PNG, eight in a row, atomically."""
    with replacing(path) as temporary:
        save_image(generator(latents), temporary, nrow=8, normalize=True, value_range=(-1, 1))
