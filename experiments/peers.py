"""The distances that ours is compared with, as far as they are at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from bapps_eval.metrics import Choice, Metric, make_metrics

__all__ = ["PEERS", "peers_at_hand"]

PEERS = (
    *("l2", "psnr", "ssim", "ms-ssim", "piq:fsim", "dists", "stlpips-alex"),
    *("lpips-alex", "lpips-squeeze", "lpips-alex-baseline", "lpips-squeeze-baseline"),
)
_TRUNKS = {
    "lpips-alex": AlexNet_Weights.DEFAULT,
    "lpips-squeeze": SqueezeNet1_1_Weights.DEFAULT,
    "lpips-vgg": VGG16_Weights.DEFAULT,
    "dists": VGG16_Weights.DEFAULT,
}
_log = logging.getLogger(__name__)


def peers_at_hand(names: Sequence[str], device: str = "cpu") -> list[Metric]:
    """Make metrics by name; one whose package or large weights are not on this machine is left out, with a warning.

    Args:
        names: Names, as for :func:`bapps_eval.metrics.make_metrics`.
        device: Device of the metrics.

    Example:
        >>> [metric.name for metric in peers_at_hand(["l2", "psnr"])]
        ['l2', 'psnr']
    """
    found = []
    for name in names:
        trunk = _TRUNKS.get(name.removesuffix("-baseline"))
        file = trunk and Path(torch.hub.get_dir(), "checkpoints", Path(trunk.url).name)
        try:
            if file and not file.is_file():
                raise OSError(f"there is no {file.name} in the folder of torch.hub, see TORCH_HOME")
            found += make_metrics([name], Choice(device=device))
        except (ImportError, OSError) as error:
            _log.warning("%s is left out: %s", name, error)
    return found
