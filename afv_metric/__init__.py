"""A perceptual distance for images that needs no labels, from Adversarial Fisher Vectors (arXiv:1910.13101).

Example:
    >>> import torch, afv_metric
    >>> distance = afv_metric.AFVDistance()
    >>> images = torch.rand(4, 3, 64, 64) * 2 - 1
    >>> distance(images, images.flip(3)).shape
    torch.Size([4])
"""

from afv_metric.bundles.bundle import Bundle, BundleError, load_bundle, save_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE, HubError, list_bundles
from afv_metric.metric import AFVDistance, Embedding

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_BUNDLE",
    "AFVDistance",
    "Bundle",
    "BundleError",
    "Embedding",
    "HubError",
    "list_bundles",
    "load_bundle",
    "save_bundle",
]
