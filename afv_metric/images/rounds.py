"""Which decoded images an iteration of a training sees: always the same, or those of a stream, round after round."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from afv_metric.files import atomic_write
from afv_metric.images.cache import ImageSet, ImageView, take_images

__all__ = ["Rounds"]


class Rounds:
    """Rounds of a stream: as many images as the cache holds, used for as many draws, then replaced by the next.

    The round of an iteration depends on nothing but its number, and what is in a round on nothing but the stream. Where
    rounds begin is kept in a file, so that a run that goes on need not read all that came before.
    """

    def __init__(
        self,
        everything: ImageSet,  # of the first round, which lasts for ever where they are all that there is
        trained: ImageView,  # those of them that are trained on
        held_out: Collection[str],  # names of those that are not, nor when they come again
        load: Callable[[Any], ImageSet],  # loads the round that begins at a position
        draws: int,  # images per iteration
        file: Path,
        *,
        writes: bool = True,  # whether this process writes the file
    ) -> None:
        self._endless, self._length = everything.end is not None, len(everything.names)
        self._first = self._images = trained
        self._number = 0
        self._held_out, self._load, self._draws, self._file, self._writes = set(held_out), load, draws, file, writes
        self._starts = json.loads(file.read_text()) if file.exists() else [everything.end]
        if self._starts[0] != everything.end:
            raise ValueError(f"{file} is of another stream; give the same --data and --cache-gb, or another --out")

    def at(self, iteration: int) -> ImageView:
        """The images that an iteration draws from."""
        number = iteration * self._draws // self._length if self._endless else 0
        if number != self._number:
            self._number, self._images = number, self._round(number) if number else self._first
        return self._images

    def _round(self, number: int) -> ImageView:
        while len(self._starts) < number:  # the file is lost, so that all that came before is read again
            self._starts.append(self._load(self._starts[-1]).end)
        images = self._load(self._starts[number - 1])
        if len(self._starts) == number:
            self._starts.append(images.end)
            if self._writes:
                with atomic_write(self._file) as temporary:
                    temporary.write_text(json.dumps(self._starts))
        kept = [row for row, name in enumerate(images.names) if name not in self._held_out]
        return take_images(images, torch.tensor(kept)).images
