"""Pairs of image files: which belong together, what becomes of other sizes, and their distances, batch by batch."""

from __future__ import annotations

import argparse
import csv
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from afv_metric.cli.items import Compare, as_progress, batches, in_range, list_files, printable, read_item, size_of
from afv_metric.cli.outcome import describe
from afv_metric.heat_map import colour_map, save_picture
from afv_metric.metric import AFVDistance

__all__ = ["Files", "find_pairs", "map_of_pair", "mean_interval", "measure_pairs", "write_map"]

Files = Mapping[str, tuple[Path, Path]]
"""Two files by the name of the pair."""


def find_pairs(folder0: Path, folder1: Path, options: argparse.Namespace) -> Files:
    """Find the files of two folders that belong together, and say which have no partner.

    Those of one name do; of the others those of one stem, if there is one on each side. The table ``--pairs``, a CSV
    without a header, lists them instead. The names of the pairs are those in the first folder.

    Raises:
        ValueError: If a folder holds no image, or a row of the table is not two files.
    """
    if options.pairs:
        pairs = {}
        with options.pairs.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if row and (len(row) != 2 or not all(row)):
                    place = f"{options.pairs}, line {number}"
                    raise ValueError(f"{place}: two columns were expected, DIR0's file and DIR1's, got {row}")
                if row:
                    pairs[printable(" | ".join(dict.fromkeys(row)))] = folder0 / row[0], folder1 / row[1]
        return pairs
    files = list_files(folder0), list_files(folder1)
    partner = {name: name for name in files[0] if name in files[1]}
    stems: list[dict[PurePath, list[str]]] = [defaultdict(list), defaultdict(list)]
    for side in (0, 1):
        for name in files[side]:
            if name not in partner:
                stems[side][PurePath(name).with_suffix("")].append(name)
    for stem, names in stems[0].items():
        if len(names) == len(stems[1][stem]) == 1:
            partner[names[0]] = stems[1][stem][0]
    for folder, listed, taken in zip((folder0, folder1), files, (partner, set(partner.values())), strict=True):
        for name in listed:
            if name not in taken:
                options.problems.add(f"{printable(name)}: only in {folder}")
    return {printable(name): (files[0][name], files[1][partner[name]]) for name in files[0] if name in partner}


def _read_second(first: Tensor | None, path: Path, options: argparse.Namespace) -> tuple[Tensor, Tensor] | None:
    """Read the other image of a pair and make both of one size, or say what is the matter."""
    second = read_item(path, options)
    if first is None or second is None:
        return None
    if first.shape == second.shape:
        return first, second
    if options.resize:
        return first, resize(second, list(first.shape[2:]), InterpolationMode.BICUBIC, antialias=True)
    if options.crop:
        size = list(map(min, first.shape[2:], second.shape[2:]))
        return center_crop(first, size), center_crop(second, size)
    options.problems.add(
        f"{path}: is {size_of(second)} pixels, to be compared with {size_of(first)}; --resize or --crop would do so"
    )
    return None


def measure_pairs(
    metrics: Sequence[Compare], files: Files, options: argparse.Namespace
) -> Iterator[list[tuple[str, list[float]]]]:
    """Distances of pairs of files by each metric, batch by batch; what fails is said."""
    read_first = functools.lru_cache(maxsize=1)(lambda path: read_item(path, options))  # it may be one for all pairs

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in as_progress(list(files), options):
            first, second = files[name]
            images = _read_second(read_first(first), second, options)
            if images is not None:
                yield name, *images

    for batch in batches(pairs(), options.batch_size):
        yield _measure_batch(metrics, batch, options)


def _measure_batch(
    metrics: Sequence[Compare], batch: Sequence[tuple[str, Tensor, Tensor]], options: argparse.Namespace
) -> list[tuple[str, list[float]]]:
    """Distances of named pairs; where all fail together, pair by pair, and what fails alone is said."""
    names, first, second = zip(*batch, strict=True)
    if all(image is first[0] for image in first):  # a reference
        first = first[:1]
    try:
        images = in_range(first, options), in_range(second, options)
        values = torch.stack([metric(*images).cpu().double() for metric in metrics], 1)
        return list(zip(names, values.tolist(), strict=True))
    except Exception as error:
        if len(batch) == 1:
            what = f"{names[0]} ({size_of(second[0])} pixels)"
            options.problems.add(f"{what}: cannot be compared: {describe(error)}", error)
            return []
    return [found for pair in batch for found in _measure_batch(metrics, [pair], options)]


def mean_interval(column: Mapping[str, float]) -> tuple[float, float, float]:
    """The mean of the distances of pairs, and the ends of its 95 % bootstrap interval."""
    array, random = np.array(list(column.values())), np.random.default_rng(0)
    means = [array[random.integers(len(array), size=len(array))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(array.mean()), float(low), float(high)


def map_of_pair(
    metric: AFVDistance, paths: tuple[Path, Path], options: argparse.Namespace
) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
    """The images of a pair and the map of their distance, by a metric that gives maps."""
    images = _read_second(read_item(paths[0], options), paths[1], options)
    return images and (images, metric(*(in_range([image], options) for image in images)).cpu())


def write_map(metric: AFVDistance, paths: tuple[Path, Path], options: argparse.Namespace, file: Path) -> float:
    """Write the heat map of a pair that has been compared, by a metric that gives maps; returns its largest value."""
    found = map_of_pair(metric, paths, options)
    assert found is not None
    (_, second), values = found
    save_picture(colour_map(values[0, 0], second[0]), file)
    return float(values.max())
