"""Where 0.1 had the distance: use :mod:`afv_metric`."""

from afv_metric.deprecation import moved

__getattr__ = moved(__name__, {"AFVDistance": "afv_metric", "Embedding": "afv_metric"}, until="0.3")
