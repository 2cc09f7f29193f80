"""A bundle for one's own images without any training: the same network, whitened by the statistics of these images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.bundles.golden import with_golden_distances
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.images.augment import augment
from afv_metric.images.cache import load_images
from afv_metric.images.reading import Reader
from afv_metric.images.tiles import Tiling
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.recipes import Recipe

__all__ = ["adapt_bundle"]

_BATCH = 100


def adapt_bundle(
    bundle: Bundle,
    data: str | Path | Sequence[str | Path],
    name: str,
    *,
    samples: int = 5_000,
    seed: int = 0,
    reader: Reader | None = None,
    tiling: Tiling | None = None,
    cache: str | Path | None = None,
    cache_gb: float | None = None,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Bundle:
    """Take the Fisher statistics of a bundle anew, over images in place of generated samples.

    The distance then measures in units of how these images differ among themselves. Crops are drawn as in the training
    of the bundle, as often from each image as from any other.

    Args:
        bundle: Whose network and definition of the distance are kept.
        data: Images: folders or archives, see :func:`~afv_metric.images.cache.load_images`.
        name: Name of the new bundle.
        samples: Crops. ``fisher`` takes 10,000 for variances that are certain to 2 %; the other forms take few.
        seed: Seed of the crops.
        reader: Rules to read the files by.
        tiling: How large images are cut; None: the middle square of each alone.
        cache: Folder for the decoded images.
        cache_gb: Bound on the size of the decoded images.
        device: Where to compute.
        quiet: Show no progress bar.

    Returns:
        The new bundle with its golden distances, not yet saved.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If there is no sample, or too few images can be read.
    """
    if samples < 1:
        raise ValueError(f"Fisher statistics need at least one sample, got {samples}")
    recipe = read_recipe(bundle.training["recipe"]) if "recipe" in bundle.training else Recipe()
    size = bundle.discriminator.config.image_size
    images = load_images(data, 2 * size, reader=reader, tiling=tiling, cache=cache, cache_gb=cache_gb, quiet=quiet)

    def batches() -> Iterator[Tensor]:
        count = len(images.images)
        passes = [torch.randperm(count) for _ in range(-(-samples // count))]
        with tqdm(total=samples, desc="statistics", disable=quiet, unit="sample") as bar:
            for rows in torch.cat(passes)[:samples].split(_BATCH):
                batch = images.images[rows].to(device).float() / 127.5 - 1
                yield augment(batch, size, recipe.augmentation)
                bar.update(len(rows))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = deepcopy(bundle.discriminator).to(device)
        statistics = collect_statistics(FisherEngine(discriminator, bundle.output), batches())
    adapted = replace(
        bundle,
        name=name,
        statistics=statistics,
        sampling={
            "source": "images",
            "bundle": f"{bundle.name} {bundle.hash}",
            "data_fingerprint": images.fingerprint,
            "augmentation": recipe.augmentation,
            "seed": seed,
            **({"data_range": list(vars(reader.data_range).values())} if reader and reader.data_range else {}),
            **({"tiles": tiling.most} if tiling else {}),
        },
        card=f"# {name}\n",
        hash="",
    )
    return with_golden_distances(adapted)
