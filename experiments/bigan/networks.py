"""The convolutional networks of a BiGAN for 32x32 images; its generator is :class:`afv_metric.networks.Generator`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from afv_metric.networks import DiscriminatorBlock, PooledConv2d

__all__ = ["Encoder", "EncoderConfig", "JointDiscriminator"]

# Both networks halve the image three times, to 4x4, and have one more block there.
_POOLED = (True, True, True, False)
_LAST_SIDE = 4


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an :class:`Encoder`.

    Attributes:
        width: Channels of every hidden layer.
        latent_size: Length of the latents that it predicts.
        slope: Negative slope of the leaky ReLU.
    """

    width: int = 48
    latent_size: int = 64
    slope: float = 0.2

    def __post_init__(self) -> None:
        for name in ("width", "latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.slope < 1:
            raise ValueError(f"slope must be in [0, 1), got {self.slope}")


class EncoderBlock(nn.Module):
    """Residual block: 3x3 conv, batch norm, activation, 3x3 conv, plus a 3x3 conv shortcut; batch norm, activation.

    Args:
        in_channels: Channels of the input.
        config: Width and slope.
        pooled: Whether both branches end in 2x2 mean pooling.
    """

    def __init__(self, in_channels: int, config: EncoderConfig, *, pooled: bool) -> None:
        super().__init__()
        self.slope = config.slope
        last = PooledConv2d if pooled else nn.Conv2d
        self.conv1 = nn.Conv2d(in_channels, config.width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(config.width)
        self.conv2 = last(config.width, config.width, 3, padding=1, bias=False)
        self.shortcut = last(in_channels, config.width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(config.width)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, width, H', W')``, halved where the block pools."""
        hidden = F.leaky_relu(self.norm1(self.conv1(input)), self.slope)
        return F.leaky_relu(self.norm2(self.conv2(hidden) + self.shortcut(input)), self.slope)


class Encoder(nn.Module):
    """The encoder E(x), the generator turned round: four residual blocks, and a linear map of their 4x4 positions.

    Latents are predicted for 32x32 images alone; the maps of the blocks can be had of images of any size.

    Args:
        config: Width, latent size and slope.

    Example:
        >>> encoder = Encoder(EncoderConfig(width=8, latent_size=16)).eval()
        >>> encoder(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])
        >>> [tuple(maps.shape) for maps in encoder.maps(torch.zeros(1, 3, 64, 48))]
        [(1, 8, 32, 24), (1, 8, 16, 12), (1, 8, 8, 6), (1, 8, 8, 6)]
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width if index else 3, config, pooled=pooled) for index, pooled in enumerate(_POOLED)
        )
        self.head = nn.Conv2d(config.width, config.latent_size, _LAST_SIDE)

    @property
    def stride(self) -> int:
        """Pixels of the image for one position of the last map, along each axis."""
        return int(2 ** sum(_POOLED))

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each block gives.

        Args:
            images: ``(N, 3, H, W)`` in [-1, 1], H and W multiples of :attr:`stride`.

        Returns:
            Maps ``(N, width, H / s, W / s)`` with s = 2, 4, 8 and 8.
        """
        found = []
        for block in self.blocks:
            images = block(images)
            found.append(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, 32, 32)`` in [-1, 1] to latents ``(N, latent_size)``."""
        latents: Tensor = self.head(self.maps(images)[-1])
        return latents.flatten(1)


class JointDiscriminator(nn.Module):
    """The discriminator D(x, z) of pairs: a trunk for the image, then layers that see its 4x4 map and the latents.

    The map keeps its positions, so that D can judge whether the latents belong to this arrangement of the image. Every
    layer is spectrally normalised.

    Args:
        width: Channels of the trunk.
        latent_size: Length of the latents.
        hidden: Width of the two layers that see both.
        slope: Negative slope of the leaky ReLU.
        gain: Factor on the logit; relieves the Lipschitz bound that spectral normalisation sets.

    Example:
        >>> discriminator = JointDiscriminator(width=8, latent_size=16, hidden=32)
        >>> discriminator(torch.zeros(2, 3, 32, 32), torch.zeros(2, 16)).shape
        torch.Size([2])
    """

    def __init__(
        self, width: int = 48, latent_size: int = 64, *, hidden: int = 256, slope: float = 0.2, gain: float = 8.0
    ) -> None:
        super().__init__()
        self.gain = gain
        self.trunk = nn.Sequential(
            *(
                DiscriminatorBlock(width if index else 3, width, slope, first=index == 0, pools=2 if pooled else 0)
                for index, pooled in enumerate(_POOLED)
            ),
            nn.LeakyReLU(slope),
            nn.Flatten(),
        )
        self.joint = nn.Sequential(
            nn.Linear(width * _LAST_SIDE**2 + latent_size, hidden),
            nn.LeakyReLU(slope),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(slope),
            nn.Linear(hidden, 1),
        )
        for layer in [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]:
            parametrizations.spectral_norm(layer)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Judge pairs.

        Args:
            images: ``(N, 3, 32, 32)`` in [-1, 1].
            latents: ``(N, latent_size)``.

        Returns:
            Logits ``(N,)`` in float32, high for an image and its code.
        """
        features = self.trunk(images)
        logits: Tensor = self.joint(torch.cat([features, latents.to(features)], 1))
        return logits.float().flatten() * self.gain
