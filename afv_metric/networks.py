"""The discriminator and the generator of Adversarial Fisher Vectors (arXiv:1910.13101, section 5).

Two exact identities make both networks cheaper without changing a number or a parameter:

* a 3x3 convolution followed by 2x2 mean pooling is one 4x4 convolution of stride 2, and
* nearest-neighbour doubling followed by a 3x3 convolution is one 4x4 transposed convolution of stride 2,

whose kernel is in both cases made of the four one-pixel shifts of the 3x3 kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

__all__ = [
    "Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "PooledConv2d", "UpsampledConv2d",
    "for_channels", "sum_of_shifts",
]  # fmt: skip


class _Shape:
    """What both networks have: residual blocks of one or several widths, by the size of the images."""

    _blocks: ClassVar[Mapping[int, int]]  # number of residual blocks by the side of the images
    width: int | tuple[int, ...]
    image_size: int
    channels: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.image_size not in self._blocks:
            raise ValueError(f"image_size must be 32 or 64, got {self.image_size}")
        if not isinstance(self.width, int):
            object.__setattr__(self, "width", tuple(self.width))  # JSON has lists for tuples
        if len(self.widths) != self._blocks[self.image_size]:
            wanted = f"one number, or {self._blocks[self.image_size]} for images of {self.image_size} pixels"
            raise ValueError(f"width must be {wanted}; got {self.width}")
        if min(self.widths) < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each residual block."""
        return (self.width,) * self._blocks[self.image_size] if isinstance(self.width, int) else self.width


@dataclass(frozen=True)
class DiscriminatorConfig(_Shape):
    """Shape of a :class:`Discriminator`.

    Attributes:
        width: Channels of every residual block, or one number per block (the paper: 128; 256 for its best results).
        image_size: Side of the training images in pixels, 32 or 64; 64 adds one residual block.
        slope: Negative slope of the leaky ReLU; 0 is the ReLU of the paper.
        head: What the training loss sees: ``"pooled"``, one logit per image (the paper), or ``"position"``,
            the logit at every position of the last map. The logit of an image is the mean either way.
        gain: Factor on the logit; relieves the Lipschitz bound that spectral normalisation sets.
        spectral_norm: Whether every convolution is spectrally normalised (training) or plain (a bundle).
        strided_stem: Whether the first block halves its input in its first convolution rather than in its second
            (the paper): no map but the image itself is then at full resolution.
        channels: Channels of the images.
    """

    _blocks: ClassVar[Mapping[int, int]] = {32: 4, 64: 5}

    width: int | tuple[int, ...] = 128
    image_size: int = 32
    slope: float = 0.0
    head: Literal["pooled", "position"] = "pooled"
    gain: float = 1.0
    spectral_norm: bool = True
    strided_stem: bool = False
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.slope < 1:
            raise ValueError(f"slope must be in [0, 1), got {self.slope}")
        if self.head not in ("pooled", "position"):
            raise ValueError(f'head must be "pooled" or "position", got {self.head!r}')
        if not self.gain > 0:
            raise ValueError(f"gain must be positive, got {self.gain}")

    @property
    def pooled_blocks(self) -> int:
        """Number of residual blocks that halve their input; two more follow that do not."""
        return self._blocks[self.image_size] - 2

    def plain(self) -> DiscriminatorConfig:
        """The same shape with ordinary weights, as a bundle stores it."""
        return replace(self, gain=1.0, spectral_norm=False)


@dataclass(frozen=True)
class GeneratorConfig(_Shape):
    """Shape of a :class:`Generator`.

    Attributes:
        width: Channels of every residual block, or one number per block.
        latent_size: Length of the latent vector z (the paper: 128).
        image_size: Side of the generated images in pixels, 32 or 64.
        channels: Channels of the images.
    """

    _blocks: ClassVar[Mapping[int, int]] = {32: 3, 64: 4}

    width: int | tuple[int, ...] = 128
    latent_size: int = 128
    image_size: int = 32
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {self.latent_size}")


def sum_of_shifts(kernel: Tensor) -> Tensor:
    """Sum of the four one-pixel shifts of a kernel: ``(..., 3, 3)`` to ``(..., 4, 4)``.

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
    """Residual block: [activation,] 3x3 conv, activation, 3x3 conv, plus a 3x3 conv shortcut.

    No activation precedes the ``first`` block, whose input is the image. Convolution 1 or 2 ``pools``: 2x2 mean pooling
    follows it, as it follows the shortcut; 0 for none.
    """

    def __init__(self, in_channels: int, channels: int, slope: float, *, first: bool, pools: int) -> None:
        super().__init__()
        self.first, self.pools, self.slope = first, pools, slope

        def convolution(inputs: int, pooled: bool) -> nn.Conv2d:
            return (PooledConv2d if pooled else nn.Conv2d)(inputs, channels, 3, padding=1)

        self.conv1 = convolution(in_channels, pools == 1)
        self.conv2 = convolution(channels, pools == 2)
        self.shortcut = convolution(in_channels, pools > 0)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, channels, H', W')``, halved where the block pools."""
        hidden = input if self.first else F.leaky_relu(input, self.slope)
        hidden = F.leaky_relu(self.conv1(hidden), self.slope)
        out: Tensor = self.conv2(hidden) + self.shortcut(input)
        return out


class Discriminator(nn.Module):
    """The discriminator D(x; theta). Its logit is a log-density up to a constant: p(x) is proportional to exp D(x).

    (In the paper's words D is the *negative* energy.) Residual blocks down to 1/4 (1/8 for 64x64) of the image's size,
    then activation, mean over positions and a 1x1 convolution. It is fully convolutional: images of any size from 32x32
    on can be given.

    Example:
        >>> discriminator = Discriminator(DiscriminatorConfig(width=8, head="position"))
        >>> discriminator(torch.zeros(2, 3, 32, 32)).shape, discriminator.logit(torch.zeros(2, 3, 48, 40)).shape
        (torch.Size([2, 64]), torch.Size([2]))
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        blocks = []
        for index, (inputs, channels) in enumerate(zip((config.channels, *config.widths), config.widths, strict=False)):
            first = index == 0
            pools = (1 if first and config.strided_stem else 2) if index < config.pooled_blocks else 0
            blocks.append(DiscriminatorBlock(inputs, channels, config.slope, first=first, pools=pools))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(config.widths[-1], 1, 1)
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
        return int(2**self.config.pooled_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """The logits that the training loss sees of ``(N, C, H, W)`` in [-1, 1].

        Returns:
            ``(N, 1)`` for the pooled head; ``(N, H/stride * W/stride)`` for the head at every position.
        """
        maps = F.leaky_relu(self.blocks(images), self.config.slope)
        if self.config.head == "pooled":
            maps = maps.mean((2, 3), keepdim=True)
        logits: Tensor = self.head(maps)
        return logits.flatten(1) * self.config.gain

    def logit(self, images: Tensor) -> Tensor:
        """The logit D(x) of each image: the mean over positions, ``(N,)``."""
        logits: Tensor = self(images)
        return logits.mean(1)

    @torch.no_grad()
    def baked_state(self) -> dict[str, Tensor]:
        """Plain weights with the same logits: spectral norms and gain folded in, one entry per weight and bias.

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
            >>> torch.allclose(trained.logit(images), trained.baked().logit(images), atol=1e-5)
            True
        """
        with torch.device("meta"):
            plain = Discriminator(self.config.plain())
        plain.load_state_dict(self.baked_state(), assign=True)
        return plain.eval()

    @torch.no_grad()
    def load_baked(self, state: dict[str, Tensor]) -> None:
        """Start this network, normalised or not, from the weights of a :meth:`baked` one of the same shape.

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

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = UpsampledConv2d(in_channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = UpsampledConv2d(in_channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, channels, 2 H, 2 W)``."""
        hidden = self.conv1(F.relu(self.norm1(input)))
        hidden = self.conv2(F.relu(self.norm2(hidden)))
        out: Tensor = hidden + self.shortcut(input)
        return out


class Generator(nn.Module):
    """The generator G(z), which samples approximately from the energy-based model of the discriminator.

    Example:
        >>> generator = Generator(GeneratorConfig(width=8, latent_size=16)).eval()
        >>> generator(generator.sample_latents(2)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        widths = config.widths
        self.project = nn.ConvTranspose2d(config.latent_size, widths[0], 4)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(GeneratorBlock(*pair) for pair in pairs))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = nn.Conv2d(widths[-1], config.channels, 3, padding=1)

    def sample_latents(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` latents z ~ N(0, I) on the CPU, moved to the network's device: ``(count, latent_size)``."""
        latents = torch.randn(count, self.config.latent_size, generator=generator)
        return latents.to(self.to_image.weight)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents ``(N, latent_size)`` to images ``(N, C, S, S)`` in [-1, 1]."""
        maps = self.blocks(self.project(latents[:, :, None, None]))
        return torch.tanh(self.to_image(F.relu(self.norm(maps))))


def for_channels(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Weights of a network for images of another number of channels: where all are equal it does what it did for grey.

    The first convolutions of a discriminator share their weights out among the channels; the last one of a generator
    gives each of them the mean. ``state`` is that of a baked discriminator or a generator.

    Example:
        >>> colour, grey = (Discriminator(DiscriminatorConfig(4, channels=count).plain()) for count in (3, 1))
        >>> grey.load_state_dict(for_channels(colour.state_dict(), 1))
        <All keys matched successfully>
        >>> images = torch.rand(2, 1, 32, 32)
        >>> torch.allclose(grey.logit(images), colour.logit(images.expand(-1, 3, -1, -1)), atol=1e-6)
        True
    """
    if "to_image.weight" in state:
        last = {name: state[name].mean(0, keepdim=True) for name in ("to_image.weight", "to_image.bias")}
        return {**state, **{name: mean.repeat(channels, *[1] * (mean.ndim - 1)) for name, mean in last.items()}}
    first = {name: state[name].sum(1, keepdim=True) for name in ("blocks.0.conv1.weight", "blocks.0.shortcut.weight")}
    return {**state, **{name: total.repeat(1, channels, 1, 1) / channels for name, total in first.items()}}
