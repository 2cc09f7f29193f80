"""A perceptual distance for images that needs no labels, from Adversarial Fisher Vectors (arXiv:1910.13101).

Example:
    >>> import torch, afv_metric
    >>> distance = afv_metric.AFVDistance()
    >>> images = torch.rand(4, 3, 64, 64) * 2 - 1
    >>> distance(images, images.flip(3)).shape
    torch.Size([4])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afv_metric.bundles.bundle import Bundle, BundleError, load_bundle, save_bundle
    from afv_metric.bundles.resolve import DEFAULT_BUNDLE, HubError, list_bundles
    from afv_metric.images.reading import read_image
    from afv_metric.metric import AFVDistance, Embedding

__version__ = "0.2.0.dev0"

__all__ = [
    "DEFAULT_BUNDLE", "AFVDistance", "Bundle", "BundleError", "Embedding", "HubError", "list_bundles", "load_bundle",
    "read_image", "save_bundle",
]  # fmt: skip

# Where each name is found: it is imported at its first use, so that the command line answers without torch (PEP 562).
_MODULES = {
    "afv_metric.bundles.bundle": ("Bundle", "BundleError", "load_bundle", "save_bundle"),
    "afv_metric.bundles.resolve": ("DEFAULT_BUNDLE", "HubError", "list_bundles"),
    "afv_metric.images.reading": ("read_image",),
    "afv_metric.metric": ("AFVDistance", "Embedding"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
