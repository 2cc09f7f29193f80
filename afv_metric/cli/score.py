"""``compare`` and ``dirs``: distances between image files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from afv_metric.cli.items import (
    add_batches,
    as_progress,
    batches,
    list_files,
    load_metric,
    measure_batch,
    printable,
    read_item,
)
from afv_metric.cli.options import add_form, add_json, add_weights, reader_of
from afv_metric.cli.outcome import Problems, emit, if_interrupted, say
from afv_metric.cli.outputs import CSVRows, kept_rows, try_output

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_compare", "add_dirs"]

_HEADER = ("file", "distance")


def add_compare(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    command.add_argument("reference", type=Path, metavar="REF", help="image to compare with")
    command.add_argument("images", type=Path, nargs="+", metavar="IMG", help="images of its size, or folders of such")
    add_json(command)
    command.add_argument("--map", type=Path, metavar="PNG", help="write a heat map of the distance to the one IMG")
    add_weights(command)
    add_form(command)
    add_batches(command)
    command.set_defaults(command=_compare)


def add_dirs(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dirs``."""
    command.add_argument("folder0", type=Path, metavar="DIR0", help="folder of images")
    command.add_argument("folder1", type=Path, metavar="DIR1", help="folder of images of the same names")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the CSV there, row by row, not to stdout")
    command.add_argument("--resume", action="store_true", help="keep the rows that are in --csv, and add the others")
    add_weights(command)
    add_form(command)
    add_batches(command)
    command.set_defaults(command=_dirs)


def _compare(options: argparse.Namespace) -> int:
    if options.reference.is_dir():
        raise ValueError(f"{options.reference} is a folder, REF is an image; 'afv-metric dirs' compares two folders")
    paths = [path for image in options.images for path in (list_files(image).values() if image.is_dir() else [image])]
    if options.map and len(paths) != 1:
        raise ValueError(f"--map takes exactly one image to compare, got {len(paths)}")
    try_output(options.map, "--map", [options.reference, *paths])
    metric = load_metric(options)
    problems, reader = Problems(options.debug), reader_of(options)
    reference = read_item(options.reference, reader, problems)
    if reference is None:
        return problems.status
    found: list[tuple[str, float]] = []

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for path in as_progress(paths, options):
            image = read_item(path, reader, problems, like=reference)
            if image is not None:
                yield printable(str(path)), reference, image

    try:
        with if_interrupted(lambda: f"interrupted: {len(found)} of {len(paths)} images are compared"):
            for batch in batches(pairs(), options.batch_size):
                found += measure_batch(metric, batch, options.device, problems)
            if options.map and found:
                _write_map(options, paths[0], reference, problems)
    finally:
        found.sort(key=lambda item: item[1])
        if options.json:
            emit(json.dumps([{"file": name, "distance": value} for name, value in found], indent=2))
        elif found:
            rows = [(f"{value:.6g}", name) for name, value in found]
            emit(tabulate(rows, ("distance", "file"), tablefmt="plain", disable_numparse=True))
    return problems.status


def _write_map(options: argparse.Namespace, path: Path, reference: Tensor, problems: Problems) -> None:
    from afv_metric.cli.heat_map import save_heat_map

    image = read_item(path, reader_of(options), problems)
    if image is not None:
        values = load_metric(options, spatial=True)(image.to(options.device), reference.to(options.device))
        largest = save_heat_map(values[0, 0].cpu().numpy(), image[0].float().mean(0).numpy(), options.map)
        say(f"{options.map}: from 0 (black) to {largest:.6g} (pale yellow)")


def _dirs(options: argparse.Namespace) -> int:
    if options.resume and not options.csv:
        raise ValueError("--resume goes on with a table: give its --csv FILE")
    folders = (options.folder0, options.folder1)
    files = [{printable(name): path for name, path in list_files(folder).items()} for folder in folders]
    common = [name for name in files[0] if name in files[1]]
    try_output(options.csv, "--csv")
    rows, size = kept_rows(options.csv, _HEADER) if options.resume else ([], 0)
    values = dict(rows)
    metric = load_metric(options)
    problems, reader = Problems(options.debug), reader_of(options)

    def measure(names: list[str]) -> Iterator[list[tuple[str, float]]]:
        def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
            for name in as_progress(names, options):
                first = read_item(files[0][name], reader, problems)
                second = read_item(files[1][name], reader, problems, like=first)
                if first is not None and second is not None:
                    yield name, first, second

        for batch in batches(pairs(), options.batch_size):
            yield measure_batch(metric, batch, options.device, problems)

    kept = f" in {options.csv}: the same command with --resume goes on" if options.csv else " compared"
    with if_interrupted(lambda: f"interrupted: {len(values)} of {len(common)} pairs are{kept}"):
        _check_kept(values, common, measure, options.csv)
        for side in (0, 1):
            for name in [name for name in files[side] if name not in files[1 - side]]:
                problems.add(f"{name}: only in {folders[side]}")
        with CSVRows(options.csv, _HEADER, size) as table:
            is_read = table.write([])
            for found in measure([name for name in common if name not in values]):
                new = [(name, f"{value:.6g}") for name, value in found]
                values.update(new)
                is_read = is_read and table.write(new)
                if not is_read:
                    return problems.status
    if values:
        say(f"mean distance {sum(map(float, values.values())) / len(values):.6g} over {len(values)} pairs")
    else:
        problems.add("not one pair could be compared")
    return problems.status


def _check_kept(
    kept: Mapping[str, str],
    common: list[str],
    measure: Callable[[list[str]], Iterator[list[tuple[str, float]]]],
    file: Path,
) -> None:
    """Check rows of an interrupted command against what this one finds for the first and the last that tell."""
    other = f"{file} was begun with other images or settings: leave out --resume to replace it"
    if kept.keys() - set(common):
        raise ValueError(f"{other}; {min(kept.keys() - set(common))!r} is not in both folders")
    telling = [name for name, value in kept.items() if value != "0"]
    for batch in measure(list(dict.fromkeys([*telling[:1], *telling[-1:]]))):
        for name, value in batch:
            if not math.isclose(value, float(kept[name]), rel_tol=1e-3):
                raise ValueError(f"{other}; the distance of {name!r} was {kept[name]}, and is {value:.6g}")
