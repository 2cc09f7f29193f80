"""``compare`` and ``dirs``: distances between image files."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from afv_metric.cli.html import pairs_page
from afv_metric.cli.items import list_files, load_metric, load_rival, printable, read_item, reader_of
from afv_metric.cli.outcome import WRONG, emit, if_interrupted, say
from afv_metric.cli.outputs import csv_rows, kept_rows, try_outputs
from afv_metric.cli.pairs import Files, find_pairs, mean_interval, measure_pairs, write_map
from afv_metric.cli.processes import join_problems, shared
from afv_metric.cli.scale import Strengths
from afv_metric.distributed import gather, share

__all__ = ["compare", "dirs"]


def compare(options: argparse.Namespace) -> int | None:
    """Print the distances of images to a reference, nearest first."""
    if options.reference.is_dir():
        raise ValueError(f"{options.reference} is a folder, REF is an image; 'afv-metric dirs' compares two folders")
    paths = [path for image in options.images for path in (list_files(image).values() if image.is_dir() else [image])]
    if options.map and len(paths) != 1:
        raise ValueError(f"--map takes exactly one image to compare, got {len(paths)}")
    try_outputs(options, "map", "html", others=[options.reference, *paths])
    metric = load_metric(options)
    reader_of(options, [options.reference, *paths], metric)
    reference = read_item(options.reference, options)
    if reference is None:
        return WRONG
    files: Files = {printable(str(path)): (options.reference, path) for path in paths}
    found: dict[str, float] = {}
    scale = Strengths(metric, options, reference) if options.scale else None
    try:
        with if_interrupted(lambda: f"interrupted: {len(found)} of {len(files)} images are compared"):
            for batch in measure_pairs([metric], files, options):
                found.update((name, value) for name, (value,) in batch)
            if options.map and found:
                (pair,) = files.values()
                largest = write_map(load_metric(options, spatial=True), pair, options, options.map)
                phrase = f", {scale.phrase(largest)}" if scale else ""
                say(f"{options.map}: from 0 (black) to {largest:.6g} (pale yellow){phrase}")
    finally:
        found = dict(sorted(found.items(), key=lambda item: item[1]))
        if options.json:
            records = [
                {"file": name, "distance": value, **({"scale": scale.record(value)} if scale else {})}
                for name, value in found.items()
            ]
            emit(json.dumps(records, indent=2))
        elif found:
            rows = [(f"{value:.6g}", *(scale.row(value) if scale else ()), name) for name, value in found.items()]
            head = ("distance", *(scale.columns() if scale else ()), "file")
            emit(tabulate(rows, head, tablefmt="plain", disable_numparse=True))
    if options.html:
        pairs_page(options, files, {"distance": found}, scale.phrase if scale else None)
    return None


@shared
def dirs(options: argparse.Namespace) -> None:
    """Print the distances of the images that have the same name in two folders, and their mean."""
    if options.resume and not options.csv:
        raise ValueError("--resume goes on with a table: give its --csv FILE")
    files = find_pairs(options.folder0, options.folder1, options)
    read = [path for pair in files.values() for path in pair]
    try_outputs(options, "csv", "html", others=[*read, options.pairs])
    names = list(dict.fromkeys(options.metric or ["distance"]))
    header = ("file", *names)
    values, size = kept_rows(options.csv, header) if options.resume else ({}, 0)
    own = load_metric(options)
    metrics = [own if name in ("distance", "afv") else load_rival(name, options) for name in names]
    reader_of(options, read, own)  # percentiles are over all pairs

    def measure(some: Iterable[str]) -> Iterator[list[tuple[str, list[float]]]]:
        for batch in measure_pairs(metrics, {name: files[name] for name in some}, options):
            yield [(name, [float(f"{value:.6g}") for value in row]) for name, row in batch]  # as in the table

    kept = f" in {options.csv}: the same command with --resume goes on" if options.csv else " compared"
    with if_interrupted(lambda: f"interrupted: {len(values)} of {len(files)} pairs are{kept}"):
        _check_kept(values, files, measure, options.csv)
        with csv_rows(options.csv or (Path(os.devnull) if options.json else None), header, size) as write:
            for found in measure(share([name for name in files if name not in values])):
                values.update(found)
                if not write((name, *map("{:.6g}".format, row)) for name, row in found):
                    return
            for of_another in gather(values)[1:]:
                values.update(of_another)
                write((name, *map("{:.6g}".format, row)) for name, row in of_another.items())
    join_problems(options)
    columns = {metric: {name: row[index] for name, row in values.items()} for index, metric in enumerate(names)}
    means = {metric: mean_interval(column) for metric, column in columns.items()} if values else {}
    for metric, (mean, low, high) in means.items():
        say(f"mean {metric} {mean:.6g} [{low:.6g}, {high:.6g}] over {len(values)} pairs")
    if not values:
        options.problems.add("not one pair could be compared")
    if options.json:
        items = [{"file": name, **dict(zip(names, row, strict=True))} for name, row in values.items()]
        intervals = {metric: {"mean": mean, "interval": interval} for metric, (mean, *interval) in means.items()}
        record = {"bundle": own.bundle_name, "form": own.form, "means": intervals, "items": items}
        emit(json.dumps({**record, "errors": options.problems.texts}, indent=2))
    if options.html:
        pairs_page(options, files, columns)


def _check_kept(
    kept: Mapping[str, Sequence[float]],
    files: Files,
    measure: Callable[[Iterable[str]], Iterator[list[tuple[str, list[float]]]]],
    file: Path,
) -> None:
    """Check rows of an interrupted command against the first and last pair measured anew whose distance is not 0."""
    other = f"{file} was begun with other images or settings: leave out --resume to replace it"
    if kept.keys() - files.keys():
        raise ValueError(f"{other}; {min(kept.keys() - files.keys())!r} is none of the pairs")
    nonzero = [name for name, row in kept.items() if any(row)]
    for batch in measure([*nonzero[:1], *nonzero[-1:]]):
        for name, row in batch:
            for value, before in zip(row, kept[name], strict=True):
                if not math.isclose(value, before, rel_tol=1e-3, abs_tol=1e-6):
                    raise ValueError(f"{other}; the distance of {name!r} was {before:.6g}, and is {value:.6g}")
