"""Fisher statistics over generated samples, by one process or shared out among several."""

from __future__ import annotations

from functools import reduce

import torch
from torch import distributed
from tqdm import tqdm

from afv_metric.distributed import rank_and_world_size
from afv_metric.fisher.engine import FisherEngine, Output
from afv_metric.fisher.statistics import FisherStatistics, collect_statistics
from afv_metric.networks import Discriminator, Generator

__all__ = ["sample_statistics"]

_BATCH = 100


def sample_statistics(
    discriminator: Discriminator, generator: Generator, output: Output, samples: int, seed: int, *, quiet: bool = True
) -> FisherStatistics:
    """Fisher statistics of a discriminator over samples of a generator.

    In a job of several processes each takes its share of the samples, which are the same for any number of processes,
    and all of them get the same statistics; between numbers of processes these differ by rounding in float64. The
    discriminator is baked, the generator in evaluation mode, both on one device; the seed is that of the latents.

    Raises:
        ValueError: If there are fewer samples than processes.
    """
    rank, count = rank_and_world_size()
    if samples < count:
        raise ValueError(f"Fisher statistics need at least one sample per process, got {samples} for {count} processes")
    random = torch.Generator().manual_seed(seed)
    sizes = [min(_BATCH, samples - start) for start in range(0, samples, _BATCH)]
    latents = torch.cat([generator.sample_latents(size, generator=random) for size in sizes])
    batches = latents.tensor_split(count)[rank].split(_BATCH)
    bar = tqdm(batches, desc="statistics", disable=quiet or rank > 0, unit="sample", unit_scale=_BATCH)
    statistics = collect_statistics(FisherEngine(discriminator, output), map(generator, bar))
    if count > 1:
        gathered = [statistics] * count
        distributed.all_gather_object(gathered, statistics)
        statistics = reduce(FisherStatistics.merge, gathered)  # by rank, so that all get the same bits
    return statistics
