"""Every hyper-parameter of training, once, with its unit and meaning; and the recipes that fix them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_type_hints

from afv_metric.fisher.engine import Output
from afv_metric.networks import DiscriminatorConfig, GeneratorConfig
from afv_metric.train.settings import check_choices

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run.

    Attributes:
        name: Name of the recipe.
        width: Channels of the discriminator D: one number, or one per residual block (``--set width=32,32,64,64``).
        strided_stem: Whether D's first block halves the image in its first convolution; the paper's does in its second.
        generator_width: Channels of the generator G, in the same form; about half of D's keeps D ahead of G.
        latent_size: Length of the latent vector z.
        image_size: Side of the images that D and G see, in pixels: 32 or 64.
        channels: Channels of the images: 3 for colour, 1 for grey, or as many as the files have.
        slope: Negative slope of D's leaky ReLU; 0 is the ReLU of the paper.
        head: ``"position"``: the loss is applied to the logit at every position; ``"pooled"``: to their mean.
        gain: Factor on D's logit, against the Lipschitz bound of spectral normalisation.
        spectral_norm: Whether D's convolutions are spectrally normalised.
        loss: ``"hinge"``; ``"logistic"``, the logit as that of being real (Goodfellow et al. 2014); or
            ``"least-squares"`` on the sigmoid of the logit (the paper).
        gamma: Weight of the proximal term, which holds G near its average (eq. 7 of the paper); 0 switches it off.
        noise_std: Standard deviation of the noise in that term, in units of [-1, 1] images.
        r1: Weight of the zero-centred gradient penalty on real images (section 4 of the paper); 0 switches it off.
        augmentation: ``"multiscale"``: crops between half and one and a half times the size of the images;
            ``"paper"``: small images padded by 4 pixels and cropped, flipped, turned by multiples of 90 degrees;
            ``"flip"``: small images, flipped; ``"none"``: small images as they are.
        negatives: Corrupted real images given to D as further negatives, as a share of the batch; 0: none.
        tolerance: Weight of the order of known changes (:mod:`afv_metric.train.tolerance`); 0 switches it off.
        batch_size: Real images, and generated ones, per step, over all processes together.
        generator_steps: Steps of G per iteration.
        discriminator_steps: Steps of D per iteration; the first is on the images of G's last step.
        iterations: Length of the run.
        discriminator_rate: Adam's learning rate for D.
        generator_rate: Adam's learning rate for G.
        beta1: Adam's decay of the mean gradient.
        beta2: Adam's decay of the squared gradient.
        discriminator_average: Decay per iteration of the average of D's weights that becomes the metric.
        generator_average: Decay per iteration of the average of G's weights used for samples and statistics.
        precision: Arithmetic of the convolutions: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` through autocast,
            the latter with scaled gradients; ``"auto"``: bfloat16 where the device computes in it, else float32.
        images: Train on so many of the images only, drawn by the seed; 0: on all.
        held_out: Share of the images that only the monitors see, unless they are given images of their own.
        seed: Seed of weights, latents, crops and corruptions.
        log_interval: Iterations between two lines of ``stats.jsonl``.
        monitor_interval: Iterations between two lines of ``monitors.jsonl``, each with a checkpoint.
        monitor_samples: Images of each kind that the monitors measure on.
        checkpoint_interval: Iterations between two checkpoints; the last two are kept.
        milestone_interval: Iterations between two checkpoints that are kept for good.
        keep_best: Checkpoints kept for the highest Fisher Similarity of held-out and generated images.
        sample_interval: Iterations between two grids of generated images.
    """

    name: str = "imagenet"
    width: int | tuple[int, ...] = (32, 32, 64, 64)
    strided_stem: bool = True
    generator_width: int | tuple[int, ...] = 16
    latent_size: int = 128
    image_size: int = 32
    channels: int = 3
    slope: float = 0.2
    head: Literal["pooled", "position"] = "position"
    gain: float = 8.0
    spectral_norm: bool = True
    loss: Literal["hinge", "logistic", "least-squares"] = "hinge"
    gamma: float = 0.0
    noise_std: float = 0.01
    r1: float = 0.0
    augmentation: Literal["none", "flip", "paper", "multiscale"] = "multiscale"
    negatives: float = 0.0
    tolerance: float = 0.3
    batch_size: int = 64
    generator_steps: int = 1
    discriminator_steps: int = 1
    iterations: int = 30_000
    discriminator_rate: float = 4e-4
    generator_rate: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.999
    discriminator_average: float = 0.9995
    generator_average: float = 0.995
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    images: int = 0
    held_out: float = 0.02
    seed: int = 0
    log_interval: int = 100
    monitor_interval: int = 2_500
    monitor_samples: int = 1_000
    checkpoint_interval: int = 500
    milestone_interval: int = 5_000
    keep_best: int = 2
    sample_interval: int = 1_000

    def __post_init__(self) -> None:
        check_choices(self)
        positive = [name for name in get_type_hints(type(self)) if name.endswith(("_interval", "_steps", "_rate"))]
        for name in ("batch_size", "iterations", "monitor_samples", *positive):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("gamma", "noise_std", "r1", "tolerance", "keep_best", "images"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "discriminator_average", "generator_average", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.negatives <= 1:
            raise ValueError(f"negatives is a share of the batch in [0, 1], got {self.negatives}")
        _ = self.discriminator, self.generator  # these check what they are made of

    @property
    def output(self) -> Output:
        """What the Fisher score is the gradient of: the logit itself, or its sigmoid where the loss puts one on it."""
        return "sigmoid" if self.loss == "least-squares" else "logit"

    @property
    def discriminator(self) -> DiscriminatorConfig:
        """Shape of the discriminator."""
        return DiscriminatorConfig(**{field.name: getattr(self, field.name) for field in fields(DiscriminatorConfig)})

    @property
    def generator(self) -> GeneratorConfig:
        """Shape of the generator."""
        return GeneratorConfig(self.generator_width, self.latent_size, self.image_size, self.channels)


_PUBLISHED = Recipe(
    name="imagenet-paper",
    width=128,
    strided_stem=False,
    generator_width=128,
    slope=0.0,
    head="pooled",
    gain=1.0,
    loss="least-squares",
    augmentation="paper",
    tolerance=0.0,
    iterations=800_000,
    generator_rate=2e-4,
    discriminator_average=0.0,
    generator_average=0.9,
    precision="float32",
    monitor_interval=10_000,
    checkpoint_interval=5_000,
    milestone_interval=100_000,
    sample_interval=10_000,
)
"""The published hyper-parameters; the authors' released model is 256 wide, with latents of 256."""

_CIFAR = Recipe(width=48, augmentation="paper", tolerance=0.0, held_out=0.1)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(),
        _PUBLISHED,
        # The paper does not state gamma; this one balances the adversarial term at the start of training.
        replace(_PUBLISHED, name="imagenet64", image_size=64, gamma=1e-3),
        *(replace(_CIFAR, name=name) for name in ("cifar10", "cifar100", "cifar10+100")),
        Recipe(name="folder", negatives=0.5, iterations=5_000, held_out=0.1, monitor_interval=500, sample_interval=500),
    )
}
"""Recipes by name.

``imagenet`` trains the network of the shipped bundle from scratch, ``imagenet-paper`` has the published settings,
``imagenet64`` one more block, ``folder`` is for one's own images and starts from the shipped bundle.
"""
