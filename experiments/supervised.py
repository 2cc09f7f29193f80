"""The rival that sees the labels: the discriminator's blocks, trained as a classifier.

Batch normalisation behind every convolution takes the place of spectral normalisation; width, activation, pooling and
the mean over positions stay, and the last 1x1 convolution has an output for every class. Training is the usual one for
small images: cross-entropy, crops out of a margin of 4 black pixels and mirrored images (no quarter turns), stochastic
gradients with momentum and weight decay, a step size that rises over the first twentieth of the steps and falls along
half a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from afv_metric.fisher.vectors import UInt8Images
from afv_metric.images.tensors import to_network_range
from afv_metric.networks import Discriminator, DiscriminatorConfig
from afv_metric.runtime import computes_bfloat16
from afv_metric.train.divergence import DivergenceError

__all__ = ["classify_images", "crop_and_flip", "supervised_network", "train_supervised"]

_MARGIN = 4
_MOMENTUM = 0.9


def supervised_network(config: DiscriminatorConfig, classes: int, seed: int = 0) -> Discriminator:
    """A discriminator with batch normalisation and an output for each class, at random initialisation.

    Args:
        config: Configuration, of which the network has width, image size and slope.
        classes: Number of classes.
        seed: Seed of the weights.

    Returns:
        A network in training mode that maps images ``(N, 3, H, W)`` in [-1, 1] to ``(N, classes)``.

    Example:
        >>> network = supervised_network(DiscriminatorConfig(width=4), classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Discriminator(replace(config.plain(), head="pooled"))
        network.head = nn.Conv2d(config.widths[-1], classes, 1)
    for block in network.residual_blocks():
        for name in ("conv1", "conv2", "shortcut"):
            convolution = getattr(block, name)
            convolution.bias = None  # the normalisation brings one of its own
            setattr(block, name, nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels)))
    return network


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to 4 pixels either way, black coming in, and mirror every other one, at random.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        generator: Source of the random numbers.

    Returns:
        Images of the same shape.

    Example:
        >>> images = torch.arange(256, dtype=torch.uint8).repeat(3, 4).view(1, 3, 32, 32)
        >>> crop_and_flip(images, torch.Generator().manual_seed(0)).shape
        torch.Size([1, 3, 32, 32])
    """
    count, _, height, width = images.shape
    top, left = torch.randint(2 * _MARGIN + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.randint(2, (count, 1), generator=generator) == 1
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (_MARGIN,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train_supervised(
    network: nn.Module,
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    rate: float = 0.1,
    weight_decay: float = 5e-4,
    precision: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    quiet: bool = True,
) -> None:
    """Train a network in place; it is left in evaluation mode.

    Args:
        network: Map of images ``(N, 3, H, W)`` in [-1, 1] to ``(N, classes)``.
        images: Function from int64 rows ``(n,)`` to uint8 images ``(n, 3, H, W)``, such as ``ImageView.__getitem__``.
        labels: int64 ``(N,)``.
        epochs: Passes over the images.
        batch_size: Images per step; the images left over at the end of an epoch wait for the next one.
        rate: Largest step size.
        weight_decay: L2 penalty of all weights.
        precision: ``torch.float32``, or ``torch.bfloat16`` by autocast; None: the latter where the device computes in
            it.
        device: Device to compute on.
        seed: Seed of order and augmentation.
        quiet: Whether to show no progress bar.

    Raises:
        ValueError: If there are no epochs.
        DivergenceError: If the loss is no longer finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    device = torch.device(device)
    precision = precision or (torch.bfloat16 if computes_bfloat16(device) else torch.float32)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch_size = min(batch_size, len(labels))
    steps = epochs * (len(labels) // batch_size)
    optimizer = torch.optim.SGD(network.parameters(), rate, _MOMENTUM, weight_decay=weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    drawn = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, desc="supervised", unit="step", disable=quiet) as bar:
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for rows in torch.randperm(len(labels), generator=drawn).split(batch_size):
                if len(rows) < batch_size:
                    continue
                batch = _to_network(crop_and_flip(images(rows), drawn), device)
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    loss = F.cross_entropy(network(batch), labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
                bar.update()
            bar.set_postfix(loss=f"{total.item() * epochs / steps:.3f}")
            if not total.isfinite():
                raise DivergenceError(f"the supervised network diverged in epoch {epoch + 1}; lower its rate {rate:g}")
    network.eval()


@torch.no_grad()
def classify_images(
    network: nn.Module, images: UInt8Images, *, batch_size: int = 256, device: str | torch.device = "cpu"
) -> Tensor:
    """The class that a network in evaluation mode gives to each image, int64 ``(N,)`` on the CPU."""
    classes = []
    for start in range(0, len(images), batch_size):
        batch = _to_network(images[slice(start, start + batch_size)], torch.device(device))
        classes.append(network(batch).argmax(1).cpu())
    return torch.cat(classes)


def _to_network(images: Tensor, device: torch.device) -> Tensor:
    batch = to_network_range(images.to(device), normalize=False, dtype=torch.float32)
    return batch.contiguous(memory_format=torch.channels_last)
