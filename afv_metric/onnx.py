"""The distance as an ONNX model, for programs without Python; the extra ``onnx`` installs what writes it."""

from __future__ import annotations

import os
import warnings

import torch

from afv_metric.files import atomic_write
from afv_metric.images.tensors import SMALLEST_SIDE
from afv_metric.metric import AFVDistance

__all__ = ["export_onnx"]

_LARGEST_SIDE = 2**15


def export_onnx(metric: AFVDistance, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> None:
    """Write a distance as an ONNX model with the inputs ``img0`` and ``img1`` and the output ``distance``.

    The inputs are float32 ``(N, C, H, W)`` in the range of the metric, any N; the output is what the metric returns.
    The graph has no chunks: memory grows with the batch and the image.

    Args:
        metric: The distance, of the form ``activation`` or ``local``.
        path: The file.
        size: Height and width of the images; any from 32 on if None.

    Raises:
        ValueError: For the form ``fisher``, whose kernels have as many groups as a batch has images.
        ImportError: Without the extra ``onnx``.
    """
    if metric.form == "fisher":
        raise ValueError("the form fisher has no ONNX model; activation and local have")
    height, width = size or (2 * SMALLEST_SIDE, 3 * SMALLEST_SIDE)
    images = torch.linspace(-1, 1, 2 * metric.channels * height * width).view(2, -1, height, width)
    axes = {0: torch.export.Dim("n", max=2**16)}
    if size is None:
        axes |= {
            axis: torch.export.Dim(name, min=SMALLEST_SIDE, max=_LARGEST_SIDE) for axis, name in ((2, "h"), (3, "w"))
        }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            metric,
            (images, images.flip(3)),
            input_names=["img0", "img1"],
            output_names=["distance"],
            dynamic_shapes=(axes, axes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_write(path) as place:
        program.save(place)
