"""Distances of two videos, frame by frame and in the memory of two frames each."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from afv_metric.images import ImageError, Reader
from afv_metric.images.listing import list_images
from afv_metric.metric import AFVDistance, Embedding

__all__ = ["FrameDistance", "compare_frames", "read_frames"]


class FrameDistance(NamedTuple):
    """What one frame of two videos differs by.

    Attributes:
        distance: Distance of the two frames.
        temporal: Distance of the second video's frame to the one before it, less that of the first video: positive
            where the second flickers, negative where its motion is lost. NaN for the first frame.
    """

    distance: float
    temporal: float


@torch.no_grad()
def compare_frames(metric: AFVDistance, first: Iterable[Tensor], second: Iterable[Tensor]) -> Iterator[FrameDistance]:
    """Compare two videos frame by frame.

    Args:
        metric: The distance.
        first: Frames of :func:`read_frames`, or a tensor ``(T, 3, H, W)`` of values as the metric takes them. For
            batches ``(N, T, 3, H, W)`` call it for each pair of ``zip(batch0, batch1)``.
        second: As many frames of the same size.

    Yields:
        The distances of each frame, as soon as both frames are there.

    Raises:
        ValueError: If one has more frames, when the other ends; if sizes differ.

    Example:
        >>> first = torch.rand(3, 3, 32, 48) * 2 - 1
        >>> metric = AFVDistance()
        >>> frames = list(compare_frames(metric, first, first.flip(0)))
        >>> torch.allclose(torch.tensor([frame.distance for frame in frames]), metric(first, first.flip(0)))
        True
    """

    def distance(one: Embedding, other: Embedding) -> float:
        return float(metric.paired_distance(one, other))

    before: tuple[Embedding, Embedding] | None = None
    for frames in itertools.zip_longest(first, second):
        if frames[0] is None or frames[1] is None:
            ended = "first" if frames[0] is None else "second"
            raise ValueError(f"the {ended} video has ended, and the other goes on")
        x, y = (metric.embed(frame) for frame in frames)
        change = distance(y, before[1]) - distance(x, before[0]) if before else float("nan")
        yield FrameDistance(distance(x, y), change)
        before = x, y


def read_frames(path: str | os.PathLike[str], reader: Reader | None = None) -> Iterator[Tensor]:
    """Frames of a video file, or the images of a folder, one at a time.

    Args:
        path: A file, which PyAV of the extra ``video`` decodes; or a folder, whose images are taken by name, numbers in
            names in their order.
        reader: How images of a folder are read.

    Yields:
        uint8 ``(1, 3, H, W)``.

    Raises:
        ValueError: If it holds no video or image, or is damaged.
        OSError: If it cannot be opened.
    """
    if os.path.isdir(path):
        files, _ = list_images(path)
        for name in sorted(files, key=_in_order):
            yield (reader or Reader()).read(Path(files[name]))
        return
    try:
        import av
    except ImportError as error:
        raise ImageError(os.fspath(path), "needs av to be read: pip install 'afv-metric[video]'") from error
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise ImageError(os.fspath(path), "holds no video")
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
    except av.FFmpegError as error:
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise ImageError(os.fspath(path), f"cannot be decoded: {error.strerror}") from error


def _in_order(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
