"""``afv-metric``: distances between image files or folders, and what is in a bundle.

Results go to stdout, everything else to stderr. The exit status is 0 if all went well, 1 if some file could not be
compared, 2 after an error of usage or in a bundle.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from afv_metric.bundles.resolve import DEFAULT_BUNDLE, list_bundles
from afv_metric.files import atomic_write
from afv_metric.runtime import parse_device

if TYPE_CHECKING:
    from torch import Tensor

    from afv_metric.fisher.sets import SetComparison
    from afv_metric.metric import AFVDistance

__all__ = ["main"]

_PAPER = "Zhai et al., NeurIPS 2019, arXiv:1910.13101"
# Blocks of images a folder, whose mean scores the interval of set distances comes from.
_BLOCKS = 32
_Item = TypeVar("_Item")
_Named = TypeVar("_Named", bound=tuple[Any, ...])
# From black over violet and orange to pale yellow, ever lighter: a larger value never looks smaller.
_RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows ``afv-metric``; from the command line if None.

    Returns:
        Exit status: 0, 1 if some file could not be compared, 2 after an error of usage or in a bundle.

    Example:
        >>> main(["cite", "--weights", "no such bundle"])
        2
    """
    options = _make_parser().parse_args(arguments)
    try:
        problems: list[str] = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout, head say, has left. Python must find nothing to flush there when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError, ValueError) as error:  # those of bundles, the hub and torch are RuntimeErrors
        print(f"afv-metric: error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"afv-metric: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="afv-metric",
        description="Perceptual distances between images, from Adversarial Fisher Vectors.",
        epilog="Exit status: 0 all good, 1 some file could not be compared, 2 error of usage or in a bundle.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        return command

    compare = add("compare", _compare, "distances of images to a reference, nearest first")
    compare.add_argument("reference", type=Path, metavar="REF")
    compare.add_argument("images", type=Path, nargs="+", metavar="IMG")
    compare.add_argument("--json", action="store_true", help="print JSON, with all digits")
    compare.add_argument("--map", type=Path, metavar="PNG", help="write a heat map of the distance to the one IMG")
    dirs = add("dirs", _dirs, "distances of the images that have the same name in two folders, and their mean")
    dirs.add_argument("folder0", type=Path, metavar="DIR0")
    dirs.add_argument("folder1", type=Path, metavar="DIR1")
    matrix = add("matrix", _matrix, "distances of all pairs of the images in a folder")
    matrix.add_argument("folder", type=Path, metavar="DIR")
    sets = add("sets", _sets, "Fisher distance and Similarity of two folders as sets of images, whatever their names")
    sets.add_argument("folder0", type=Path, metavar="DIR0")
    sets.add_argument("folder1", type=Path, metavar="DIR1")
    sets.add_argument(
        "--size",
        type=int,
        choices=(32, 64),
        help="compare the middle squares, the shorter side scaled to this many pixels; default: the training size",
    )
    sets.add_argument("--count", type=_parse_count, metavar="N", help="files to draw from each folder; default: all")
    sets.add_argument("--resamples", type=_parse_count, default=2000, metavar="R", help="of the bootstrap (2000)")
    sets.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    sets.add_argument("--json", action="store_true", help="print JSON, with all digits")
    info = add("info", _info, "what is in a bundle")
    info.add_argument("weights", nargs="?", metavar="BUNDLE", help="name, folder or hub id; the default if not given")
    info.add_argument("--json", action="store_true", help="print JSON")
    cite = add("cite", _cite, "a line that says exactly which distance was used")

    for command in (dirs, matrix):
        command.add_argument("--csv", type=Path, metavar="FILE", help="write the CSV there, not to stdout")
    for command in (compare, dirs, matrix, sets, cite):
        command.add_argument("--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id")
    for command in (compare, dirs, matrix, cite):
        # Written out, because FORMS would import torch.
        command.add_argument("--form", choices=("fisher", "local", "activation"), help="default: the bundle's")
    for command in (compare, dirs, matrix, sets):
        command.add_argument("--device", type=parse_device, default="cpu", help="cpu (default), cuda, mps, or auto")
        command.add_argument("--batch-size", type=_parse_count, default=16, metavar="N", help="images at a time (16)")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


def _compare(options: argparse.Namespace) -> list[str]:
    import torch

    if options.map and len(options.images) > 1:
        raise ValueError(f"--map takes exactly one image to compare, got {len(options.images)}")
    metric = _load_metric(options)
    problems: list[str] = []
    reference = _read(options.reference, problems)
    if reference is None:
        return problems

    def readable() -> Iterator[tuple[str, Tensor]]:
        for path in _progress(options.images, options):
            image = _read(path, problems, like=reference)
            if image is not None:
                yield str(path), image

    found: list[tuple[str, float]] = []
    for batch in _batches(readable(), options.batch_size):
        names, images = zip(*batch, strict=True)
        values = metric(reference.to(options.device), torch.cat(images).to(options.device))
        found += zip(names, values.tolist(), strict=True)
        if options.map:
            _write_map(options, images[0], reference)
    found.sort(key=lambda item: item[1])
    if options.json:
        print(json.dumps([{"file": _printable(name), "distance": value} for name, value in found], indent=2))
    else:
        print("distance    file")
        for name, value in found:
            print(f"{value:<11.6g} {_printable(name)}")
    return problems


def _dirs(options: argparse.Namespace) -> list[str]:
    import torch

    folders = (options.folder0, options.folder1)
    files = [_list_files(folder) for folder in folders]
    common = [name for name in files[0] if name in files[1]]
    problems = [
        f"{_printable(name)}: only in {folders[side]}"
        for side in (0, 1)
        for name in files[side]
        if name not in files[1 - side]
    ]
    metric = _load_metric(options)

    def readable() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in _progress(common, options):
            first = _read(files[0][name], problems)
            second = _read(files[1][name], problems, like=first)
            if first is not None and second is not None:
                yield name, first, second

    rows: list[tuple[str, float]] = []
    for batch in _batches(readable(), options.batch_size):
        names, first, second = zip(*batch, strict=True)
        values = metric(torch.cat(first).to(options.device), torch.cat(second).to(options.device))
        rows += zip(names, values.tolist(), strict=True)
    _write_csv([("file", "distance"), *((_printable(name), f"{value:.6g}") for name, value in rows)], options.csv)
    if rows:
        mean = sum(value for _, value in rows) / len(rows)
        print(f"mean distance {mean:.6g} over {len(rows)} pairs", file=sys.stderr)
    else:
        problems.append("not one pair could be compared")
    return problems


def _matrix(options: argparse.Namespace) -> list[str]:
    import torch

    metric = _load_metric(options)
    problems: list[str] = []
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    names = []
    for name, path in _list_files(options.folder).items():
        image = _read(path, problems)
        if image is not None:
            groups[_size(image)][name] = image
            names.append(name)
    distances: dict[tuple[str, str], float] = {}
    for group in groups.values():
        # Embeddings may be large, so that no more than two blocks of them are kept.
        starts = range(0, len(group), options.batch_size)
        blocks = [list(group)[start : start + options.batch_size] for start in starts]
        for index in _progress(range(len(blocks)), options):
            first = metric.embed(torch.cat([group[name] for name in blocks[index]]).to(options.device))
            for block in blocks[index:]:
                same = block is blocks[index]
                second = first if same else metric.embed(torch.cat([group[name] for name in block]).to(options.device))
                rows = metric.distance_between(first, second).tolist()
                for one, row in zip(blocks[index], rows, strict=True):
                    for other, value in zip(block, row, strict=True):
                        distances[one, other] = distances[other, one] = value
    table = [[f"{distances[one, other]:.6g}" if (one, other) in distances else "" for other in names] for one in names]
    printable = [_printable(name) for name in names]
    _write_csv([["", *printable], *([name, *row] for name, row in zip(printable, table, strict=True))], options.csv)
    if not names:
        problems.append(f"{options.folder}: holds no image")
    if len(groups) > 1:
        listing = "; ".join(f"{size}: {', '.join(map(_printable, group))}" for size, group in groups.items())
        problems.append(f"images of different sizes are not compared, {listing}")
    return problems


def _sets(options: argparse.Namespace) -> list[str]:
    import torch

    from afv_metric.bundles.bundle import load_bundle
    from afv_metric.fisher.engine import FisherEngine
    from afv_metric.fisher.sets import block_scores, compare_sets, middle_square, similarity_at
    from afv_metric.images.tensors import to_network_range

    bundle = load_bundle(options.weights)
    engine = FisherEngine(bundle.discriminator, bundle.energy).to(options.device)
    size = options.size or bundle.discriminator.config.image_size
    chance = random.Random(options.seed)
    problems: list[str] = []

    def squares(paths: Sequence[Path]) -> Iterator[tuple[Tensor]]:
        for path in paths:
            image = _read(path, problems)
            if image is not None:
                yield (middle_square(to_network_range(image, normalize=False, dtype=torch.float32), size),)

    def blocks(folder: Path) -> Iterator[Iterator[Tensor]]:
        files = list(_list_files(folder).values())
        drawn = chance.sample(files, min(options.count or len(files), len(files)))
        count = min(_BLOCKS, len(drawn))
        for index in _progress(range(count), options):
            batches = _batches(squares(drawn[index::count]), options.batch_size)
            yield (torch.cat([image for (image,) in batch]).to(options.device) for batch in batches)

    folders = (options.folder0, options.folder1)
    first, second = (block_scores(engine, blocks(folder)) for folder in folders)
    for folder, scores in zip(folders, (first, second), strict=True):
        if len(scores.counts) < 2:
            problems.append(f"{folder}: holds too few images to compare, {sum(scores.counts)}; two are the least")
    if min(len(first.counts), len(second.counts)) < 2:
        return problems
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
    print(json.dumps(record, indent=2) if options.json else "\n".join(_outline_of_sets(record)))
    for note in _notes_on_sets(found):
        print(f"note: {note}", file=sys.stderr)
    return problems


def _outline_of_sets(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table of what sets has found."""
    yield "            plain       corrected   95 % interval"
    for name in ("distance", "similarity"):
        plain, corrected, (low, high) = record[name].values()
        yield f"{name:<11} {plain:<11.5g} {corrected:<11.5g} {low:.5g} to {high:.5g}"
    needed = f"; {record['needed']} images a set make it a tenth of the distance" if record["needed"] else ""
    yield f"bias        {record['bias']:.5g}{needed}"
    yield "images      {} and {}, squares of {} pixels".format(*record["images"], record["size"])


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


def _info(options: argparse.Namespace) -> list[str]:
    from dataclasses import asdict

    from afv_metric.bundles.bundle import load_bundle

    bundle = load_bundle(options.weights or DEFAULT_BUNDLE)
    record: dict[str, Any] = {
        "name": bundle.name,
        "sha256": bundle.hash,
        "discriminator": asdict(bundle.discriminator.config),
        "parameters": sum(parameter.numel() for parameter in bundle.discriminator.parameters()),
        "energy": bundle.energy,
        "form": bundle.form,
        "levels": list(bundle.levels),
        "blocks": "all" if bundle.blocks is None else list(bundle.blocks),
        "pooling": bundle.pooling,
        "statistics": {"count": bundle.statistics.count, **bundle.sampling},
        "training": dict(bundle.training),
        "licence": dict(bundle.licence),
    }
    if not options.weights:
        record["bundles that ship with the package"] = list_bundles()
    print(json.dumps(record, indent=2) if options.json else "\n".join(_outline(record)))
    return []


def _cite(options: argparse.Namespace) -> list[str]:
    import torch

    from afv_metric import __version__
    from afv_metric.bundles.bundle import load_bundle

    bundle = load_bundle(options.weights)
    form = options.form or bundle.form
    settings = [f"form {form}", "levels " + "/".join(f"{weight:g}" for weight in bundle.levels)]
    if form != "fisher":
        settings += ["blocks " + "/".join(map(str, bundle.blocks))] if bundle.blocks else []
        settings.append(f"pooling {bundle.pooling:g}")
    print(
        f"afv_metric {__version__}, bundle {bundle.name} (sha256 {bundle.hash[:12]}), {', '.join(settings)}; "
        f"{_PAPER}; torch {torch.__version__}"
    )
    return []


def _outline(record: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines ``name: value``, nested mappings indented."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _outline(value, indent + "  ")
        else:
            yield f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _load_metric(options: argparse.Namespace, *, spatial: bool = False) -> AFVDistance:
    from afv_metric.metric import AFVDistance

    return AFVDistance(options.weights, form=options.form, spatial=spatial).to(options.device)


def _list_files(folder: Path) -> dict[str, Path]:
    """Files in a folder and the folders in it, sorted, by relative path; hidden ones are left out."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)
    }


def _read(path: Path, problems: list[str], like: Tensor | None = None) -> Tensor | None:
    """Read an image that the metric takes, of the size of another one, or note what is the matter with it."""
    from afv_metric.images.tensors import SMALLEST_SIDE, read_image

    name = _printable(str(path))
    try:
        image = read_image(path)
    except Exception as error:  # Pillow lets the errors of its decoders through, which are of all kinds.
        problems.append(f"{name}: cannot be read: {error}")
        return None
    if min(image.shape[2:]) < SMALLEST_SIDE:
        problems.append(f"{name}: is {_size(image)} pixels, the smallest side is {SMALLEST_SIDE}")
        return None
    if like is not None and image.shape != like.shape:
        problems.append(f"{name}: is {_size(image)} pixels, to be compared with {_size(like)}")
        return None
    return image


def _size(image: Tensor) -> str:
    return f"{image.shape[3]}x{image.shape[2]}"


def _batches(items: Iterable[_Named], size: int) -> Iterator[list[_Named]]:
    """Bring together neighbours whose last elements, images, are of one size."""
    batch: list[_Named] = []
    for item in items:
        if batch and (len(batch) == size or item[-1].shape != batch[0][-1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _progress(items: Sequence[_Item], options: argparse.Namespace) -> Iterator[_Item]:
    yield from tqdm(items, disable=options.quiet, leave=False)


def _printable(name: str) -> str:
    """A name in which bytes that are no text, which the file systems of Linux allow, are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_csv(rows: Iterable[Sequence[str]], path: Path | None) -> None:
    if path is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_map(options: argparse.Namespace, image: Tensor, reference: Tensor) -> None:
    """Write the map of the distance in colours, blended over the greys of the image."""
    import numpy as np
    from PIL import Image

    metric = _load_metric(options, spatial=True)
    values = metric(image.to(options.device), reference.to(options.device))[0, 0].cpu().numpy()
    largest = float(values.max())
    relative = values / largest if largest > 0 else values
    stops = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(relative, stops, channel) for channel in zip(*_RAMP, strict=True)], 2)
    grey = image[0].float().mean(0).numpy()[..., None]
    pixels = (0.65 * colours + 0.35 * grey).round().astype(np.uint8)
    with atomic_write(options.map) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    print(f"{options.map}: from 0 (black) to {largest:.6g} (pale yellow)", file=sys.stderr)
