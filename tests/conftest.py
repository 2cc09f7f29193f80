"""Fixtures: small networks in float64, their statistics, and the tiny bundle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.frozen import FrozenTensors
from afv_metric.fisher.statistics import FisherStatistics, collect_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig

# Time limits would make slow machines fail; speed lives in benchmarks.
settings.register_profile("default", deadline=None, max_examples=12)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist, and the programs that it starts, one thread."""
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


TINY_BUNDLE = Path(__file__).parent / "data" / "tiny-bundle"


def make_discriminator(width: int | tuple[int, ...] = 4, seed: int = 0, **settings: object) -> Discriminator:
    """A baked discriminator in float64; a large gain keeps its logits away from 0."""
    torch.manual_seed(seed)
    config = DiscriminatorConfig(width=width, **{"slope": 0.2, "gain": 8.0, **settings})  # type: ignore[arg-type]
    return Discriminator(config).double().baked()


def make_images(count: int = 3, height: int = 32, width: int = 32, seed: int = 1) -> torch.Tensor:
    """Images (N, 3, H, W) in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def make_statistics(discriminator: Discriminator, output: str = "logit") -> FisherStatistics:
    """Statistics over a few random images."""
    return collect_statistics(FisherEngine(discriminator.baked(), output), [make_images(6, seed=2)])  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return load_bundle(TINY_BUNDLE, generator=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The number of threads decides in which order float32 sums are taken, and so their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def fake_gpu(*modules: torch.nn.Module) -> Iterator[None]:
    """Take modules to a GPU that computes shapes, types and devices, but no numbers; it needs no hardware."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.empty(1, device="cuda")[:1]
        except RuntimeError:
            pytest.skip("here even a GPU that is not real needs a driver: torch 2.6 does")
        for module in (part for whole in modules for part in whole.modules()):
            for frozen in _frozen_tensors(module):
                fakes = {name: torch.empty_like(value, device="cuda") for name, value in frozen._tensors.items()}
                frozen._copies[torch.device("cuda:0"), torch.float32] = fakes
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = torch.empty_like(weight, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cuda")
        yield


def _frozen_tensors(module: torch.nn.Module) -> list[FrozenTensors]:
    """Those of a metric's form, or of an engine."""
    owners = [module, *(getattr(module, name, None) for name in ("_form", "_fisher", "engine"))]
    owners.append(getattr(owners[1], "engine", None))
    return [value for owner in owners if owner for value in vars(owner).values() if isinstance(value, FrozenTensors)]
