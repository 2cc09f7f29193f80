"""The slow oracle: batch of one, ordinary autograd, float64, plain convolutions and pooling, untied weights in full."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher.statistics import FisherStatistics
from afv_metric.networks import Discriminator

FLOOR = 1e-3


def layer_names(discriminator: Discriminator) -> list[str]:
    """Names of the convolutions in the order of the forward pass."""
    count = len(discriminator.blocks)
    return [f"blocks.{i}.{part}" for i in range(count) for part in ("conv1", "conv2", "shortcut")] + ["head"]


def logit(discriminator: Discriminator, image: Tensor, kind: str = "logit", convolve=F.conv2d, weights=None) -> Tensor:
    """Logit (or its sigmoid) of one image (1, 3, H, W) by convolutions followed by pooling; a scalar."""
    state = dict(discriminator.named_parameters())
    slope = discriminator.config.slope

    def layer(name: str, maps: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        if convolve is F.conv2d:
            return F.conv2d(maps, weight, state[f"{name}.bias"], padding=padding)
        return convolve(name, maps, weight, state[f"{name}.bias"], padding)

    maps = image
    for index, block in enumerate(discriminator.blocks):
        hidden = maps if index == 0 else F.leaky_relu(maps, slope)
        hidden = layer(f"blocks.{index}.conv1", hidden)
        hidden = F.leaky_relu(F.avg_pool2d(hidden, 2) if block.pools == 1 else hidden, slope)
        inner, shortcut = layer(f"blocks.{index}.conv2", hidden), layer(f"blocks.{index}.shortcut", maps)
        maps = (F.avg_pool2d(inner, 2) if block.pools == 2 else inner) + (
            F.avg_pool2d(shortcut, 2) if block.pools else shortcut
        )
    logits = layer("head", F.leaky_relu(maps, slope))
    mean = logits.mean() if weights is None else (logits * weights).sum() / weights.sum()
    return mean.sigmoid() if kind == "sigmoid" else mean


def scores(
    discriminator: Discriminator, images: Tensor, kind: str = "logit", weights=None
) -> list[tuple[Tensor, Tensor]]:
    """dD/dW and dD/db of each layer, (N, ...) each: one backward pass per image."""
    parameters = [p for name in layer_names(discriminator) for p in discriminator.get_submodule(name).parameters()]
    rows = []
    for index in range(len(images)):
        weight = None if weights is None else weights[index : index + 1]
        value = logit(discriminator, images[index : index + 1], kind, weights=weight)
        rows.append(torch.autograd.grad(value, parameters, retain_graph=False))
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return list(zip(columns[::2], columns[1::2], strict=True))


def inverse_root(variance: Tensor, epsilon: float) -> Tensor:
    if float(variance.sum()) == 0:
        return torch.zeros_like(variance)
    return 1 / torch.sqrt(variance + epsilon * variance.mean())


def inverse_root_matrix(factor: Tensor, epsilon: float) -> Tensor:
    """By the singular value decomposition, not the eigenvalues."""
    left, values, _ = torch.linalg.svd(factor)
    return left @ torch.diag(inverse_root(values, epsilon)) @ left.T


def fisher_distance(
    discriminator: Discriminator, first: Tensor, second: Tensor, statistics: FisherStatistics, epsilon: float,
    kind: str = "logit", weights=None,
) -> Tensor:  # fmt: skip
    """Eq. 5 divided by the number of parameters."""
    total, count = torch.zeros(len(first), dtype=first.dtype), 0
    pairs = zip(scores(discriminator, first, kind, weights), scores(discriminator, second, kind, weights), strict=True)
    for (x, y), layer in zip(pairs, statistics.layers, strict=True):
        for u, v, variance in zip(x, y, (layer.weight_variance, layer.bias_variance), strict=True):
            total += ((u - v) * inverse_root(variance, epsilon)).square().flatten(1).sum(1)
            count += variance.numel()
    return total / count


def untied_scores(discriminator: Discriminator, image: Tensor, kind: str = "logit") -> list[Tensor]:
    """Gradients of a copy with weights of its own at every position: (positions, C_out, C_in, offsets) a layer.

    They are those of the logit times the number of positions of the last map over those of a training image, before
    the division by 4 of the mean pooling.
    """
    untied: dict[str, Tensor] = {}

    def convolve(name: str, maps: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        height, width = maps.shape[2:]
        columns = F.unfold(maps, weight.shape[-1], padding=padding)[0]
        columns = columns.unflatten(0, (weight.shape[1], -1))  # C_in, offsets, positions
        untied[name] = weight.detach().flatten(2).expand(height * width, -1, -1, -1).clone().requires_grad_()
        out = torch.einsum("pcio,iop->cp", untied[name], columns) + bias[:, None]
        return out.view(1, -1, height, width)

    value = logit(discriminator, image, kind, convolve)
    names = layer_names(discriminator)
    gradients = torch.autograd.grad(value, [untied[name] for name in names])
    positions = image.shape[2] * image.shape[3] / discriminator.stride**2
    training = (discriminator.config.image_size / discriminator.stride) ** 2
    result = []
    for name, gradient in zip(names, gradients, strict=True):
        index, _, part = name.removeprefix("blocks.").partition(".")
        pools = 0 if name == "head" else discriminator.blocks[int(index)].pools
        pooled = pools > 0 and part in (f"conv{pools}", "shortcut")
        result.append(gradient * positions / training * (4 if pooled else 1))
    return result


def local_maps(
    discriminator: Discriminator, first: Tensor, second: Tensor, statistics: FisherStatistics, epsilon: float,
    kind: str = "logit",
) -> list[Tensor]:  # fmt: skip
    """Relative squared distance of the whitened untied scores at each position, all outer products formed: a list."""
    maps = []
    pairs = zip(untied_scores(discriminator, first, kind), untied_scores(discriminator, second, kind), strict=True)
    for (x, y), layer in zip(pairs, statistics.layers, strict=True):
        outputs, inputs, offsets = x.shape[1:]
        of_inputs = inverse_root_matrix(layer.input_factor, epsilon) / inputs**0.5
        of_deltas = inverse_root_matrix(layer.delta_factor, epsilon) / outputs**0.5
        x, y = (torch.einsum("dc,pcio,ij->pdjo", of_deltas, z, of_inputs).flatten(1) / offsets**0.5 for z in (x, y))
        maps.append((x - y).square().sum(1) / (x.square().sum(1) + y.square().sum(1) + FLOOR))
    return maps


def layers_of(maps: list[Tensor], blocks: tuple[int, ...] | None) -> list[Tensor]:
    """The maps of the layers of some residual blocks, three layers each, of those of all layers in forward order."""
    return maps if blocks is None else [maps[3 * block + part] for block in blocks for part in range(3)]


def pool(maps: list[Tensor], exponent: float = 2) -> Tensor:
    """Mean of an order over positions (of order 2: the root mean square), mean over layers."""
    return torch.stack([(q**exponent).mean() ** (1 / exponent) for q in maps]).mean()
