"""The domain report: a bundle before and after, on one's own images, in one self-contained HTML file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.bundles.validate import whitened_lengths
from afv_metric.heat_map import colour_map
from afv_metric.images.cache import ImageSet, load_images
from afv_metric.images.distort import (
    LADDERS,
    YARDSTICK,
    add_noise,
    blur,
    compress,
    count_ordered,
    make_steps,
    relative_sizes,
)
from afv_metric.images.grid import shown_channels
from afv_metric.images.reading import Reader
from afv_metric.images.tiles import Tiling
from afv_metric.metric import AFVDistance
from afv_metric.page import png_uri, write_page
from afv_metric.train.adapt import crop_statistics
from afv_metric.train.report import format_number

__all__ = ["write_domain_report"]

Judge = Callable[[Mapping[str, AFVDistance]], Sequence[tuple[str, list[str], list[list[Any]]]]]
"""Scores metrics, named ``before`` and ``after``, by judgements: title, head and rows of each table."""

_LADDER_IMAGES, _NEIGHBOUR_IMAGES, _CROPS = 32, 200, 1000
_QUERIES, _NEAREST = 6, 5
_TYPICAL = {"blur of 1.2 pixels": (blur, 1.2), "noise of 14/255": (add_noise, 14), "JPEG of quality 30": (compress, 30)}
_TILING = Tiling()


def write_domain_report(
    before: Bundle,
    after: Bundle,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    reader: Reader | None = None,
    tiling: Tiling | None = _TILING,
    cache: str | Path | None = None,
    judge: Judge | None = None,
    quiet: bool = False,
) -> Path:
    """Write the domain report.

    Images come from folders or archives, see :func:`~afv_metric.images.cache.load_images`; they have the channels of
    the bundle ``after``, and its range unless one is declared. ``before`` has as many channels, or three where
    ``after`` has one.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If the channels of the bundles do not go together, or too few images can be read.
    """
    if before.channels not in (after.channels, 3) or after.channels not in (before.channels, 1):
        raise ValueError(
            f"{before.name} is for images of {before.channels} channels, {after.name} for {after.channels}: choose one "
            "of as many to compare with (--before)"
        )
    reader = reader or Reader()
    reader = replace(reader, channels=after.channels, data_range=reader.data_range or after.data_range)
    size = 2 * after.discriminator.config.image_size
    images = load_images(data, size, reader=reader, tiling=tiling, cache=cache, quiet=quiet, most=_CROPS)
    bundles = {"before": before, "after": after}
    metrics = {name: AFVDistance(bundle) for name, bundle in bundles.items()}
    chance = np.random.default_rng(0)
    order = torch.from_numpy(chance.permutation(len(images.images)))
    parts: dict[str, Callable[[], Any]] = {
        "ladders": lambda: _ladders(metrics, images.images[order[:_LADDER_IMAGES]]),
        "neighbours": lambda: _neighbours(metrics, images, order[:_NEIGHBOUR_IMAGES]),
        "maps": lambda: _maps(bundles, images.images[order[: len(_TYPICAL)]]),
        "whitening": lambda: _whitening(bundles, images),
    }
    with torch.no_grad():
        content = {name: measure() for name, measure in tqdm(parts.items(), desc="report", disable=quiet)}
    facts = [
        ("bundle", *(f"{bundle.name} {bundle.hash[:12]}" for bundle in bundles.values())),
        ("channels", *(str(bundle.channels) for bundle in bundles.values())),
        ("declared range", *("{:g} to {:g}".format(*b.data_range) if b.data_range else "-" for b in bundles.values())),
        ("statistics", *(f"{b.statistics.count:,} of {b.sampling.get('source', '?')}" for b in bundles.values())),
    ]
    files = len(images.names) if images.pictures is None else len(images.pictures.unique())
    write_page(
        out,
        "domain.html.j2",
        title=f"Domain report: {after.name}",
        lead="",
        number=format_number,
        data=", ".join(str(path) for path in data),
        files=files,
        tiles=len(images.names),
        facts=facts,
        judged=judge(metrics) if judge else [],
        **content,
    )
    return Path(out)


def _ladders(metrics: Mapping[str, AFVDistance], images: Tensor) -> dict[str, Any]:
    """For each kind of distortion: the share of steps in order, and the sizes of all steps."""
    found: list[dict[str, list[NDArray[np.float64]]]] = [defaultdict(list) for _ in metrics]
    for number, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        for kind, ladder in {**LADDERS, "yardstick": YARDSTICK}.items():
            steps = torch.from_numpy(np.stack(make_steps(pixels, ladder, (0, number)))).permute(0, 3, 1, 2)
            for distances, metric in zip(found, metrics.values(), strict=True):
                distances[kind].append(metric(image[None], steps).double().numpy())
    measured = [{kind: np.stack(rows) for kind, rows in distances.items()} for distances in found]
    relative = list(map(relative_sizes, measured))
    order, sizes = [], []
    for kind, ladder in LADDERS.items():
        shares = (sum(count_ordered(values[kind])) / values[kind][:, 1:].size for values in measured)
        order.append((kind, *shares))
        steps_of = [f"{strength:g}" for strength in ladder.strengths]
        rows = list(zip(steps_of, *(values[kind] for values in relative), strict=True))
        sizes.append((f"{kind} ({ladder.unit})", rows))
    return {"order": order, "sizes": sizes, "images": len(images)}


def _neighbours(metrics: Mapping[str, AFVDistance], images: ImageSet, rows: Tensor) -> list[dict[str, Any]]:
    """Some images, and the nearest tiles of other files."""
    tiles = images.images[rows]
    files = rows if images.pictures is None else images.pictures[rows]
    one_file = (files[:, None] == files) & (len(files.unique()) > _NEAREST)
    matrices = {
        name: metric.distance_between(metric.embed(tiles)).masked_fill(one_file, torch.inf)
        for name, metric in metrics.items()
    }
    queries = []
    for query in range(min(_QUERIES, len(tiles))):
        nearest = {name: matrix[query].argsort()[:_NEAREST].tolist() for name, matrix in matrices.items()}
        shared = len(set.intersection(*map(set, nearest.values())))
        pictures = {name: [_picture(tiles[row]) for row in found] for name, found in nearest.items()}
        queries.append({"image": _picture(tiles[query]), "nearest": pictures, "shared": shared})
    return queries


def _maps(bundles: Mapping[str, Bundle], images: Tensor) -> list[dict[str, Any]]:
    """Typical differences, and where both see them."""
    metrics = {name: AFVDistance(bundle, spatial=True) for name, bundle in bundles.items()}
    rows = []
    for image, (name, (distort, strength)) in zip(images, _TYPICAL.items(), strict=False):
        changed = distort(image.permute(1, 2, 0).numpy(), strength, np.random.default_rng(0))
        other = torch.tensor(changed).permute(2, 0, 1)
        maps = {bundle: colour_map(metric(other[None], image[None])[0, 0], other) for bundle, metric in metrics.items()}
        pictures = {bundle: _picture(map) for bundle, map in maps.items()}
        rows.append({"name": name, "image": _picture(image), "other": _picture(other), "maps": pictures})
    return rows


def _whitening(bundles: Mapping[str, Bundle], images: ImageSet) -> list[tuple[Any, ...]]:
    """Mean squared lengths of whitened inputs and deltas of every layer, before and after."""
    columns = []
    for bundle in bundles.values():
        fresh = crop_statistics(bundle, images, _CROPS)
        for kind in ("input_factor", "delta_factor"):
            columns.append(whitened_lengths(kind, bundle.statistics, fresh, bundle.epsilon))
    layers = [layer for layer in columns[0] if all(layer in column for column in columns)]
    return [(layer, *(column[layer] for column in columns)) for layer in layers]


def _picture(image: Tensor | NDArray[np.uint8]) -> str:
    """An image as data."""
    if isinstance(image, Tensor):
        image = shown_channels(image).permute(1, 2, 0).squeeze(-1).numpy()
    return png_uri(np.ascontiguousarray(image))
