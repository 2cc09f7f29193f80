"""Score vectors at a few bytes per image: an index of a folder by product quantisation, and what it finds again.

The whitened score vector of an image, P numbers, becomes 4 to 128 bytes in three steps:

1. a count sketch of a few thousand numbers, which keeps distances in expectation (:mod:`afv_metric.fisher.vectors`);
2. the first principal components of the sketches. What is left of an image outside of them is nearly orthogonal to what
   is left of any other and adds its square length to every distance, so that this length is one more coordinate of the
   gallery, and 0 in queries, which raises the recall. Only between copies of one image is what is left alike; they are
   still found, at an estimate above 0;
3. codes of 8 bits, by faiss. Up to 8 bytes by a residual quantiser, which finds more than a product quantiser, in more
   time; above them by a product quantiser over groups of components whose variances have about equal products. That
   order (Ge, He, Ke and Sun 2013) found as much as a rotation fitted to the data, and takes no time.

Kinds of codes and numbers of coordinates were chosen in trials with another network, on 10,000 images of CIFAR-10 and
300 queries. Beside its codes an index holds what all images share, projection and codebooks; names are not counted.

Queries are not quantised. The exact distance that recall is measured against is the ``fisher`` distance at the images'
own resolution. Sketches of the gallery are kept in memory while an index is built, 8 KB per image at 4,096 numbers.
faiss is the optional extra ``index``: ``pip install "afv-metric[index]"``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.files import atomic_write, save_figure, sha256_of
from afv_metric.fisher.vectors import ScoreFeatures, Sketch, UInt8Images, extract
from afv_metric.images.cache import draw_images, load_images
from afv_metric.images.reading import Reader
from experiments import missing_matplotlib
from experiments.features import store
from experiments.intervals import format_share, mean_interval
from experiments.neighbours import Neighbours, extract_all, load_queries, nearest_among

__all__ = [
    "ImageIndex", "Projection", "add_arguments", "build_index", "fit_projection", "group_dimensions", "load_index",
    "recall", "run", "save_index", "search_index", "sketch_vectors", "train_codes",
]  # fmt: skip

_FORMAT = 1
_INDEX, _PROJECTION, _CONFIG = "index.faiss", "projection.safetensors", "config.json"
_BITS = 8
_CENTROIDS = 2**_BITS
_TRAINING = 40 * _CENTROIDS  # images that codes are trained on, as many as faiss wishes for; more hardly help
_SAMPLE = 16_384  # images that principal components are taken of
_RESIDUAL_BYTES = 8  # up to here residual quantisers, whose time grows with the square of the bytes
_NEAREST, _FIRST = 10, 100
_SHARED = "shared by all, KB"
_CHUNK = 4096
_log = logging.getLogger(__name__)


class Projection(NamedTuple):
    """Principal components of sketches.

    Attributes:
        mean: ``(sketch,)``.
        components: Orthonormal columns, those of most variance first, ``(sketch, size - 1)``.
    """

    mean: Tensor
    components: Tensor

    @property
    def size(self) -> int:
        """Coordinates of an image: the components, and the length of what is left."""
        return self.components.shape[1] + 1

    def first(self, size: int) -> Projection:
        """The same with fewer coordinates."""
        return Projection(self.mean, self.components[:, : size - 1])

    def split(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Components ``(N, size - 1)``, and the square length of what is left, ``(N, 1)``."""
        centred = sketches.float() - self.mean
        inside = centred @ self.components
        left = centred.square().sum(1, keepdim=True) - inside.square().sum(1, keepdim=True)
        return inside, left.clamp_min(0)

    def of_gallery(self, sketches: Tensor) -> Tensor:
        """Coordinates ``(N, size)`` of sketches ``(N, sketch)``, taken a few thousand at a time."""
        chunks = (self.split(chunk) for chunk in sketches.split(_CHUNK))
        return torch.cat([torch.cat([inside, left.sqrt()], 1) for inside, left in chunks])

    def of_queries(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates ``(N, size)``, and what to add to all squared distances of each query, ``(N, 1)``."""
        inside, left = self.split(sketches)
        return torch.cat([inside, torch.zeros_like(left)], 1), left


@dataclass(frozen=True)
class ImageIndex:
    """Images as codes of a few bytes, to be searched by :func:`search_index`.

    Attributes:
        codes: The index of faiss, over the coordinates of ``projection``.
        projection: Map from sketches to coordinates.
        names: Name of each image.
        settings: Bundle, sketch, seed, image size, bytes and kind of the codes.
    """

    codes: Any
    projection: Projection
    names: Sequence[str]
    settings: dict[str, Any]


def fit_projection(sketches: Tensor, size: int, seed: int = 0) -> Projection:
    """Principal components of at most 16,384 of the sketches, chosen at random.

    Args:
        sketches: ``(N, sketch)``, in half precision too.
        size: Coordinates wanted; fewer where the sketches have no more directions.
        seed: Seed of the choice and of the start of the power iteration.
    """
    sample = _draw(sketches, _SAMPLE, seed).float()
    mean = sample.mean(0)
    rank = min(size - 1, *sample.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A few more than wanted make the last of them exact enough.
        components = torch.svd_lowrank(sample.sub_(mean), min(rank + 16, *sample.shape), niter=2)[2]
    return Projection(mean, components[:, :rank])


def _draw(table: Tensor, count: int, seed: int) -> Tensor:
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    return table[order[:count].sort().values]


def group_dimensions(variances: Sequence[float], groups: int) -> list[int]:
    """Order coordinates such that equal consecutive parts of them have about equal products of variances.

    The largest goes to the emptiest group, which is the one of the smallest product so far among those with room.

    Args:
        variances: Variances of the coordinates, a multiple of the groups in number.
        groups: Number of parts.

    Example:
        >>> group_dimensions([8.0, 4.0, 2.0, 1.0], 2)
        [0, 3, 1, 2]
    """
    room = len(variances) // groups
    # Relative to the smallest, so that each coordinate adds to its group; 0 is a coordinate that never varies.
    least = min((variance for variance in variances if variance > 0), default=1.0)
    logs = [math.log(max(variance, least) / least) for variance in variances]
    members: list[list[int]] = [[] for _ in range(groups)]
    totals = [0.0] * groups
    for coordinate in sorted(range(len(logs)), key=lambda index: -logs[index]):
        chosen = min((group for group in range(groups) if len(members[group]) < room), key=lambda group: totals[group])
        members[chosen].append(coordinate)
        totals[chosen] += logs[coordinate]
    return [coordinate for group in members for coordinate in group]


def train_codes(vectors: Tensor, count: int) -> Any:
    """Train an empty index of faiss.

    Args:
        vectors: Coordinates to train on ``(N, size)``, of 256 images or more.
        count: Bytes of each image; a divisor of ``size`` above 8.

    Returns:
        The index; its distances are squared ones.

    Raises:
        ImportError: If faiss is not installed.
    """
    faiss = _import_faiss()
    size = vectors.shape[1]
    if count <= _RESIDUAL_BYTES:
        index = faiss.IndexResidualQuantizer(size, count, _BITS)
        quantiser = index.rq
    else:
        order = group_dimensions(vectors.var(0).tolist(), count)
        inner = faiss.IndexPQ(size, count, _BITS)
        quantiser = inner.pq
        remap = faiss.RemapDimensionsTransform(size, size, True)
        faiss.copy_array_to_vector(np.array(order, np.int32), remap.map)
        index = faiss.IndexPreTransform(remap, inner)
    quantiser.cp.min_points_per_centroid = 1  # no warning on the standard error where images are few
    index.train(vectors.numpy())
    return index


def _import_faiss() -> Any:
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError('the index is built by faiss: pip install "afv-metric[index]"') from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def build_index(
    bundle: Bundle, sketches: Tensor, projection: Projection, count: int, names: Sequence[str], *, seed: int = 0
) -> ImageIndex:
    """Index images by their sketches.

    Args:
        bundle: Bundle of the sketches.
        sketches: ``(N, sketch)``, as :func:`~experiments.features.store` gives them.
        projection: Projection of :func:`fit_projection`; cut to what suits the number of bytes.
        count: Bytes per image.
        names: Name of each image.
        seed: Seed that the sketches were made with, and of the choice of those that codes are trained on.

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If there are fewer than 256 images, or fewer coordinates than bytes.
    """
    _refuse_impossible(len(sketches), count, projection.size)
    projection = projection.first(_coordinates(count, projection.size))
    codes = train_codes(projection.of_gallery(_draw(sketches, _TRAINING, seed)), count)
    for chunk in sketches.split(_CHUNK):
        codes.add(projection.of_gallery(chunk).numpy())
    settings = {
        "bundle": {"name": bundle.name, "sha256": bundle.hash},
        "image_size": bundle.discriminator.config.image_size,
        "sketch": sketches.shape[1],
        "seed": seed,
        "coordinates": projection.size,
        "bytes": count,
        "kind": f"{'RQ' if count <= _RESIDUAL_BYTES else 'PQ'}{count}x{_BITS}",
        "images": len(sketches),
    }
    return ImageIndex(codes, projection, names, settings)


def _refuse_impossible(images: int, count: int, coordinates: int) -> None:
    if images < _CENTROIDS:
        raise ValueError(f"an index needs at least {_CENTROIDS} images to train its codes on, got {images}")
    if not 1 <= count <= coordinates:
        raise ValueError(
            f"an image has {coordinates} coordinates here, for 1 byte up to as many; got {count} bytes. Longer "
            "sketches of more images have more"
        )


def _coordinates(count: int, most: int) -> int:
    """Coordinates for codes of so many bytes; a multiple of the bytes above 8."""
    # Chosen in trials with another network, on 10,000 images of CIFAR-10 and 300 queries.
    wanted = min(64 if count <= 8 else 128 if count <= 32 else 256, most)
    return wanted if count <= _RESIDUAL_BYTES else max(wanted // count, 1) * count


def save_index(index: ImageIndex, folder: str | Path, fingerprint: str = "") -> None:
    """Write ``index.faiss``, ``projection.safetensors`` and, last, ``config.json`` with their hashes.

    Args:
        index: The index.
        folder: Folder to write; what stands there is replaced file by file, and half of a new one is refused.
        fingerprint: Fingerprint of the images, for the record.
    """
    folder = Path(folder)
    with atomic_write(folder / _INDEX) as temporary:
        _import_faiss().write_index(index.codes, str(temporary))
    with atomic_write(folder / _PROJECTION) as temporary:
        safetensors.torch.save_file(_tensors(index.projection), temporary)
    files = {name: sha256_of(folder / name) for name in (_INDEX, _PROJECTION)}
    config = {"format": _FORMAT, **index.settings, "fingerprint": fingerprint, "sha256": files}
    with atomic_write(folder / _CONFIG) as temporary:
        temporary.write_text(json.dumps(config | {"names": list(index.names)}, indent=1) + "\n", encoding="utf-8")


def _tensors(projection: Projection) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in projection._asdict().items()}


def _count_shared_bytes(index: ImageIndex) -> int:
    """Bytes of the files of :func:`save_index` that are no image's own: projection and codebooks, without names."""
    codes: int = len(_import_faiss().serialize_index(index.codes)) - index.settings["bytes"] * len(index.names)
    return codes + len(safetensors.torch.save(_tensors(index.projection)))


def load_index(folder: str | Path) -> ImageIndex:
    """Read an index and check that its files belong together.

    Raises:
        FileNotFoundError: If there is none.
        ImportError: If faiss is not installed.
        ValueError: If it is of another format, damaged, or half of it was replaced.
    """
    folder = Path(folder)
    if not (folder / _CONFIG).exists():
        raise FileNotFoundError(f"{folder} holds no index (no {_CONFIG}); build one with --gallery")
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        version, hashes, names = config.pop("format"), config.pop("sha256"), config.pop("names")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / _CONFIG} does not describe an index ({error!r}); build it again") from error
    if version != _FORMAT:
        raise ValueError(f"{folder} is an index of format {version!r}, this release reads {_FORMAT}; build it again")
    for name in (_INDEX, _PROJECTION):
        if sha256_of(folder / name) != hashes[name]:
            raise ValueError(f"{folder / name} is damaged, or not of the same index as {_CONFIG}; build it again")
    codes = _import_faiss().read_index(str(folder / _INDEX))
    projection = Projection(**safetensors.torch.load_file(folder / _PROJECTION))
    return ImageIndex(codes, projection, names, config)


def search_index(
    index: ImageIndex, bundle: Bundle, images: UInt8Images, k: int, *, device: str | torch.device = "cpu"
) -> Neighbours:
    """Find the images of an index that are nearest to others.

    Args:
        index: The index.
        bundle: The bundle that it was built with.
        images: Decoded images of the size that the index was built at.
        k: Number of images for each, at most as many as the index holds.
        device: Device to compute score vectors on.

    Returns:
        Estimates of the ``fisher`` distance, nearest first, and which images of the index.

    Raises:
        ValueError: If the bundle is another one, or k out of range.
    """
    known, settings = index.settings["bundle"], index.settings
    if bundle.hash != known["sha256"]:
        raise ValueError(
            f"the index was built with the bundle {known['name']} (sha256 {known['sha256'][:12]}), and this is "
            f"{bundle.name} ({bundle.hash[:12]}); give that one by --weights, or build the index again"
        )
    if not 1 <= k <= len(index.names):
        raise ValueError(f"{k} neighbours were asked for; the index holds {len(index.names)} images")
    features = ScoreFeatures(bundle, sketch=settings["sketch"], seed=settings["seed"]).to(device)
    return _search(index, extract_all(features, images, device=device), k)


def _search(index: ImageIndex, sketches: Tensor, k: int) -> Neighbours:
    vectors, left = index.projection.of_queries(sketches)
    distances, rows = index.codes.search(vectors.numpy(), k)
    return Neighbours(torch.from_numpy(distances) + left, torch.from_numpy(rows))


def sketch_vectors(features: ScoreFeatures, vectors: Tensor) -> Tensor:
    """Sketch score vectors as features with a sketch do, without computing them anew.

    Args:
        features: Features with a sketch.
        vectors: Score vectors of the same bundle, without a sketch: ``(N, P)``.

    Returns:
        ``(N, features.size)``.
    """
    sketches = cast(list[Sketch], list(features.sketches))
    parts = zip(sketches, vectors.split([len(sketch.places) for sketch in sketches], 1), strict=True)
    return torch.stack([sketch(part) for sketch, part in parts]).sum(0)


def recall(expected: Tensor, found: Tensor) -> Tensor:
    """Share of the expected rows that are among those found, for each query.

    Args:
        expected: ``(Q, k)``.
        found: ``(Q, n)``.

    Returns:
        ``(Q,)``.

    Example:
        >>> recall(torch.tensor([[1, 2]]), torch.tensor([[2, 5, 7]]))
        tensor([0.5000])
    """
    return (expected[:, :, None] == found[:, None, :]).any(2).float().mean(1)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id")
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="images to index")
    parser.add_argument("--queries", type=Path, metavar="DIR", help="images that recall is measured with")
    parser.add_argument("--query", type=Path, nargs="+", metavar="IMAGE", help="look these up in the index")
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help="where the index is, or goes; default: the folder index in --out"
    )
    parser.add_argument(
        "--bytes", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128], metavar="N", help="of an image (4 ... 128)"
    )
    parser.add_argument(
        "--keep", type=int, metavar="N", help="bytes of the index to keep; default: the most of --bytes"
    )
    parser.add_argument("--sketch", type=int, default=4096, metavar="N", help="numbers of the sketch (4096)")
    parser.add_argument("--evaluate", type=int, default=1000, metavar="N", help="queries to measure recall with (1000)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="gallery images to index, at random (all)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Index, measure recall and write ``recall.png``, look images up; return all numbers."""
    if not options.gallery and not options.query:
        raise ValueError("nothing to do: give --gallery to build an index, or --query to search one")
    if options.queries and not options.gallery:
        raise ValueError("recall is measured while an index is built: give --gallery with --queries")
    if options.keep is not None and options.keep < 1:
        raise ValueError(f"--keep must be at least 1, got {options.keep}")
    if options.evaluate < 1:
        raise ValueError(f"--evaluate must be at least 1, got {options.evaluate}")
    _import_faiss()
    bundle = load_bundle(options.weights)
    folder = options.index or options.out / "index"
    record: dict[str, Any] = {"bundle": {"name": bundle.name, "sha256": bundle.hash}}
    table: list[list[str]] = []
    if options.gallery:
        part, table = _build(options, bundle, folder)
        record |= part
    if options.query:
        found = _look_up(options, bundle, folder)
        record["found"] = found
        if not options.queries:
            table = [["query", "rank", "name", "distance"]]
            for query in found:
                rows = enumerate(zip(query["names"], query["distances"], strict=True), 1)
                table += [[query["query"], str(rank), name, f"{distance:.4g}"] for rank, (name, distance) in rows]
    return record | {"table": table}


def _build(options: argparse.Namespace, bundle: Bundle, folder: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """Build and save the index to keep; with queries, measure the recall of all of them."""
    keep = options.keep or max(options.bytes)
    budgets = sorted({*options.bytes, keep}) if options.queries else [keep]
    size = bundle.discriminator.config.image_size
    gallery = draw_images(load_images(options.gallery, size, quiet=options.quiet), options.limit, options.seed)
    for count in budgets:  # before minutes of work
        _refuse_impossible(len(gallery.names), count, min(options.sketch, len(gallery.names)) + 1)
    queries = load_queries(options, gallery, size) if options.queries else None
    features = ScoreFeatures(bundle, sketch=options.sketch, seed=options.seed)
    settings = {"device": options.device, "quiet": options.quiet}
    record: dict[str, Any] = {"gallery": {"images": len(gallery.names), "fingerprint": gallery.fingerprint}}
    if queries:
        record["queries"] = {"images": len(queries.names), "fingerprint": queries.fingerprint}
        sketches, of_queries, exact = _search_exactly(bundle, features, gallery.images, queries.images, settings)
    else:
        sketches = store(features.to(options.device), gallery.images, **settings)
    projection = fit_projection(sketches, max(_coordinates(count, options.sketch) for count in budgets), options.seed)
    record["index"], rows = {}, []
    for count in budgets:
        began = time.perf_counter()
        index = build_index(bundle, sketches, projection, count, gallery.names, seed=options.seed)
        entry = {**index.settings, "seconds": round(time.perf_counter() - began, 1)}
        entry["shared_bytes"] = _count_shared_bytes(index)
        if count == keep:
            save_index(index, folder, gallery.fingerprint)
        if queries:
            began = time.perf_counter()
            found = _search(index, of_queries, _FIRST).rows
            entry["milliseconds_a_query"] = 1000 * (time.perf_counter() - began) / len(of_queries)
            entry |= _recalls(exact.rows, found)
            rows.append(_row(index.settings["kind"], entry))
        record["index"][str(count)] = entry
    if not queries:
        entry = record["index"][str(keep)]
        head = ["index", "bytes per image", _SHARED, "images"]
        return record, [head, [entry["kind"], *_bytes(entry), str(entry["images"])]]
    chunks = (chunk.float() for chunk in sketches.split(_CHUNK))
    alone = {"bytes": 2 * options.sketch, "shared_bytes": 0}
    alone |= _recalls(exact.rows, nearest_among(of_queries, chunks, _FIRST).rows)
    whole = {"bytes": 4 * exact.size, "shared_bytes": 0} | _recalls(exact.rows, exact.rows)  # 1 by construction
    record["references"] = {"sketch": alone, "score vectors": whole}
    rows.append(_row(f"sketch of {options.sketch}, half precision", alone))
    rows.append(_row("score vectors, float32 (the reference)", whole))
    record["picture"] = _draw_recall(record, options.out / "recall.png")
    return record, [["kept", "bytes per image", _SHARED, f"recall@{_NEAREST}", f"{_NEAREST}@{_FIRST}"], *rows]


class _Exact(NamedTuple):
    """The gallery's images that are truly nearest, and the length of a score vector."""

    rows: Tensor
    size: int


def _search_exactly(
    bundle: Bundle, features: ScoreFeatures, gallery: UInt8Images, queries: UInt8Images, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, _Exact]:
    """Sketches of gallery and queries and the exact neighbours, of score vectors that are computed once."""
    exact = ScoreFeatures(bundle).to(settings["device"])
    vectors = extract_all(exact, queries, **settings)
    sketches = torch.empty(len(gallery), features.size, dtype=torch.float16)

    def passing() -> Iterator[Tensor]:
        start = 0
        for batch in extract(exact, gallery, **settings):
            sketches[start : start + len(batch)] = sketch_vectors(features, batch)
            start += len(batch)
            yield batch

    found = nearest_among(vectors.to(settings["device"]), passing(), _NEAREST)
    of_queries = torch.cat([sketch_vectors(features, some) for some in vectors.split(64)])
    return sketches, of_queries, _Exact(found.rows, exact.size)


def _recalls(expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Mean recall among the first 10 and 100, with 95 % intervals over queries."""
    result: dict[str, Any] = {}
    for name, first in (("recall", _NEAREST), ("recall_among_100", _FIRST)):
        result[name], result[f"{name}_interval"] = mean_interval(recall(expected, found[:, :first]))
    return result


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    return [
        name,
        *_bytes(entry),
        *(format_share(entry[key], entry[f"{key}_interval"]) for key in ("recall", "recall_among_100")),
    ]


def _bytes(entry: dict[str, Any]) -> list[str]:
    return [str(entry["bytes"]), f"{entry['shared_bytes'] / 1000:.0f}"]


def _look_up(options: argparse.Namespace, bundle: Bundle, folder: Path) -> list[dict[str, Any]]:
    """The nearest images of the index for each file."""
    index = load_index(folder)
    size = index.settings["image_size"]
    images = torch.cat([Reader().read(path, square=size) for path in options.query])
    found = search_index(index, bundle, images, min(_NEAREST, len(index.names)), device=options.device)
    return [
        {"query": str(path), "names": [index.names[row] for row in rows], "distances": distances}
        for path, rows, distances in zip(options.query, found.rows.tolist(), found.distances.tolist(), strict=True)
    ]


def _draw_recall(record: dict[str, Any], path: Path) -> str | None:
    """Draw recall against bytes; without matplotlib there is no picture, nor one of earlier."""
    if missing := missing_matplotlib():
        _log.info(missing)
        path.unlink(missing_ok=True)
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = {"recall": f"of the {_NEAREST} nearest, among the first {_NEAREST}"}
    lines["recall_among_100"] = f"of the {_NEAREST} nearest, among the first {_FIRST}"
    entries, references = list(record["index"].values()), record["references"]
    for (key, label), colour in zip(lines.items(), ("#2a78d6", "#d9622b"), strict=True):
        values = [entry[key] for entry in entries]
        ends = [[abs(entry[key] - entry[f"{key}_interval"][end]) for entry in entries] for end in (0, 1)]
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4}
        axes.errorbar([entry["bytes"] for entry in entries], values, ends, label=label, linewidth=1.2, **style)
        for reference in references.values():
            axes.plot(reference["bytes"], reference[key], **style, fillstyle="none", linestyle="none")
    for name, reference in references.items():
        place = (reference["bytes"], reference["recall"])
        axes.annotate(name, place, (8, -14), textcoords="offset points", ha="right")
    axes.set_xscale("log", base=2)
    shown = [*(entry["bytes"] for entry in entries), *(reference["bytes"] for reference in references.values())]
    axes.set_xticks(shown, [f"{count:,}" for count in shown], fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel="bytes per image", ylabel="recall", ylim=(0, 1.03))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", framealpha=1)
    save_figure(figure, path)
    return path.name
