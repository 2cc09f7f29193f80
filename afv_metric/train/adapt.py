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
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import FisherStatistics, collect_statistics
from afv_metric.images.augment import augment
from afv_metric.images.cache import FEWEST_IMAGES, ImageSet, load_images
from afv_metric.images.reading import Reader
from afv_metric.images.tiles import Tiling
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.recipes import Recipe

__all__ = ["adapt_bundle", "crop_statistics"]

_BATCH = 100
_TILING = Tiling()


def adapt_bundle(
    bundle: Bundle,
    data: str | Path | Sequence[str | Path],
    name: str,
    *,
    samples: int = 5_000,
    seed: int = 0,
    channels: int | None = None,
    reader: Reader | None = None,
    tiling: Tiling | None = _TILING,
    cache: str | Path | None = None,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Bundle:
    """Take the Fisher statistics of a bundle anew, over images in place of generated samples.

    The distance then measures in units of how these images differ among themselves.

    Network and definition of the distance are kept; for images of other channels the network is made to fit. As for
    crops, ``fisher`` takes 10,000 for variances that are certain to 2 %; the other forms take few. Images come from
    folders, archives or a stream, see :func:`~afv_metric.images.cache.load_images`; of a stream, as many as there are
    crops.

    Returns:
        The new bundle, not yet saved, without golden distances.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If there is no sample, or too few images can be read.
    """
    if samples < 1:
        raise ValueError(f"Fisher statistics need at least one sample, got {samples}")
    bundle = bundle.for_channels(channels or bundle.channels)
    size = bundle.discriminator.config.image_size
    reader = replace(reader or Reader(), channels=bundle.channels)
    images = load_images(
        data, 2 * size, reader=reader, tiling=tiling, cache=cache, quiet=quiet, most=max(samples, FEWEST_IMAGES)
    )

    statistics = crop_statistics(bundle, images, samples, seed=seed, device=device, quiet=quiet)
    return replace(
        bundle,
        name=name,
        statistics=statistics,
        data_range=reader.data_range,
        sampling={
            "source": "images",
            "bundle": f"{bundle.name} {bundle.hash}",
            "data_fingerprint": images.fingerprint,
            "augmentation": _recipe_of(bundle).augmentation,
            "seed": seed,
            **({"tiles": tiling.most} if tiling else {}),
        },
        golden={},
        card=f"# {name}\n",
        hash="",
    )


def crop_statistics(
    bundle: Bundle,
    images: ImageSet,
    samples: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> FisherStatistics:
    """Fisher statistics of a bundle's network over crops of images, drawn as in its training.

    The images are squares of twice the size that the network was trained at; crops are as often from one as from any
    other.
    """
    size, augmentation = bundle.discriminator.config.image_size, _recipe_of(bundle).augmentation

    def batches() -> Iterator[Tensor]:
        count = len(images.images)
        passes = [torch.randperm(count) for _ in range(-(-samples // count))]
        with tqdm(total=samples, desc="statistics", disable=quiet, unit="sample") as bar:
            for rows in torch.cat(passes)[:samples].split(_BATCH):
                batch = images.images[rows].to(device).float() / 127.5 - 1
                yield augment(batch, size, augmentation).expand(-1, bundle.channels, -1, -1)
                bar.update(len(rows))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = deepcopy(bundle.discriminator).to(device)
        return collect_statistics(FisherEngine(discriminator, bundle.output), batches())


def _recipe_of(bundle: Bundle) -> Recipe:
    return read_recipe(bundle.training["recipe"]) if "recipe" in bundle.training else Recipe()
