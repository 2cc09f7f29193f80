"""The peers against hand-computed values and an independent implementation; measuring a set in one pass."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged_sets import save_grey, save_pairs, save_root
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from afv_metric.bundle import load_bundle
from afv_metric.distance import AFVDistance
from afv_metric.hub import sha256_of
from afv_metric.train.export import random_bundle
from bapps_eval.data import PairSet, read_pairs, read_root
from bapps_eval.metrics import Choice, Distance, Metric, l2, make_metrics, measure, ssim


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """See :func:`save_root`."""
    return save_root(tmp_path / "bapps")


TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny-bundle"


def _oracle_ssim(first: np.ndarray, second: np.ndarray, scale: float) -> float:
    """SSIM of one channel of values with a dynamic range of ``scale``, by scipy."""
    c1, c2 = (0.01 * scale) ** 2, (0.03 * scale) ** 2

    def smooth(image: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(image, 1.5, radius=5, mode="mirror"))

    mean0, mean1 = smooth(first), smooth(second)
    variance0, variance1 = smooth(first**2) - mean0**2, smooth(second**2) - mean1**2
    covariance = smooth(first * second) - mean0 * mean1
    top = (2 * mean0 * mean1 + c1) * (2 * covariance + c2)
    return float((top / ((mean0**2 + mean1**2 + c1) * (variance0 + variance1 + c2))).mean())


def test_l2_by_hand() -> None:
    first = torch.zeros(2, 3, 4, 4)
    second = first.clone()
    second[1, 0, 0, 0] = 2
    assert l2(first, second).tolist() == pytest.approx([0, 4 / 48])


def test_ssim_of_uniform_images_by_hand() -> None:
    first, second = (torch.full((1, 3, 12, 12), value, dtype=torch.float64) for value in (0.5, -0.25))
    expected = (2 * 0.5 * -0.25 + 0.0004) / (0.5**2 + 0.25**2 + 0.0004)
    assert ssim(first, second, signed=True).tolist() == pytest.approx([1 - expected], abs=1e-5)
    expected = (2 * 0.75 * 0.375 + 0.0001) / (0.75**2 + 0.375**2 + 0.0001)
    assert ssim(first, second).tolist() == pytest.approx([1 - expected], abs=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_ssim_equals_an_independent_one(signed: bool) -> None:
    first, second = torch.rand(2, 2, 3, 21, 17, dtype=torch.float64) * 2 - 1
    second = 0.7 * first + 0.3 * second
    values = [image.numpy() if signed else (image.numpy() + 1) / 2 for image in (first, second)]
    expected = [
        1 - np.mean([_oracle_ssim(a, b, 2 if signed else 1) for a, b in zip(*pair, strict=True)])
        for pair in zip(*values, strict=True)
    ]
    assert ssim(first, second, signed=signed).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(first.float(), second.float(), signed=signed).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", [l2, ssim])
def test_peers_are_zero_for_identical_images_and_symmetric(metric: Distance) -> None:
    first, second = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    assert metric(first, first).tolist() == [0, 0, 0]
    assert (metric(first, second) > 0).all()
    assert torch.allclose(metric(first, second), metric(second, first))


@pytest.mark.parametrize("metric", [l2, ssim])
def test_peers_do_not_depend_on_the_batch(metric: Distance) -> None:
    first, second = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    one_by_one = [metric(a[None], b[None]) for a, b in zip(first, second, strict=True)]
    assert torch.allclose(metric(first, second), torch.cat(one_by_one))


def test_metrics_are_made_in_order_and_once() -> None:
    assert [metric.name for metric in make_metrics(["ssim", "l2", "ssim"], Choice())] == ["ssim", "l2"]


def test_afv_is_made_for_every_bundle_and_form(tmp_path: Path) -> None:
    shutil.copytree(TINY_BUNDLE, tmp_path / "tiny")
    config = tmp_path / "tiny/config.json"
    config.write_text(config.read_text() + " ")
    choice = Choice([str(TINY_BUNDLE), str(tmp_path / "tiny")], ["local", "fisher"])
    metrics = make_metrics(["l2", "afv"], choice)
    hashes = [sha256_of(TINY_BUNDLE / "config.json"), sha256_of(config)]
    assert [metric.bundle_hash for metric in metrics] == [None, hashes[0], hashes[0], hashes[1], hashes[1]]
    assert [metric.form for metric in metrics] == [None, "fisher", "local", "fisher", "local"]
    expected = [f"afv/tiny-bundle/{form}@{digest[:8]}" for digest in hashes for form in ("fisher", "local")]
    assert [metric.name for metric in metrics[1:]] == expected


def test_afv_gives_the_distance_of_the_library() -> None:
    first, second = torch.rand(2, 2, 3, 32, 32)
    (metric,) = make_metrics(["afv"], Choice([str(TINY_BUNDLE)], ["local"]))
    # Bright images alone: the library would warn of a range that is known here.
    distances = metric.distance(first, second)
    with pytest.warns(UserWarning, match="none negative"):
        assert torch.equal(distances, AFVDistance(TINY_BUNDLE, form="local")(first, second))


def test_afv_random_is_the_bundle_at_its_initialisation() -> None:
    first, second = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    trained, untrained = make_metrics(["afv", "afv-random"], Choice([str(TINY_BUNDLE)]))
    assert untrained.name == f"afv-random/tiny-bundle/{trained.form}"
    assert (untrained.bundle, untrained.bundle_hash) == (trained.bundle, trained.bundle_hash)
    expected = AFVDistance(random_bundle(load_bundle(TINY_BUNDLE, generator=True)))(first, second)
    assert torch.allclose(untrained.distance(first, second), expected)


def test_one_metric_given_twice() -> None:
    with pytest.raises(ValueError, match="given twice: afv/tiny-bundle"):
        make_metrics(["afv"], Choice([str(TINY_BUNDLE)] * 2))


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_missing_lpips_says_what_to_install(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=rf"lpips-{net} .*pip install"):
        make_metrics([f"lpips-{net}"], Choice())


def test_lpips_is_made_quietly_and_gives_a_number_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(nn.Module):
        """As the real one: warns when made, returns (N, 1, 1, 1)."""

        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("squeeze", False)
            warnings.warn("deprecated", stacklevel=1)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            assert not self.training
            return (first - second).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    (metric,) = make_metrics(["lpips-squeeze"], Choice())
    assert metric.name == "lpips-squeeze"
    assert metric.distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)).tolist() == [1, 1]


def test_measure_triplets(root: Path) -> None:
    (distances,) = measure([Metric("l2", l2)], read_root(root)[0])
    assert distances == pytest.approx((np.array([[50, 20], [10, 10]]) / 127.5) ** 2)


def test_measure_keeps_rows_of_different_sizes_apart(tmp_path: Path) -> None:
    images = []
    for index in range(6):
        side = (8, 12, 16)[index % 3]
        pair = (tmp_path / f"{index}a.png", tmp_path / f"{index}b.png")
        save_grey(pair[0], 0, side, side)
        save_grey(pair[1], 10 * index, side, 8)
        save_grey(pair[1], 10 * index, side, side)
        images.append(pair)
    judged = PairSet("sizes", tmp_path, images, np.arange(6.0), np.zeros(6, int))
    (distances,) = measure([Metric("l2", l2)], judged, batch_size=1)
    assert distances[:, 0] == pytest.approx((np.arange(6) * 10 / 127.5) ** 2)


def test_measure_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))
    metrics = [Metric("l2", l2), Metric("ssim", ssim)]
    told: list[int] = []
    small, large = measure(metrics, judged, batch_size=3, advance=told.append), measure(metrics, judged)
    assert told == [3, 3, 1]
    assert len(small) == 2
    assert np.allclose(small, large, rtol=0, atol=1e-7)


def test_measure_runs_in_inference_mode(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return torch.full((len(first),), float(torch.is_inference_mode_enabled()))

    assert measure([Metric("mode", distance)], judged)[0].tolist() == [[1], [1]]


def test_measure_names_what_is_not_finite(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    metric = Metric("broken", lambda first, second: torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"broken is not finite on .*black.png and .*grey2.png"):
        measure([metric], judged)


def test_measure_wants_a_distance_a_pair(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    metric = Metric("summed", lambda first, second: (first - second).sum())
    with pytest.raises(ValueError, match=r"summed gave \(\) for 2 pairs of list"):
        measure([metric], judged)
