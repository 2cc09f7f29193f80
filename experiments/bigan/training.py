"""Training a convolutional BiGAN on 32x32 images.

Every random number is a function of the seed and the iteration, so a run that was killed goes on from its last
checkpoint exactly as if it had never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm

from afv_metric.files import atomic_write
from afv_metric.images.augment import augment
from afv_metric.images.cache import ImageView, load_images, split_held_out
from afv_metric.networks import Generator, GeneratorConfig
from afv_metric.train.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    rewind,
    save_checkpoint,
)
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.log import Log
from afv_metric.train.settings import check_choices, check_resumable, resolve_precision
from experiments.bigan.encoder import TrainedEncoder
from experiments.bigan.networks import Encoder, EncoderConfig, JointDiscriminator
from experiments.bigan.objective import BiGAN

__all__ = ["BiGANRecipe", "BiGANState", "export_run", "iterate", "train"]

_SIZE = 32
_SHOWN = 16
_NORMALISING_BATCHES = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BiGANRecipe:
    """Settings of one training run.

    Attributes:
        width: Channels of the encoder E and of the trunk of the joint discriminator D.
        generator_width: Channels of the generator G.
        latent_size: Length of the latent vector z.
        hidden: Width of the layers of D that see image and latents.
        slope: Negative slope of the leaky ReLU of E and D.
        gain: Factor on D's logit, against the Lipschitz bound of spectral normalisation.
        augmentation: See :class:`afv_metric.train.recipes.Recipe`.
        batch_size: Images, and latents, per step.
        iterations: Length of the run; each is one step of D, and one of E and G.
        discriminator_rate: Adam's learning rate for D.
        rate: Adam's learning rate for E and G.
        beta1: Adam's decay of the mean gradient.
        beta2: Adam's decay of the squared gradient.
        average: Decay per iteration of the averages of E and G, of which E's is exported.
        precision: Arithmetic of the convolutions: ``"float32"``, or ``"bfloat16"`` through autocast; ``"auto"``:
            bfloat16 where the device computes in it, else float32.
        held_out: Share of the images that are only reconstructed.
        seed: Seed of weights, latents and crops.
        log_interval: Iterations between two lines of ``stats.jsonl``.
        checkpoint_interval: Iterations between two checkpoints; the last two are kept.
        sample_interval: Iterations between two grids of images.
    """

    width: int = 32
    generator_width: int = 32
    latent_size: int = 64
    hidden: int = 256
    slope: float = 0.2
    gain: float = 8.0
    augmentation: Literal["none", "flip", "paper", "multiscale"] = "flip"
    batch_size: int = 64
    iterations: int = 6_000
    discriminator_rate: float = 2e-4
    rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    average: float = 0.998
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    held_out: float = 0.02
    seed: int = 0
    log_interval: int = 100
    checkpoint_interval: int = 250
    sample_interval: int = 500

    def __post_init__(self) -> None:
        check_choices(self)
        for name, value in asdict(self).items():
            if name in ("slope", "beta1", "beta2", "average") and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
            if name == "held_out" and not 0 < value < 1:
                raise ValueError(f"held_out is a share of the images between 0 and 1, got {value}")
            if name.endswith(("_interval", "rate", "width", "_size", "hidden", "gain", "iterations")) and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for batch norm, got {self.batch_size}")

    @property
    def encoder(self) -> EncoderConfig:
        """Shape of the encoder."""
        return EncoderConfig(self.width, self.latent_size, self.slope)

    @property
    def generator(self) -> GeneratorConfig:
        """Shape of the generator."""
        return GeneratorConfig(self.generator_width, self.latent_size, _SIZE)


class BiGANState:
    """All that training changes: what a checkpoint holds.

    Args:
        recipe: Shapes, rates and the seed of the initial weights.
        device: Device to train on.

    Attributes:
        bigan: E, G and D, in training.
        averaged_encoder: Polyak average of E, in evaluation mode: the metric.
        averaged_generator: Polyak average of G, in evaluation mode.
        optimizer: Adam for E and G.
        discriminator_optimizer: Adam for D.
        iteration: Iterations done.
        seconds: Time they took.
    """

    def __init__(self, recipe: BiGANRecipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        discriminator = JointDiscriminator(
            recipe.width, recipe.latent_size, hidden=recipe.hidden, slope=recipe.slope, gain=recipe.gain
        )
        encoder, generator = Encoder(recipe.encoder), Generator(recipe.generator)
        self.bigan = BiGAN(encoder, generator, discriminator)
        self.bigan.to(device).to(memory_format=torch.channels_last)
        self.averaged_encoder = deepcopy(encoder).requires_grad_(False).eval()
        self.averaged_generator = deepcopy(generator).requires_grad_(False).eval()
        betas = recipe.beta1, recipe.beta2
        both = [*encoder.parameters(), *generator.parameters()]
        self.optimizer = torch.optim.Adam(both, recipe.rate, betas, foreach=True)
        self.discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(), recipe.discriminator_rate, betas, foreach=True
        )
        self.iteration = 0
        self.seconds = 0.0

    def to_checkpoint(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {
            name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in vars(self).items()
        }

    def from_checkpoint(self, saved: dict[str, Any]) -> None:
        """Take up what :meth:`to_checkpoint` gave."""
        for name, value in vars(self).items():
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(saved[name])
        self.iteration, self.seconds = saved["iteration"], saved["seconds"]

    @torch.no_grad()
    def update_averages(self, decay: float) -> None:
        """Move both averages towards the present weights; statistics of batch norms stay, see :func:`_normalise`."""
        # Early on the horizon of the average grows with the run, so that it forgets the random start.
        share = 1 - min(decay, (1 + self.iteration) / (10 + self.iteration))
        for average, network in (
            (self.averaged_encoder, self.bigan.encoder),
            (self.averaged_generator, self.bigan.generator),
        ):
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)


def train(
    recipe: BiGANRecipe,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Path:
    """Train a BiGAN, or go on with a run that was interrupted.

    Args:
        recipe: All settings. A run can only be resumed with the settings it began with, except its length and
            its intervals.
        data: Images: folders or archives, see :func:`~afv_metric.images.cache.load_images`.
        out: Folder of the run; a checkpoint in it is resumed.
        device: Device to train on.
        quiet: Whether to show no progress bars.

    Returns:
        The folder of the run, with checkpoints, ``stats.jsonl``, ``recipe.json`` and ``samples-*.png``: held-out
        images, their reconstructions G(E(x)), and samples G(z), a row each.

    Raises:
        ValueError: If the folder holds a run with other settings or data, or the data are too few.
        DivergenceError: If a number is not finite; the last checkpoint is from before.
    """
    device, out = torch.device(device), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = latest_checkpoint(out)
    saved = load_checkpoint(path) if path else None
    recipe = resolve_precision(recipe, saved and saved.get("recipe", {}), device)
    if saved:
        check_resumable(recipe, saved.get("recipe", {}), out, {"iterations"})
    everything = load_images(data, 2 * _SIZE, quiet=quiet)
    if saved and saved["data"] != everything.fingerprint:
        raise ValueError(f"the run in {out} was begun with other images; give the same ones, or another --out")
    images, aside = split_held_out(everything, recipe.held_out, recipe.seed)

    state = BiGANState(recipe, device)
    if saved:
        state.from_checkpoint(saved)
        _log.info("resuming %s at iteration %d", out, state.iteration)
    rewind(out, state.iteration)
    with atomic_write(out / "recipe.json") as temporary:
        temporary.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    # Spread over the classes, which lie one after the other.
    rows = torch.linspace(0, len(aside.images) - 1, min(_SHOWN, len(aside.images))).long()
    shown = augment(aside.images[rows].to(device).float() / 127.5 - 1, _SIZE, "none")
    draws = torch.Generator().manual_seed(recipe.seed)
    latents = torch.randn(_SHOWN, recipe.latent_size, generator=draws).to(device)

    log = Log(out)
    bar = tqdm(total=recipe.iterations, initial=state.iteration, desc="training", disable=quiet, unit="it")
    with bar:
        while state.iteration < recipe.iterations:
            statistics = iterate(state, recipe, images.images, device)
            bar.update()
            finished = state.iteration == recipe.iterations
            logged = state.iteration % recipe.log_interval == 0
            kept = finished or state.iteration % recipe.checkpoint_interval == 0
            if logged or kept:
                values = {name: float(value) for name, value in statistics.items()}
                _refuse_not_finite(state, values)
            shows = finished or state.iteration % recipe.sample_interval == 0
            if logged or kept or shows:
                _normalise(state, recipe, images.images, device)
            if logged:
                values |= _inversion_errors(state, shown, latents)
                log.write("stats", state.iteration, state.seconds, values)
                bar.set_postfix({name: f"{value:.2f}" for name, value in values.items()})
            if shows:
                _save_grid(state, shown, latents, out / f"samples-{state.iteration:07d}.png")
            if kept:  # last, so that a run that is killed here makes up for the rest
                facts = {"recipe": asdict(recipe), "data": everything.fingerprint}
                save_checkpoint(out, state.to_checkpoint() | facts)
                prune_checkpoints(out, milestone_interval=recipe.iterations, best=0)
    log.close()
    return out


def export_run(run: str | Path, name: str) -> TrainedEncoder:
    """The averaged encoder of a run, from its newest checkpoint.

    Args:
        run: Folder of the run.
        name: Short name to give it.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    path = latest_checkpoint(Path(run))
    if path is None:
        raise FileNotFoundError(
            f"there is no checkpoint in {run}: give the --out of `python -m experiments.bigan train`"
        )
    saved = load_checkpoint(path)
    state = BiGANState(BiGANRecipe(**saved["recipe"]), torch.device("cpu"))
    state.from_checkpoint(saved)
    training = {
        "recipe": saved["recipe"],
        "data_fingerprint": saved["data"],
        "iterations": state.iteration,
        "seconds": round(state.seconds, 1),
    }
    return TrainedEncoder(name, state.averaged_encoder, training)


def iterate(
    state: BiGANState, recipe: BiGANRecipe, images: ImageView | Tensor, device: torch.device
) -> dict[str, Tensor]:
    """One iteration: a step of D, and one of E and G, both from the same pairs, as in the paper.

    Args:
        state: Networks and optimizers, changed in place.
        recipe: The settings.
        images: uint8 ``(N, 3, 64, 64)``.
        device: Device of the networks.

    Returns:
        Both losses, each a scalar tensor.
    """
    began = time.perf_counter()
    seed = np.random.SeedSequence((recipe.seed, state.iteration)).generate_state(1, np.uint64)[0] >> 1
    torch.manual_seed(int(seed))
    real, latents = _draw(recipe, images, device)
    with _autocast(recipe, device):
        pairs = state.bigan.pairs(real, latents)
        losses = state.bigan.losses(*pairs)
    discriminator = list(state.bigan.discriminator.parameters())
    others = [*state.bigan.encoder.parameters(), *state.bigan.generator.parameters()]
    state.optimizer.zero_grad()
    state.discriminator_optimizer.zero_grad()
    losses.discriminator.backward(inputs=discriminator, retain_graph=True)
    losses.encoder_generator.backward(inputs=others)
    state.discriminator_optimizer.step()
    state.optimizer.step()
    state.update_averages(recipe.average)
    state.iteration += 1
    state.seconds += time.perf_counter() - began
    return {"loss_d": losses.discriminator.detach(), "loss_eg": losses.encoder_generator.detach()}


def _draw(recipe: BiGANRecipe, images: ImageView | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of images and one of latents, from torch's global random stream."""
    chosen = torch.randint(len(images), (recipe.batch_size,))
    real = augment(images[chosen].to(device).float() / 127.5 - 1, _SIZE, recipe.augmentation)
    return real, torch.randn(recipe.batch_size, recipe.latent_size).to(device)


def _autocast(recipe: BiGANRecipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


@torch.no_grad()
def _normalise(state: BiGANState, recipe: BiGANRecipe, images: ImageView, device: torch.device) -> None:
    """Measure the statistics of the averaged networks' batch norms, always over the same images and latents.

    Those of the networks in training belong to other weights: with them reconstructions are clearly worse.
    """
    torch.manual_seed(recipe.seed)
    averaged = nn.ModuleList([state.averaged_encoder, state.averaged_generator])
    for norm in (module for module in averaged.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    averaged.train()
    for _ in range(_NORMALISING_BATCHES):
        real, latents = _draw(recipe, images, device)
        with _autocast(recipe, device):
            state.averaged_encoder(real)
            state.averaged_generator(latents)
    averaged.eval()


@torch.no_grad()
def _inversion_errors(state: BiGANState, images: Tensor, latents: Tensor) -> dict[str, float]:
    """How far the averaged E and G are from being inverse: root mean squares of G(E(x)) - x and of E(G(z)) - z.

    The latter is 1 for codes that are always zero, and 1.4 for codes that are distributed as z and unrelated to it.
    """
    encoder, generator = state.averaged_encoder, state.averaged_generator
    return {
        "image_error": float((generator(encoder(images)) - images).square().mean().sqrt()),
        "latent_error": float((encoder(generator(latents)) - latents).square().mean().sqrt()),
    }


@torch.no_grad()
def _save_grid(state: BiGANState, images: Tensor, latents: Tensor, path: Path) -> None:
    """Three rows: x, G(E(x)) and G(z)."""
    encoder, generator = state.averaged_encoder, state.averaged_generator
    rows = torch.cat([images, generator(encoder(images)), generator(latents[: len(images)])])
    with atomic_write(path) as temporary:
        save_image(rows, temporary, nrow=len(images), normalize=True, value_range=(-1, 1))


def _refuse_not_finite(state: BiGANState, values: dict[str, float]) -> None:
    weights = torch.stack([weight.detach().isfinite().all() for weight in state.bigan.parameters()])
    if not (all(map(math.isfinite, values.values())) and bool(weights.all())):
        raise DivergenceError(
            f"at iteration {state.iteration} a loss or a weight is not finite; begin again with lower learning rates"
        )
