"""Distortion ladders: does the distance to the original grow with the strength of a distortion, and how fast?

    python -m experiments.ladders --images DIR [--count 50] [--weights BUNDLE] [--forms fisher local activation]
        [--peers l2 ssim lpips-alex lpips-squeeze] [--seed 0] [--picture curves.png] [--json FILE] [--quiet]

Images are taken evenly spread over the sorted folder. Each is distorted with rising strength: by blur, noise, JPEG,
down-up-sampling, loss of contrast and shift; all steps are rounded to 8 bits. JPEG comes twice. Where the originals
are JPEG files themselves, another compression on the same grid of 8x8 blocks rounds coefficients that are rounded
already, and its error depends on how the two roundings meet, not on the quality alone; half a block off it does not.

The first table gives the order, for every form of the distance and for its peers whose weights lie on this machine: the
share of neighbouring steps whose later one is farther from the original. Equal distances count as wrong; the original
itself is no step. The second gives the sizes: the median distance of each step over the images, relative to that of a
Gaussian blur of sigma 1. The last lines give those of shifts by 1 and 2 pixels, which hardly anybody sees, and the
share of images in which a shift by 1 pixel counts as more than that blur. The picture shows the mean distance over the
images.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL
import scipy
import torch
from numpy.typing import NDArray
from PIL import features
from tabulate import tabulate
from tqdm import tqdm

import afv_metric
from afv_metric import DEFAULT_BUNDLE
from afv_metric.cli.outcome import describe, emit, run
from afv_metric.cli.outputs import try_output
from afv_metric.files import atomic_write, save_figure
from afv_metric.fisher.forms import FORMS
from afv_metric.images import read_image
from afv_metric.images.distort import LADDERS, YARDSTICK, Distances, count_ordered, make_steps, relative_sizes
from afv_metric.images.listing import list_images
from bapps_eval.data import spread
from bapps_eval.formats import finite, format_number
from bapps_eval.metrics import Choice, Metric, make_metrics
from experiments import missing_matplotlib
from experiments.peers import peers_at_hand


def choose_images(folder: Path, count: int) -> list[Path]:
    """Choose image files evenly spread over the sorted folder.

    Raises:
        ValueError: If there are not as many.
    """
    paths = [Path(path) for path in list_images(folder)[0].values()]
    if not 1 <= count <= len(paths):
        raise ValueError(f"--count must be from 1 to the number of images in {folder}, {len(paths)}; got {count}")
    return [paths[index] for index in spread(len(paths), count)]


def measure(metrics: Sequence[Metric], paths: Sequence[Path], seed: int, quiet: bool = False) -> dict[str, Distances]:
    """Distances of all steps to their originals.

    Args:
        metrics: The metrics.
        paths: Image files, of any sizes.
        seed: Seed of the noise and the directions, together with the image's number.
        quiet: Whether to show no progress.

    Returns:
        For each name of a metric and each kind, ``(images, steps)``; the kind ``yardstick`` is a blur of sigma 1.
    """
    kinds = {**LADDERS, "yardstick": YARDSTICK}
    rows: dict[str, dict[str, list[NDArray[np.float64]]]] = {
        metric.name: {kind: [] for kind in kinds} for metric in metrics
    }
    for number, path in enumerate(tqdm(paths, unit="image", disable=quiet)):
        original = read_image(path)[0].permute(1, 2, 0).numpy()
        ladders = {kind: make_steps(original, ladder, (seed, number)) for kind, ladder in kinds.items()}
        pixels = np.stack([original, *(step for steps in ladders.values() for step in steps)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        for metric in metrics:
            distances = iter(metric.distances(images.split(1))[0].double().tolist())
            for kind, steps in ladders.items():
                rows[metric.name][kind].append(np.array([next(distances) for _ in steps]))
    return {name: {kind: np.stack(values) for kind, values in of.items()} for name, of in rows.items()}


def format_order(measured: Mapping[str, Distances]) -> str:
    """One row per metric, one column per kind: the share ordered rightly, and the counts."""
    rows = []
    for name, kinds in measured.items():
        counts = [(sum(count_ordered(kinds[kind])), kinds[kind][:, 1:].size) for kind in LADDERS]
        rows.append([name, *(f"{ordered / pairs:.3f} {ordered}/{pairs}" for ordered, pairs in counts)])
    return _align(["", *LADDERS], rows)


def format_sizes(measured: Mapping[str, Distances]) -> str:
    """One row per metric, one column per kind, each with one number per step; and the lines on shifts."""
    relative = {name: relative_sizes(kinds) for name, kinds in measured.items()}
    rows = [[name, *(" ".join(map(_short, steps[kind])) for kind in LADDERS)] for name, steps in relative.items()]
    shifts = []
    for name, kinds in measured.items():
        worse = float((kinds["shift"][:, 0] > kinds["yardstick"][:, 0]).mean())
        shifts.append([name, *map(format_number, relative[name]["shift"][:2]), f"{worse:.0%}"])
    head = ["shift relative to blur of sigma 1", "1 pixel", "2 pixels", "1 pixel is more in"]
    return f"{_align(['', *LADDERS], rows)}\n{_align(head, shifts)}"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _align(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, tablefmt="plain", colalign=align, disable_numparse=True)


def draw(measured: Mapping[str, Distances], path: Path) -> None:
    """Draw the mean distances of each kind over its steps, divided by that of the last; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    *panels, last = figure.subplots(2, 4).flat
    for axes, (kind, ladder) in zip(panels, LADDERS.items(), strict=True):
        for name, kinds in measured.items():
            means = kinds[kind].mean(0)
            line = "-" if name.startswith("afv/") else "--"
            # Plain images, which no step but noise changes, leave 0 to divide by.
            axes.plot(means / (means[-1] or 1), line, marker="o", markersize=3, linewidth=1.2, label=name)
        axes.set(title=kind, xlabel=ladder.unit, ylim=(0, None))
        axes.set_xticks(range(len(ladder.strengths)), [f"{strength:g}" for strength in ladder.strengths])
        axes.grid(alpha=0.25)
    figure.supylabel("mean distance to the original, that of the last step = 1")
    last.axis("off")
    last.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    save_figure(figure, path)


def report(measured: Mapping[str, Distances]) -> dict[str, dict[str, object]]:
    """Counts, mean distances and sizes for JSON, step by step."""
    return {
        name: {
            kind: {
                "strengths": LADDERS[kind].strengths,
                "pairs": kinds[kind][:, 1:].size,
                "ordered": sum(count_ordered(kinds[kind])),
                "ordered_to_next_step": count_ordered(kinds[kind]),
                "mean_distances": kinds[kind].mean(0).tolist(),
                "relative_to_blur_of_sigma_1": relative_sizes(kinds)[kind],
            }
            for kind in LADDERS
        }
        for name, kinds in measured.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write picture and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, at least 32 pixels a side")
    parser.add_argument("--count", type=int, default=50, help="images to take (50)")
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, help="name, folder or hub id of a bundle")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), help="default: all")
    peers = ["l2", "ssim", "lpips-alex", "lpips-squeeze"]
    parser.add_argument("--peers", nargs="*", default=peers, metavar="NAME", help=f"default: {' '.join(peers)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and the directions of shifts (0)")
    parser.add_argument("--picture", type=Path, help="draw the mean curves into this PNG")
    parser.add_argument("--json", type=Path, help="write counts and mean distances")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    if options.picture and (missing := missing_matplotlib()):
        parser.error(missing)
    try_output(options.picture, "--picture")
    try_output(options.json, "--json")
    try:
        paths = choose_images(options.images, options.count)
    except (OSError, ValueError) as error:
        parser.error(describe(error))

    versions = {
        "afv_metric": afv_metric.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pillow": PIL.__version__,
        "libjpeg-turbo": features.version("libjpeg_turbo"),
        "python": platform.python_version(),
    }
    metrics = make_metrics([f"afv:{form}" for form in options.forms], Choice([options.weights]))
    metrics += peers_at_hand(options.peers)
    bundle = {"name": metrics[0].bundle, "hash": metrics[0].bundle_hash}
    measured = measure(metrics, paths, options.seed, options.quiet)
    if options.picture:
        draw(measured, options.picture)
    if options.json:
        settings = {"images": [path.name for path in paths], "seed": options.seed}
        content = finite({"versions": versions, "bundle": bundle, **settings, "metrics": report(measured)})
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"bundle {bundle['name']}, sha256 {bundle['hash']}",
        f"{len(paths)} images, {paths[0].name} to {paths[-1].name}, seed {options.seed}",
    ]
    for kind, ladder in LADDERS.items():
        lines.append(f"  {kind}: {', '.join(f'{strength:g}' for strength in ladder.strengths)} ({ladder.unit})")
    lines += ["neighbouring steps ordered rightly", format_order(measured)]
    lines += ["median distance of each step, relative to a blur of sigma 1", format_sizes(measured)]
    emit("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run(main))
