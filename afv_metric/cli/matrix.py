"""``matrix``: distances of all pairs of the images in a folder."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections import defaultdict
from collections.abc import Container

import torch
from torch import Tensor

from afv_metric.cli.html import matrix_page
from afv_metric.cli.items import as_progress, list_files, load_metric, printable, read_item, reader_of, size_of
from afv_metric.cli.outcome import describe, if_interrupted
from afv_metric.cli.outputs import csv_rows, try_outputs
from afv_metric.cli.processes import join_problems, shared
from afv_metric.distributed import gather, rank_and_world_size
from afv_metric.metric import AFVDistance

__all__ = ["matrix"]

_Names = tuple[str, ...]


@shared
def matrix(options: argparse.Namespace) -> None:
    """Print the distances of all pairs of the images in a folder."""
    files, problems = list_files(options.folder), options.problems
    try_outputs(options, "csv", "html", others=files.values())
    metric = load_metric(options)
    reader_of(options, files.values(), metric)
    images = {}
    for name, path in files.items():
        image = read_item(path, options)
        if image is not None:
            images[printable(name)] = image
    groups: dict[str, list[str]] = defaultdict(list)
    for name, image in images.items():
        groups[size_of(image)].append(name)
    if not images:
        problems.add(f"{options.folder}: holds no image")
        return
    if len(groups) > 1:
        sizes = "; ".join(f"{size}: {_shortened(group)}" for size, group in groups.items())
        problems.add(f"images of different sizes are not compared, {sizes}")

    pairs = _Pairs(metric, images, options)
    blocks = [
        (tuple(group[start : start + options.batch_size]), tuple(group[start:]))
        for group in groups.values()
        for start in range(0, len(group), options.batch_size)
    ]
    names, ready, written = list(images), set[str](), 0
    place = f"in {options.csv}" if options.csv else "written"
    with (
        if_interrupted(lambda: f"interrupted: {written} of {len(names)} rows are {place}"),
        csv_rows(options.csv, ["", *names]) as write_rows,
    ):

        def write(ready: Container[str]) -> bool:
            """Write the rows that are next, and return whether somebody still reads them."""
            nonlocal written
            while written < len(names) and names[written] in ready:
                if not write_rows([[names[written], *(pairs.text(names[written], other) for other in names)]]):
                    return False
                written += 1
            return True

        rank, processes = rank_and_world_size()
        for block, rest in as_progress(blocks[rank::processes], options):  # the first one has the most pairs
            for start in range(0, len(rest), options.batch_size):
                pairs.measure(block, rest[start : start + options.batch_size])
            ready.update(block)
            if not write(ready):
                return
        for distances in gather(pairs.distances):
            pairs.distances.update(distances)
        write(names)
    join_problems(options)
    if options.html:
        matrix_page(options, images, pairs.text)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _Pairs:
    """Distances of pairs of images; no more than two blocks of embeddings, which may be large, are kept."""

    def __init__(self, metric: AFVDistance, images: dict[str, Tensor], options: argparse.Namespace) -> None:
        self.distances: dict[tuple[str, str], float] = {}
        self._metric, self._images, self._options = metric, images, options
        self._embed = functools.lru_cache(maxsize=2)(
            lambda names: metric.embed(torch.cat([images[name] for name in names]).to(options.device))
        )

    def measure(self, first: _Names, second: _Names) -> None:
        """Measure all pairs of two blocks; where that fails, each image with itself, and pair by pair those that can.

        What fails alone is said.
        """
        try:
            rows = self._metric.distance_between(self._embed(first), self._embed(second)).tolist()
        except Exception as error:
            both = dict.fromkeys((*first, *second))
            if len(first) == len(second) == 1:
                what = f"{' and '.join(both)} ({size_of(self._images[first[0]])} pixels)"
                self._options.problems.add(f"{what}: cannot be compared: {describe(error)}", error)
                return
            for name in both:
                if (name, name) not in self.distances:
                    self.measure((name,), (name,))
            for one, other in itertools.product(first, second):
                if {(one, one), (other, other)} <= self.distances.keys() and (one, other) not in self.distances:
                    self.measure((one,), (other,))
            return
        for one, row in zip(first, rows, strict=True):
            for other, value in zip(second, row, strict=True):
                self.distances[one, other] = self.distances[other, one] = value

    def text(self, first: str, second: str) -> str:
        """The distance of a pair as it is printed; nothing if there is none."""
        value = self.distances.get((first, second))
        return "" if value is None else f"{value:.6g}"
