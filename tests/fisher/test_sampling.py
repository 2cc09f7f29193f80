"""Fisher statistics over samples: by one process, by two, and as earlier releases took them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import TINY_BUNDLE
from torch import distributed

import afv_metric
from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.sampling import sample_statistics


def flat(bundle_statistics):
    return torch.cat([value.flatten() for layer in bundle_statistics.layers for value in layer])


RANK = """
import sys, torch
from datetime import timedelta
from torch import distributed
from afv_metric.bundles.bundle import load_bundle
from afv_metric.fisher.sampling import sample_statistics
torch.set_num_threads(1)
bundle = load_bundle(sys.argv[1], generator=True)
store = f"file://{sys.argv[2]}"
distributed.init_process_group("gloo", init_method=store, rank=1, world_size=2, timeout=timedelta(seconds=100))
statistics = sample_statistics(bundle.discriminator, bundle.generator, "logit", 231, 7)
torch.save([statistics.count, *(value for layer in statistics.layers for value in layer)], sys.argv[3])
distributed.destroy_process_group()
"""


@pytest.mark.usefixtures("one_thread")
def test_statistics_of_two_processes_are_those_of_one(bundle: Bundle, tmp_path: Path) -> None:
    networks = bundle.discriminator, bundle.generator
    alone = sample_statistics(*networks, "logit", 231, 7)
    arguments = [str(TINY_BUNDLE), str(tmp_path / "store"), str(tmp_path / "other.pt")]
    environment = {"PYTHONPATH": str(Path(afv_metric.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", RANK, *arguments], env=environment) as other:
        distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=2, timeout=timedelta(seconds=100)
        )
        try:
            with pytest.raises(ValueError, match="at least one sample per process, got 1 for 2 processes"):
                sample_statistics(*networks, "logit", 1, 7)
            together = sample_statistics(*networks, "logit", 231, 7)
        finally:
            distributed.destroy_process_group()
        assert other.wait(100) == 0
    count, *values = torch.load(tmp_path / "other.pt")
    assert together.count == count == alone.count == 231
    assert torch.equal(torch.cat([value.flatten() for value in values]), flat(together))
    torch.testing.assert_close(flat(together), flat(alone), rtol=1e-9, atol=1e-15)
    assert not torch.equal(flat(together), flat(sample_statistics(*networks, "logit", 231, 8)))


def test_samples_are_those_of_earlier_releases(bundle: Bundle) -> None:
    statistics = sample_statistics(bundle.discriminator, bundle.generator, "logit", 50, 0)
    torch.testing.assert_close(flat(statistics).float(), flat(bundle.statistics), rtol=1e-3, atol=1e-9)
