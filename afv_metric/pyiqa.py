"""The distance as a metric of pyiqa, under the name ``afv``; pyiqa's entry points find :func:`register`."""

from __future__ import annotations

import functools

from afv_metric.metric import AFVDistance

__all__ = ["register"]


def register() -> None:
    """Make the distance known to pyiqa: afterwards ``pyiqa.create_metric("afv", form=..., as_loss=...)``.

    pyiqa finds the architecture ``AFVDistance`` by itself, but the name of a metric only once this was called.

    Raises:
        ImportError: Without pyiqa.
    """
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils.registry import ARCH_REGISTRY

    # pyiqa's images are in [0, 1].
    ARCH_REGISTRY.register(functools.partial(AFVDistance, normalize=True), name="AFVDistance", override=True)
    DEFAULT_CONFIGS["afv"] = {
        "metric_opts": {"type": "AFVDistance"},
        "metric_mode": "FR",
        "lower_better": True,
        "score_range": "0, ~",
    }
