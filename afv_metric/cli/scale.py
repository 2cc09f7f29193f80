"""``calibrate``, and distances as strengths of known distortions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import Tensor

from afv_metric import scale
from afv_metric.bundles.resolve import BundleError, HubError, find_bundle
from afv_metric.cli.items import as_progress, list_files, load_metric, read_item, reader_of
from afv_metric.cli.outcome import emit, say
from afv_metric.metric import AFVDistance
from afv_metric.scale import FILE, KINDS, PHRASES, Scale, format_strength, measure_ladders, strength_at

__all__ = ["Strengths", "calibrate"]


def calibrate(options: argparse.Namespace) -> None:
    """Measure what distances of a bundle amount to on natural images."""
    if not Path(options.weights).is_dir():
        raise ValueError(f"a folder of a bundle was expected, to write to, got {options.weights}")
    paths = list(list_files(options.data).values())
    number = min(options.count, len(paths))
    paths = [paths[index * len(paths) // number] for index in range(number)]
    metric = load_metric(options)
    reader_of(options, paths, metric)

    def images() -> Iterator[Tensor]:
        for path in as_progress(paths, options):
            image = read_item(path, options)
            if image is not None:
                yield image[..., 4:, 4:].to(options.device)  # the blocks of a JPEG file are not those of the ladder

    table = scale.calibrate(metric, images(), bundle=metric.bundle_hash, form=metric.form)
    for name, strengths in table.strengths.items():
        rows = zip(map("{:g}".format, strengths), *table.distances[name], strict=True)
        emit(tabulate(rows, (name, "10 %", "median", "90 %"), tablefmt="plain", floatfmt=".4g"))
    say(f"{table.save(options.weights)}: {table.images} images")


class Strengths:
    """Distances to one reference as strengths of distortions of it, and of other images by the table of the bundle."""

    def __init__(self, metric: AFVDistance, options: argparse.Namespace, reference: Tensor) -> None:
        self._own = measure_ladders(metric, reference.to(options.device))
        self._table: Scale | None = None
        try:
            self._table = Scale.load(find_bundle(options.weights, ("config.json", FILE)), metric.bundle_hash)
        except (BundleError, HubError):
            say(f"note: {metric.bundle_name} has no {FILE}: strengths are those of REF alone; see afv-metric calibrate")
        if self._table and self._table.form != metric.form:
            say(f"note: strengths of other images are known for the form {self._table.form} alone")
            self._table = None

    def columns(self) -> list[str]:
        """Heads of the columns of :meth:`row`."""
        return [*(kind.unit for kind in KINDS.values()), *(["percentile"] if self._table else [])]

    def row(self, distance: float) -> list[str]:
        """Strengths of each kind, with those that 80 % of the images of the table have, and the percentile."""
        cells = []
        for name, curve in self._own.items():
            text = format_strength(name, curve, distance)
            if self._table:
                ends = [format_strength(name, self._table.curves(percent)[name], distance) for percent in (90, 10)]
                text += f" ({' to '.join(ends[::-1] if name == 'jpeg' else ends)})"
            cells.append(text)
        return [*cells, f"{self._table.percentile(distance):.0f}"] if self._table else cells

    def record(self, distance: float) -> dict[str, Any]:
        """The same for JSON; None where a distance is beyond the ladder."""
        found: dict[str, Any] = {name: {"strength": strength_at(name, c, distance)} for name, c in self._own.items()}
        if self._table:
            for name, entry in found.items():
                curves = {percent: self._table.curves(percent)[name] for percent in (90, 50, 10)}
                entry["others"] = {percent: strength_at(name, curve, distance) for percent, curve in curves.items()}
            found["percentile"] = self._table.percentile(distance)
        return found

    def phrase(self, distance: float) -> str:
        """The strengths in one line."""
        strengths = {name: format_strength(name, curve, distance) for name, curve in self._own.items()}
        return "as far as " + ", ".join(PHRASES[name].format(value) for name, value in strengths.items())
