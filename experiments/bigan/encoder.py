"""The trained encoder of a BiGAN in a folder, checked strictly when it is read.

    config.json            what it is: shape, provenance, size and hash of the weights
    encoder.safetensors    weights and running statistics of the encoder

Both are safetensors and JSON; no pickle is read. As a metric:

    export BIGAN_ENCODER=FOLDER
    python -m bapps_eval --metric experiments.bigan.encoder:distance ...
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.resolve import BundleError
from afv_metric.bundles.tensors import read_tensors, write_tensors
from afv_metric.files import atomic_update, finish_update
from afv_metric.images.tensors import pad_to_multiple, to_network_range
from experiments.bigan.networks import Encoder, EncoderConfig

__all__ = ["BiGANDistance", "TrainedEncoder", "distance", "load_encoder", "save_encoder"]

_KIND, _SCHEMA_VERSION = "bigan-encoder", 1
_CONFIG, _WEIGHTS = "config.json", "encoder.safetensors"


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder and where it comes from.

    Attributes:
        name: Short name.
        encoder: The encoder, in evaluation mode.
        training: Provenance of the weights: recipe, data, iterations, seconds.
        hash: sha256 of ``config.json``, which holds that of the weights; empty until read from a folder.
    """

    name: str
    encoder: Encoder
    training: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""


def save_encoder(trained: TrainedEncoder, folder: str | os.PathLike[str]) -> Path:
    """Write an encoder, all of it or nothing; one that stands at ``folder`` is replaced.

    Args:
        trained: The encoder.
        folder: Folder to write.

    Returns:
        The folder.

    Raises:
        BundleError: If a tensor is not finite, or ``folder`` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _WEIGHTS).exists():
        raise BundleError(f"{folder} is not the folder of an encoder and not empty; choose another place")
    state = {name: value.contiguous() for name, value in trained.encoder.state_dict().items()}
    with atomic_update(folder, _CONFIG) as temporary:
        config = {
            "kind": _KIND,
            "schema_version": _SCHEMA_VERSION,
            "name": trained.name,
            "encoder": asdict(trained.encoder.config),
            "training": dict(trained.training),
            "files": {_WEIGHTS: write_tensors(state, temporary / _WEIGHTS)},
        }
        (temporary / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def load_encoder(folder: str | os.PathLike[str]) -> TrainedEncoder:
    """Read an encoder and check all of it.

    Args:
        folder: Folder that :func:`save_encoder` wrote.

    Returns:
        The encoder, on the CPU.

    Raises:
        BundleError: If anything is missing, too much, misshapen, damaged or not finite.
    """
    path = Path(folder, _CONFIG)
    try:
        finish_update(folder, _CONFIG)
        content = path.read_bytes()
        config = json.loads(content)
    except FileNotFoundError:
        raise BundleError(
            f"there is no BiGAN encoder in {folder}: it has no {_CONFIG}; make one with "
            "`python -m experiments.bigan train` and `export`"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the run again") from error
    found = (config.get("kind"), config.get("schema_version")) if isinstance(config, dict) else None
    if found != (_KIND, _SCHEMA_VERSION):
        raise BundleError(f"{path} describes {found}, expected {(_KIND, _SCHEMA_VERSION)}: it is no BiGAN encoder")
    try:
        with torch.device("meta"):
            encoder = Encoder(EncoderConfig(**config["encoder"]))
        expected = {name: value.shape for name, value in encoder.state_dict().items()}
        state = read_tensors(path.with_name(_WEIGHTS), config["files"][_WEIGHTS], expected)
        encoder.load_state_dict(state, assign=True)
        digest = hashlib.sha256(content).hexdigest()
        return TrainedEncoder(config["name"], encoder.requires_grad_(False).eval(), config["training"], digest)
    except OSError as error:
        raise BundleError(f"{folder} is not complete ({error}); export the run again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} does not describe an encoder: {error!r}") from error


class BiGANDistance(nn.Module):
    """The distance of LPIPS without its fitted weights, on the maps of a BiGAN's encoder.

    The output of each block is scaled to length 1 at every position; squared differences are summed over channels,
    averaged over positions and summed over blocks.

    Args:
        encoder: The encoder, in evaluation mode.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Distances ``(N,)`` of two batches ``(N, 3, H, W)`` in [-1, 1], at least 32x32."""
        dtype = self.encoder.head.weight.dtype
        images = to_network_range(torch.cat([img0, img1]), normalize=False, dtype=dtype)
        maps = self.encoder.maps(pad_to_multiple(images, self.encoder.stride))
        pairs = [F.normalize(layer).chunk(2) for layer in maps]
        return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]).sum(0)


def distance() -> BiGANDistance:
    """The distance by the encoder in the folder ``$BIGAN_ENCODER``.

    Raises:
        ValueError: If the variable is not set.
        BundleError: As for :func:`load_encoder`.
    """
    folder = os.environ.get("BIGAN_ENCODER")
    if not folder:
        raise ValueError("set BIGAN_ENCODER to the folder that `python -m experiments.bigan export` has written")
    return BiGANDistance(load_encoder(folder).encoder)
