"""Comparing two batches of images with one form: levels, pieces that bound the memory, and exact gradients by autograd.

Pairs are worked on in chunks. Where a form sees no farther than a few pixels, large images are cut into bands of rows
with margins as wide as the form sees, and the maps of the bands are joined before they are pooled: no result depends on
the cuts. Under autograd a piece is computed once more in the backward pass, unless it is the only one: it keeps its
images, and of a band whose one side needs no gradient what describes that side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from afv_metric.fisher.forms import ActivationForm, Description, FisherForm, Form, Part, PositionForm
from afv_metric.images.tensors import is_exporting

__all__ = ["Comparison", "at_level", "pyramid", "total_of"]

_Result = TypeVar("_Result")
# Pixels of each of two batches that are worked on at a time, and of a band, by measurement: more where what is cut is
# recomputed for a gradient, fewer where the form keeps all maps for a backward pass.
_PIXELS, _BACKWARD_PIXELS, _TRACKED_PIXELS = 2**15, 2**14, 2**19
_BAND_PIXELS, _TRACKED_BAND_PIXELS = 2**16, 2**18
_ROWS = 64  # of which a band has a multiple; its margins are added to them


@dataclass(frozen=True, repr=False)  # the compiler of torch 2.6 prints it before it has its fields
class Comparison:
    """Distances, or maps of the local distance, between N pairs of images of one size.

    Attributes:
        form: The form of the distance.
        spatial: Whether to give maps ``(N, 1, H, W)`` rather than distances ``(N,)``.
        chunk_size: Pairs worked on at a time; as many as fill a bounded number of pixels if None.
    """

    form: Form
    spatial: bool = False
    chunk_size: int | None = None

    def compare_parts(self, first: Tensor, second: Tensor, weights: Tensor | None = None) -> dict[Part, Tensor]:
        """Compare: :func:`total_of` the parts is the distance, or the map.

        Args:
            first: ``(N, 3, H, W)`` or ``(1, 3, H, W)`` in [-1, 1]; H and W whole strides of the network at every level.
            second: ``(N, 3, H, W)`` or ``(1, 3, H, W)``, in the same range and of the same size.
            weights: Non-negative weights of the pixels, ``(N, 1, H, W)`` or ``(1, 1, H, W)``; equal if None.

        Returns:
            What each part adds: ``(N,)``, or ``(N, 1, H, W)`` if spatial; differentiable with respect to the images.
        """
        if is_exporting():  # as a whole: the number of chunks and bands would be fixed in the graph
            return self._compare_chunk(first, second, weights)
        count = max(len(first), len(second))
        untracked = _PIXELS if isinstance(self.form, ActivationForm) else _BACKWARD_PIXELS
        pixels = _TRACKED_PIXELS if _tracked(first, second) else untracked
        size = self.chunk_size or max(1, pixels // (first.shape[2] * first.shape[3]))

        def cut(value: Tensor | None, start: int) -> Tensor | None:
            return value if value is None or len(value) == 1 else value[start : start + size]

        chunks = [
            _recomputed(self._compare_chunk, count > size, *(cut(value, start) for value in (first, second, weights)))
            for start in range(0, count, size)
        ]
        return {part: torch.cat([chunk[part] for chunk in chunks]) for part in chunks[0]}

    def _compare_chunk(self, first: Tensor, second: Tensor, weights: Tensor | None) -> dict[Part, Tensor]:
        found: dict[Part, Tensor] = {}
        levels = zip(pyramid(first, self.form.levels), pyramid(second, self.form.levels), strict=True)
        for (level, x), (_, y) in levels:
            for part, value in self._compare_level(level, x, y, at_level(weights, level)):
                if self.spatial and level:
                    value = F.interpolate(value, size=first.shape[2:], mode="bilinear")
                found[part] = value
        return found

    def _compare_level(
        self, level: int, first: Tensor, second: Tensor, weights: Tensor | None
    ) -> Iterator[tuple[Part, Tensor]]:
        """What each part at one level adds to the distances, or to the maps on the pixels of the level."""
        form = self.form
        if self.spatial:
            for part, x, y in _in_pairs(lambda images, _: form.describe_for_map(level, images), first, second):
                yield part, form.map_on_pixels(part, x, y, first.shape[2:])
        elif isinstance(form, FisherForm) and first.shape[0] == second.shape[0] and _alike(first, second):
            for part, difference in form.describe_difference(level, first, second, weights):
                yield part, form.length(part, difference)
        elif isinstance(form, PositionForm) and not is_exporting() and (margin := form.reach(level)) is not None:
            pixels = _TRACKED_BAND_PIXELS if _tracked(first, second) else _BAND_PIXELS
            bands = _bands(first.shape[2], first.shape[3], margin, pixels)
            maps = [self._maps_of_band(level, band, first, second, len(bands) > 1) for band in bands]
            for part in maps[0]:
                yield part, form.pool(part, torch.cat([of_band[part] for of_band in maps], 2), weights)
        else:
            for part, x, y in _in_pairs(functools.partial(form.describe, level), first, second, weights):
                yield part, form.compare(part, x, y, weights)

    def _maps_of_band(
        self, level: int, band: _Band, first: Tensor, second: Tensor, several: bool
    ) -> dict[Part, Tensor]:
        """The maps of all parts for one band of rows, without its margins."""
        form = self.form
        assert isinstance(form, PositionForm)
        describe = functools.partial(form.describe, level)
        first, second = (images[:, :, band.top : band.bottom] for images in (first, second))

        def compare(pairs: Iterator[tuple[Part, Description, Description]]) -> dict[Part, Tensor]:
            maps = {}
            for part, x, y in pairs:
                step = form.step(part)
                rows = slice((band.start - band.top) // step, (band.end - band.top) // step)
                maps[part] = form.map(part, x, y)[:, :, rows]
            return maps

        if not several or _alike(first, second):
            return _recomputed(lambda x, y: compare(_in_pairs(describe, x, y)), several, first, second)
        # What wants no gradient, as a target, is described once, and not again in the backward pass.
        turned = second.requires_grad
        known = dict(describe(first if turned else second))

        def compare_with_known(images: Tensor) -> dict[Part, Tensor]:
            found = describe(images)
            return compare((part, known[part], x) if turned else (part, x, known[part]) for part, x in found)

        return _recomputed(compare_with_known, True, second if turned else first)


class _Band(NamedTuple):
    """Rows from ``start`` to ``end`` of an image, and with the margins from ``top`` to ``bottom``."""

    start: int
    end: int
    top: int
    bottom: int


def total_of(parts: Mapping[Part, Tensor]) -> Tensor:
    """The sum of all parts."""
    return functools.reduce(Tensor.add, parts.values())


def pyramid(images: Tensor, levels: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Some levels, in rising order, of the image pyramid, with their images: each the 2x2 mean of the one before."""
    at = 0
    for level in levels:
        while at < level:
            images, at = F.avg_pool2d(images, 2), at + 1
        yield level, images


def at_level(weights: Tensor | None, level: int) -> Tensor | None:
    """Weights of the pixels of a level, from those of the images."""
    return None if weights is None else F.avg_pool2d(weights, 2**level)


def _bands(height: int, width: int, margin: int, pixels: int) -> list[_Band]:
    rows = max(_ROWS, pixels // width // _ROWS * _ROWS)
    return [
        _Band(start, min(start + rows, height), max(start - margin, 0), min(start + rows + margin, height))
        for start in range(0, height, rows)
    ]


def _in_pairs(
    describe: Callable[[Tensor, Tensor | None], Iterator[tuple[Part, Description]]],
    first: Tensor,
    second: Tensor,
    weights: Tensor | None = None,
) -> Iterator[tuple[Part, Description, Description]]:
    """Descriptions of both batches, part by part; in one pass where two would save nothing."""
    count = first.shape[0]  # not its length, which torch.export would fix
    if count == second.shape[0] and _alike(first, second):
        if weights is not None and weights.shape[0] > 1:
            weights = torch.cat([weights, weights])
        for part, description in describe(torch.cat([first, second]), weights):
            yield part, tuple(one[:count] for one in description), tuple(one[count:] for one in description)
    else:
        for (part, x), (_, y) in zip(describe(first, weights), describe(second, weights), strict=True):
            yield part, x, y


def _tracked(*batches: Any) -> bool:
    """Whether a gradient is wanted for any of them."""
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in batches)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether a gradient is wanted for both batches, or for none."""
    return first.requires_grad == second.requires_grad or not torch.is_grad_enabled()


def _recomputed(function: Callable[..., _Result], several: bool, *arguments: Any) -> _Result:
    """Call a function; under autograd and with several such calls, keep nothing of its inside for the backward pass."""
    if several and _tracked(*arguments):
        result: _Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result
    return function(*arguments)
