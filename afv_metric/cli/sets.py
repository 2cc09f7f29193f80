"""``sets``: the Fisher distance of two folders as sets of images, whatever their names."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import Tensor

from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli.html import sets_page
from afv_metric.cli.items import as_progress, batches, in_range, list_files, read_item, reader_of
from afv_metric.cli.outcome import emit, say
from afv_metric.cli.outputs import try_outputs
from afv_metric.cli.processes import join_problems, shared
from afv_metric.distributed import gather, share
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import BlockScores, SetComparison, block_scores, compare_sets, similarity_at
from afv_metric.runtime import find_device

__all__ = ["sets"]

# Blocks of images per folder, whose mean scores the interval of set distances comes from.
_BLOCKS = 32
_SHOWN = 24  # images of each folder on the page


@shared
def sets(options: argparse.Namespace) -> None:
    """Print the Fisher distance and Similarity of two folders as sets of images."""
    folders = (options.folder0, options.folder1)
    files = [list(list_files(folder).values()) for folder in folders]
    try_outputs(options, "html", others=files[0] + files[1])
    options.device = find_device(options.device)
    bundle = load_bundle(options.weights)
    engine = FisherEngine(bundle.discriminator, bundle.output)
    size = options.size or bundle.discriminator.config.image_size
    chance = random.Random(options.seed)
    reader_of(options, files[0] + files[1], bundle)

    def squares(paths: Sequence[Path]) -> Iterator[tuple[Tensor]]:
        for path in paths:
            image = read_item(path, options, square=size)
            if image is not None:
                yield (image,)

    def blocks(paths: Sequence[Path]) -> Iterator[Iterator[Tensor]]:
        drawn = chance.sample(paths, min(options.count or len(paths), len(paths)))
        number = min(_BLOCKS, len(drawn))
        for index in as_progress(share(range(number)), options):
            found = batches(squares(drawn[index::number]), options.batch_size)
            yield (in_range([image for (image,) in batch], options) for batch in found)

    parts = gather([block_scores(engine, blocks(paths)) for paths in files])
    join_problems(options)
    if not parts:  # not the first process
        return
    first, second = (
        BlockScores(*(list(itertools.chain(*values)) for values in zip(*scores, strict=True)))
        for scores in zip(*parts, strict=True)
    )
    for folder, scores in zip(folders, (first, second), strict=True):
        if len(scores.counts) < 2:
            options.problems.add(f"{folder}: holds too few images to compare, {sum(scores.counts)}; two are the least")
    if min(len(first.counts), len(second.counts)) < 2:
        return
    found = compare_sets(
        first, second, bundle.statistics, bundle.epsilon, resamples=options.resamples, seed=options.seed
    )
    low, high = found.interval
    record: dict[str, Any] = {
        "bundle": bundle.name,
        "images": found.counts,
        "size": size,
        "distance": {"plain": found.distance, "corrected": found.corrected, "interval": (low, high)},
        "similarity": {
            "plain": similarity_at(found.distance),
            "corrected": similarity_at(found.corrected),
            "interval": (similarity_at(high), similarity_at(low)),
        },
        "bias": sum(found.biases),
        "needed": found.images_for(0.1),
        "resamples": options.resamples,
        "seed": options.seed,
    }
    emit(json.dumps(record, indent=2) if options.json else _outline(record))
    notes = list(_notes_on_sets(found))
    for note in notes:
        say(f"note: {note}")
    if options.html:
        shown = {
            str(folder): [image for (image,) in squares(paths[:: max(1, len(paths) // _SHOWN)][:_SHOWN])]
            for folder, paths in zip(folders, files, strict=True)
        }
        sets_page(options, _rows(record), notes, shown)


def _outline(record: Mapping[str, Any]) -> str:
    needed = f"; {record['needed']} images per set make it a tenth of the distance" if record["needed"] else ""
    table = tabulate(
        _rows(record), ("", "plain", "corrected", "95 % interval"), tablefmt="plain", disable_numparse=True
    )
    images = "{} and {}, squares of {} pixels".format(*record["images"], record["size"])
    return f"{table}\nbias        {record['bias']:.5g}{needed}\nimages      {images}"


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name in ("distance", "similarity"):
        plain, corrected, (low, high) = record[name].values()
        rows.append((name, f"{plain:.5g}", f"{corrected:.5g}", f"{low:.5g} to {high:.5g}"))
    return rows


def _notes_on_sets(found: SetComparison) -> Iterator[str]:
    """What a reader of the numbers should know."""
    if found.counts[0] != found.counts[1]:
        yield "the sets are of unequal sizes: only the corrected numbers can be compared with those of other sets"
    if min(found.counts) < _BLOCKS:
        yield f"a set has fewer than {_BLOCKS} images: the interval is rough"
    if found.interval[1] < 0:
        yield "the sets are more alike than two independent samples can be: do the folders share images?"
    elif found.interval[0] <= 0:
        yield "the interval reaches 0: these images do not tell the two sets apart"
    elif sum(found.biases) > found.corrected:
        yield "more than half of the plain distance is chance: the sets are small for it"
