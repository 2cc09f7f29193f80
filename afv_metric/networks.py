"""The discriminator and the generator of Adversarial Fisher Vectors (arXiv:1910.13101, section 5).

Two exact identities make both networks cheaper without changing a number or a parameter:

* a 3x3 convolution followed by 2x2 mean pooling is one 4x4 convolution of stride 2, and
* nearest-neighbour doubling followed by a 3x3 convolution is one 4x4 transposed convolution of stride 2,

whose kernel is in both cases made of the four one-pixel shifts of the 3x3 kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "PooledConv2d",
    "UpsampledConv2d",
    "sum_of_shifts",
]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a :class:`Discriminator`.

    Attributes:
        width: Channels of every hidden layer (the paper: 128; 256 for its best results).
        image_size: Side of the training images in pixels, 32 or 64; 64 adds one residual block.
        slope: Negative slope of the leaky ReLU; 0 is the ReLU of the paper.
        head: What the training loss sees: ``"pooled"``, one energy an image (the paper), or ``"position"``,
            the energy at every position of the last map. The energy of an image is the mean either way.
        gain: Factor on the energy; relieves the Lipschitz bound that spectral normalisation sets.
        spectral_norm: Whether every convolution is spectrally normalised (training) or plain (a bundle).
    """

    width: int = 128
    image_size: int = 32
    slope: float = 0.0
    head: Literal["pooled", "position"] = "pooled"
    gain: float = 1.0
    spectral_norm: bool = True

    def __post_init__(self) -> None:
        _check_shape(self.width, self.image_size)
        if not 0 <= self.slope < 1:
            raise ValueError(f"slope must be in [0, 1), got {self.slope}")
        if self.head not in ("pooled", "position"):
            raise ValueError(f'head must be "pooled" or "position", got {self.head!r}')
        if not self.gain > 0:
            raise ValueError(f"gain must be positive, got {self.gain}")

    def plain(self) -> DiscriminatorConfig:
        """The same shape with ordinary weights, as a bundle stores it."""
        return replace(self, gain=1.0, spectral_norm=False)


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a :class:`Generator`.

    Attributes:
        width: Channels of every hidden layer.
        latent_size: Length of the latent vector z (the paper: 128).
        image_size: Side of the generated images in pixels, 32 or 64.
    """

    width: int = 128
    latent_size: int = 128
    image_size: int = 32

    def __post_init__(self) -> None:
        _check_shape(self.width, self.image_size)
        if self.latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {self.latent_size}")


def _check_shape(width: int, image_size: int) -> None:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if image_size not in (32, 64):
        raise ValueError(f"image_size must be 32 or 64, got {image_size}")


def sum_of_shifts(kernel: Tensor) -> Tensor:
    """Sum of the four one-pixel shifts of a kernel.

    Args:
        kernel: ``(..., 3, 3)``.

    Returns:
        ``(..., 4, 4)``.

    Example:
        >>> sum_of_shifts(torch.ones(1, 1, 3, 3))[0, 0]
        tensor([[1., 2., 2., 1.],
                [2., 4., 4., 2.],
                [2., 4., 4., 2.],
                [1., 2., 2., 1.]])
    """
    rows = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


class PooledConv2d(nn.Conv2d):
    """3x3 convolution (padding 1) and 2x2 mean pooling, computed as one 4x4 convolution of stride 2.

    Example:
        >>> layer, images = PooledConv2d(3, 5, 3, padding=1), torch.rand(2, 3, 8, 8)
        >>> plain = F.avg_pool2d(F.conv2d(images, layer.weight, layer.bias, padding=1), 2)
        >>> torch.allclose(layer(images), plain, atol=1e-6)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, H // 2, W // 2)``."""
        return F.conv2d(input, sum_of_shifts(self.weight) / 4, self.bias, stride=2, padding=1)


class UpsampledConv2d(nn.Conv2d):
    """Nearest-neighbour doubling and 3x3 convolution (padding 1), computed as one transposed convolution.

    Example:
        >>> layer, maps = UpsampledConv2d(3, 5, 3, padding=1), torch.rand(2, 3, 4, 4)
        >>> plain = F.conv2d(F.interpolate(maps, scale_factor=2), layer.weight, layer.bias, padding=1)
        >>> torch.allclose(layer(maps), plain, atol=1e-6)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, 2 H, 2 W)``."""
        kernel = sum_of_shifts(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class DiscriminatorBlock(nn.Module):
    """Residual block: [activation,] 3x3 conv, activation, 3x3 conv, plus a 3x3 conv shortcut; pooled if asked.

    Args:
        in_channels: Channels of the input.
        config: Width, slope and normalisation.
        first: The first block of the network sees the image itself, without an activation before it.
        pooled: Whether both branches end in 2x2 mean pooling.
    """

    def __init__(self, in_channels: int, config: DiscriminatorConfig, *, first: bool, pooled: bool) -> None:
        super().__init__()
        self.first = first
        self.pooled = pooled
        self.slope = config.slope
        last = PooledConv2d if pooled else nn.Conv2d
        self.conv1 = nn.Conv2d(in_channels, config.width, 3, padding=1)
        self.conv2 = last(config.width, config.width, 3, padding=1)
        self.shortcut = last(in_channels, config.width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, width, H', W')``, halved where the block pools."""
        hidden = input if self.first else F.leaky_relu(input, self.slope)
        hidden = F.leaky_relu(self.conv1(hidden), self.slope)
        out: Tensor = self.conv2(hidden) + self.shortcut(input)
        return out


class Discriminator(nn.Module):
    """The discriminator D(x; theta), whose scalar output is read as an energy: p(x) is proportional to exp D(x).

    Residual blocks down to 1/4 (1/8 for 64x64) of the image's size, then activation, mean over positions and a
    1x1 convolution. It is fully convolutional: images of any size from 32x32 on can be given.

    Args:
        config: Width, image size, slope, head, gain and normalisation.

    Example:
        >>> discriminator = Discriminator(DiscriminatorConfig(width=8, head="position"))
        >>> discriminator(torch.zeros(2, 3, 32, 32)).shape, discriminator.energy(torch.zeros(2, 3, 48, 40)).shape
        (torch.Size([2, 64]), torch.Size([2]))
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        pools = 2 if config.image_size == 32 else 3
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(config.width if index else 3, config, first=index == 0, pooled=index < pools)
                for index in range(pools + 2)
            )
        )
        self.head = nn.Conv2d(config.width, 1, 1)
        if config.spectral_norm:
            for layer in list(self.convolutions()):
                parametrizations.spectral_norm(layer)

    def convolutions(self) -> Iterator[nn.Conv2d]:
        """Every convolution, in the order of the forward pass."""
        return (module for module in self.modules() if isinstance(module, nn.Conv2d))

    def residual_blocks(self) -> list[DiscriminatorBlock]:
        """The blocks, in the order of the forward pass."""
        return cast(list[DiscriminatorBlock], list(self.blocks))

    @property
    def stride(self) -> int:
        """Pixels of the image for one position of the last map, along each axis."""
        return int(2 ** sum(block.pooled for block in self.residual_blocks()))

    def forward(self, images: Tensor) -> Tensor:
        """The energies that the training loss sees.

        Args:
            images: ``(N, 3, H, W)`` in [-1, 1].

        Returns:
            ``(N, 1)`` for the pooled head; ``(N, H/stride * W/stride)`` for the head at every position.
        """
        return self.energies_of(self.last_maps(images))

    def last_maps(self, images: Tensor) -> Tensor:
        """What the head sees: ``(N, 3, H, W)`` to ``(N, width, H/stride, W/stride)``."""
        return F.leaky_relu(self.blocks(images), self.config.slope)

    def energies_of(self, maps: Tensor) -> Tensor:
        """The energies of images, as :meth:`forward` gives them, from their :meth:`last_maps`."""
        if self.config.head == "pooled":
            maps = maps.mean((2, 3), keepdim=True)
        energies: Tensor = self.head(maps)
        return energies.flatten(1) * self.config.gain

    def energy(self, images: Tensor) -> Tensor:
        """The energy D(x) of each image: the mean over positions, ``(N,)``."""
        energies: Tensor = self(images)
        return energies.mean(1)

    @torch.no_grad()
    def baked_state(self) -> dict[str, Tensor]:
        """Plain weights with the same energies: spectral norms and gain folded in, one entry a weight and bias.

        The spectral norms are those of evaluation mode: the stored singular vectors, with no further iteration.
        """
        training = self.training
        self.eval()
        state = {}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                factor = self.config.gain if layer is self.head else 1.0
                state[f"{name}.weight"] = layer.weight * factor
                state[f"{name}.bias"] = layer.bias * factor
        self.train(training)
        return state

    def baked(self) -> Discriminator:
        """A plain copy in evaluation mode, with the weights of :meth:`baked_state`.

        Example:
            >>> trained = Discriminator(DiscriminatorConfig(width=4, gain=8.0)).eval()
            >>> images = torch.rand(2, 3, 32, 32)
            >>> torch.allclose(trained.energy(images), trained.baked().energy(images), atol=1e-5)
            True
        """
        with torch.device("meta"):
            plain = Discriminator(self.config.plain())
        plain.load_state_dict(self.baked_state(), assign=True)
        return plain.eval()

    @torch.no_grad()
    def load_baked(self, state: dict[str, Tensor]) -> None:
        """Start this network, normalised or not, from the weights of a :meth:`baked` one.

        Args:
            state: ``state_dict`` of a baked discriminator of the same width and image size.

        Raises:
            RuntimeError: If names or shapes differ.
        """
        with torch.device("meta"):
            plain = Discriminator(self.config.plain())
        plain.load_state_dict(state, assign=True)
        for source, target in zip(plain.convolutions(), self.convolutions(), strict=True):
            factor = self.config.gain if target is self.head else 1.0
            weight = (source.weight / factor).to(target.weight)
            if parametrize.is_parametrized(target):
                target.weight = weight  # through the parametrization, which normalises again what it is given
                # by the singular vectors that it keeps; they are still those of the weights of before.
                left, _, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
                normalisation = target.get_submodule("parametrizations.weight.0")
                normalisation.load_state_dict({"_u": left[:, 0], "_v": right[0]})
            else:
                target.weight.copy_(weight)
            if source.bias is not None and target.bias is not None:
                target.bias.copy_(source.bias / factor)


class GeneratorBlock(nn.Module):
    """Residual block: batch norm, ReLU, doubling, 3x3 conv, twice normalised; with a doubled 3x3 conv shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = UpsampledConv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = UpsampledConv2d(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, width, H, W)`` to ``(N, width, 2 H, 2 W)``."""
        hidden = self.conv1(F.relu(self.norm1(input)))
        hidden = self.conv2(F.relu(self.norm2(hidden)))
        out: Tensor = hidden + self.shortcut(input)
        return out


class Generator(nn.Module):
    """The generator G(z), which samples approximately from the energy-based model of the discriminator.

    Args:
        config: Width, latent size and image size.

    Example:
        >>> generator = Generator(GeneratorConfig(width=8, latent_size=16)).eval()
        >>> generator(generator.sample_latents(2)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        self.project = nn.ConvTranspose2d(config.latent_size, config.width, 4)
        count = 3 if config.image_size == 32 else 4
        self.blocks = nn.Sequential(*(GeneratorBlock(config.width) for _ in range(count)))
        self.norm = nn.BatchNorm2d(config.width)
        self.to_image = nn.Conv2d(config.width, 3, 3, padding=1)

    def sample_latents(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` latents z ~ N(0, I) on the CPU, moved to the network's device: ``(count, latent_size)``."""
        latents = torch.randn(count, self.config.latent_size, generator=generator)
        return latents.to(self.to_image.weight)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents ``(N, latent_size)`` to images ``(N, 3, S, S)`` in [-1, 1]."""
        maps = self.blocks(self.project(latents[:, :, None, None]))
        return torch.tanh(self.to_image(F.relu(self.norm(maps))))
