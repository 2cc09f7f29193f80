"""Pairs of image files: which belong together, what becomes of other sizes, and their distances, batch by batch."""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from afv_metric.cli.items import Compare, as_progress, batches, list_files, measure_batch, printable, read_item, size_of
from afv_metric.cli.outcome import Problems
from afv_metric.heat_map import colour_map, save_picture
from afv_metric.images.reading import Reader
from afv_metric.metric import AFVDistance

__all__ = ["Files", "find_pairs", "mean_interval", "measure_pairs", "read_like", "read_pair", "write_map"]

Files = Mapping[str, tuple[Path, Path]]
"""Two files by the name of the pair."""


def find_pairs(folder0: Path, folder1: Path, table: Path | None) -> tuple[Files, list[str]]:
    """Find the files of two folders that belong together, and a line about each that has no partner.

    Those of one name do; of the others those of one stem, if there is one on each side. A table, a CSV without
    a header, lists the pairs instead. The names of the pairs are those in the first folder.

    Raises:
        ValueError: If a folder holds no image, or a row of the table is not two files.
    """
    if table:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
        for number, row in rows:
            if len(row) != 2 or not all(row):
                raise ValueError(
                    f"{table}, line {number}: two columns were expected, DIR0's file and DIR1's, got {row}"
                )
        named = [(first if first == second else f"{first} | {second}", first, second) for _, (first, second) in rows]
        return {printable(name): (folder0 / first, folder1 / second) for name, first, second in named}, []
    files = list_files(folder0), list_files(folder1)
    partner = {name: name for name in files[0] if name in files[1]}
    stems: list[dict[PurePath, list[str]]] = [defaultdict(list), defaultdict(list)]
    for side in (0, 1):
        for name in files[side]:
            if name not in partner:
                stems[side][PurePath(name).with_suffix("")].append(name)
    for stem, names in stems[0].items():
        others = stems[1].get(stem, [])
        if len(names) == len(others) == 1:
            partner[names[0]] = others[0]
    pairs = {printable(name): (files[0][name], files[1][partner[name]]) for name in files[0] if name in partner}
    taken = (partner.keys(), set(partner.values()))
    alone = [
        f"{printable(name)}: only in {folder}"
        for side, folder in enumerate((folder0, folder1))
        for name in files[side]
        if name not in taken[side]
    ]
    return pairs, alone


def read_like(
    path: Path, reference: Tensor, reader: Reader, problems: Problems, options: argparse.Namespace
) -> tuple[Tensor, Tensor] | None:
    """Read an image to be compared with another one, and make both of one size; or say what is the matter with it."""
    image = read_item(path, reader, problems)
    if image is None or image.shape == reference.shape:
        return None if image is None else (reference, image)
    height, width = map(min, reference.shape[2:], image.shape[2:])
    if options.resize:
        return reference, resize(image, list(reference.shape[2:]), InterpolationMode.BICUBIC, antialias=True)
    if options.crop:
        return center_crop(reference, [height, width]), center_crop(image, [height, width])
    problems.add(
        f"{path}: is {size_of(image)} pixels, to be compared with {size_of(reference)}; --resize or --crop would do so"
    )
    return None


def read_pair(
    paths: tuple[Path, Path], reader: Reader, problems: Problems, options: argparse.Namespace
) -> tuple[Tensor, Tensor] | None:
    """Read both images of a pair, or say what is the matter with them."""
    first = read_item(paths[0], reader, problems)
    if first is None:
        read_item(paths[1], reader, problems)
        return None
    return read_like(paths[1], first, reader, problems, options)


def measure_pairs(
    metrics: Sequence[Compare], files: Files, reader: Reader, options: argparse.Namespace, problems: Problems
) -> Iterator[list[tuple[str, list[float]]]]:
    """Distances of pairs of files by each metric, batch by batch; what fails is said."""

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in as_progress(list(files), options):
            images = read_pair(files[name], reader, problems, options)
            if images is not None:
                yield name, *images

    for batch in batches(pairs(), options.batch_size):
        yield measure_batch(metrics, batch, options.device, problems)


def mean_interval(column: Mapping[str, float]) -> tuple[float, float, float]:
    """The mean of the distances of pairs, and the ends of its 95 % bootstrap interval."""
    array, random = np.array(list(column.values())), np.random.default_rng(0)
    means = [array[random.integers(len(array), size=len(array))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(array.mean()), float(low), float(high)


def write_map(metric: AFVDistance, paths: tuple[Path, Path], options: argparse.Namespace, file: Path) -> float:
    """Write the heat map of a pair that has been compared, by a metric that gives maps; returns its largest value."""
    images = read_pair(paths, options.reader, Problems(), options)
    assert images is not None
    values = metric(*(image.to(options.device) for image in images))[0, 0]
    save_picture(colour_map(values, images[1][0]), file)
    return float(values.max())
