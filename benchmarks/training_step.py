"""The training step against a straight port of the published loop, side by side in one run.

    python benchmarks/training_step.py [--widths 32 64 128] [--batch 64] [--repeats 7]

The port does the same mathematics the plain way: a discriminator step on real images and on samples made for it, in
two forward passes; a generator step on samples of its own, through a discriminator whose weights take gradients in
vain; convolutions and pooling one after the other; contiguous memory. Widths are those of both networks; losses,
optimizers, averages and augmentation are the same. Ratios are medians over pairs of runs in turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import afv_metric
from afv_metric.images.augment import augment
from afv_metric.networks import PooledConv2d, UpsampledConv2d
from afv_metric.train.loop import iterate
from afv_metric.train.losses import discriminator_loss, generator_loss
from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.state import State

CPU = torch.device("cpu")


class PlainPooledConv2d(nn.Conv2d):
    """Convolution, then mean pooling."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C', H / 2, W / 2)``."""
        return F.avg_pool2d(super().forward(input), 2)


class PlainUpsampledConv2d(nn.Conv2d):
    """Nearest-neighbour doubling, then convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C', 2 H, 2 W)``."""
        return super().forward(F.interpolate(input, scale_factor=2))


def make_plain(state: State) -> State:
    """The same networks and optimizers without the identities, in contiguous memory."""
    plain = {PooledConv2d: PlainPooledConv2d, UpsampledConv2d: PlainUpsampledConv2d}
    for network in (state.discriminator, state.generator, state.averaged_generator):
        for layer in network.modules():
            for fused, unfused in plain.items():
                if isinstance(layer, fused):
                    # A parametrized layer has a class of its own, made from the class that it was.
                    made = layer.__class__ is not fused
                    layer.__class__ = (
                        type(unfused.__name__, (unfused,), dict(vars(layer.__class__))) if made else unfused
                    )
        network.to(memory_format=torch.contiguous_format)
    return state


def published_step(state: State, recipe: Recipe, images: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration as in the published loop; returns both losses."""
    discriminator, generator = state.discriminator, state.generator
    chosen = torch.randint(len(images), (recipe.batch_size,))
    real = augment(images[chosen].float() / 127.5 - 1, recipe.image_size, recipe.augmentation).contiguous()
    fake = generator(generator.sample_latents(recipe.batch_size)).detach()
    loss_d = discriminator_loss(recipe.loss, discriminator(real), [discriminator(fake)])
    state.discriminator_optimizer.zero_grad()
    loss_d.backward()
    state.discriminator_optimizer.step()

    fake = generator(generator.sample_latents(recipe.batch_size))
    loss_g = generator_loss(recipe.loss, discriminator(fake))
    state.generator_optimizer.zero_grad()
    loss_g.backward()
    state.generator_optimizer.step()
    state.update_averages(recipe)
    return loss_d, loss_g


def check_equal(recipe: Recipe) -> float:
    """Largest relative difference of logits and their gradients between both networks."""
    states = State(recipe, CPU), make_plain(State(recipe, CPU))
    latents = torch.randn(4, recipe.latent_size, generator=torch.Generator().manual_seed(1))
    results = []
    for state in states:
        state.discriminator.eval(), state.generator.eval()
        logits = state.discriminator(state.generator(latents))
        logits.sum().backward()
        gradients = [weight.grad for weight in state.generator.parameters() if weight.grad is not None]
        results.append([logits.detach(), *gradients])
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(*results, strict=True))


def seconds(function: Callable[[], object], steps: int) -> float:
    """Time of some steps, each."""
    began = time.perf_counter()
    for _ in range(steps):
        function()
    return (time.perf_counter() - began) / steps


def share_outside_convolutions(step: Callable[[], object]) -> float:
    """Share of the time of a step that is not spent inside convolutions, forward or backward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    total = convolutions = 0.0
    for event in profiler.key_averages():
        total += event.self_cpu_time_total
        if "conv" in event.key:
            convolutions += event.self_cpu_time_total
    return 1 - convolutions / total


def compare(width: int, batch: int, repeats: int) -> None:
    """Print the lines of one width."""
    recipe = replace(RECIPES["imagenet-paper"], width=width, generator_width=width, batch_size=batch)
    images = torch.randint(256, (512, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fast, plain = State(recipe, CPU), make_plain(State(recipe, CPU))
    low = replace(recipe, precision="bfloat16")
    fast_low = State(low, CPU)

    def take(state: State, settings: Recipe) -> Callable[[], object]:
        def step() -> None:
            iterate(state, settings, images, CPU)
            state.iteration += 1

        return step

    ours, theirs, ours_low = take(fast, recipe), lambda: published_step(plain, recipe, images), take(fast_low, low)
    for function in (ours, theirs, ours_low):
        seconds(function, 1)
    steps = max(1, 128 // width)
    times = [[seconds(function, steps) for function in (ours, theirs, ours_low)] for _ in range(repeats)]
    ratios = sorted(theirs / ours for ours, theirs, _ in times)
    low_ratios = sorted(theirs / ours for _, theirs, ours in times)
    print(f"width {width}: logits and gradients differ by {check_equal(recipe):.0e}, relative")
    print(f"  published loop / ours, float32:   {statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(
        f"  published loop / ours, bfloat16:  {statistics.median(low_ratios):.2f}x "
        f"({low_ratios[0]:.2f} to {low_ratios[-1]:.2f})"
    )
    print(f"  share of our float32 step outside convolutions: {share_outside_convolutions(ours):.2f}")


def main() -> None:
    """Print all lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"afv_metric {afv_metric.__version__}, torch {torch.__version__}, python {platform.python_version()}, "
          f"{torch.get_num_threads()} threads, seed 0, batch {options.batch}")  # fmt: skip
    for width in options.widths:
        compare(width, options.batch, options.repeats)


if __name__ == "__main__":
    main()
