"""The peers against hand-computed values, independent implementations and their own packages; what names stand for."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.bundle import load_bundle
from afv_metric.bundles.twin import random_twin
from afv_metric.files import sha256_of
from afv_metric.metric import AFVDistance
from bapps_eval import metrics
from bapps_eval.metrics import Choice, Distance, Metric, check_names, l2, make_metrics, ms_ssim, psnr, ssim

TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny-bundle"
FORMS = ("fisher", "local", "activation")


def _images(count: int = 3, height: int = 40, width: int = 36, seed: int = 0) -> list[Tensor]:
    """A reference and two distortions of it, the second stronger, ``(count, 3, height, width)`` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1
    reference = F.interpolate(blocks, (height, width), mode="bilinear")
    noise = torch.randn(reference.shape, generator=generator)
    return [reference, (reference + 0.1 * noise).clamp(-1, 1), (reference + 0.4 * noise).clamp(-1, 1)]


def _pairwise(distance: Distance, images: list[Tensor]) -> Tensor:
    return torch.stack([distance(images[0], other) for other in images[1:]], 1)


def _oracle_similarities(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of SSIM of one channel of values in [0, 1], by scipy."""
    c1, c2 = 0.01**2, 0.03**2

    def smooth(image: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(image, 1.5, radius=5, mode="mirror"))

    mean0, mean1 = smooth(first), smooth(second)
    variance0, variance1 = smooth(first**2) - mean0**2, smooth(second**2) - mean1**2
    covariance = smooth(first * second) - mean0 * mean1
    luminance = (2 * mean0 * mean1 + c1) / (mean0**2 + mean1**2 + c1)
    return luminance, (2 * covariance + c2) / (variance0 + variance1 + c2)


def _oracle_ssim(first: np.ndarray, second: np.ndarray) -> float:
    luminance, structure = _oracle_similarities(first, second)
    return float((luminance * structure).mean())


def _oracle_ms_ssim(first: np.ndarray, second: np.ndarray, exponents: list[float], border: int = 5) -> float:
    """MS-SSIM of one channel; of all scales but the coarsest a border is left out of the mean."""
    product = 1.0
    for index, exponent in enumerate(exponents):
        luminance, structure = _oracle_similarities(first, second)
        inner = structure[border : -border or None, border : -border or None]
        mean = (luminance * structure if index == len(exponents) - 1 else inner).mean()
        product *= max(mean, 0) ** (exponent / sum(exponents))
        first, second = (_halve(image) for image in (first, second))
    return product


def _halve(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def test_l2_by_hand() -> None:
    first = torch.zeros(2, 3, 4, 4)
    second = first.clone()
    second[1, 0, 0, 0] = 2
    assert l2(first, second).tolist() == pytest.approx([0, 4 / 48])


def test_ssim_of_uniform_images_by_hand() -> None:
    first, second = (torch.full((1, 3, 12, 12), value, dtype=torch.float64) for value in (0.5, -0.25))
    expected = (2 * 0.75 * 0.375 + 0.0001) / (0.75**2 + 0.375**2 + 0.0001)
    assert ssim(first, second).tolist() == pytest.approx([1 - expected], abs=1e-5)


def test_ssim_equals_an_independent_one() -> None:
    first, second = torch.rand(2, 2, 3, 21, 17, dtype=torch.float64) * 2 - 1
    second = 0.7 * first + 0.3 * second
    values = [(image.numpy() + 1) / 2 for image in (first, second)]
    expected = [
        1 - np.mean([_oracle_ssim(a, b) for a, b in zip(*pair, strict=True)]) for pair in zip(*values, strict=True)
    ]
    assert ssim(first, second).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(first.float(), second.float()).tolist() == pytest.approx(expected, abs=1e-5)


def test_psnr_by_hand() -> None:
    # A tenth and a hundredth of the range.
    first = torch.zeros(3, 3, 4, 4)
    second = first + torch.tensor([0.2, 0.02, 0])[:, None, None, None]
    assert psnr(first, second).tolist() == pytest.approx([-20, -40, -200])


@pytest.mark.parametrize(
    ("size", "scales"), [((180, 176), 5), ((176, 159), 4), ((64, 64), 3), ((45, 70), 3), ((43, 44), 2), ((21, 21), 2)]
)
def test_ms_ssim_equals_an_independent_one(size: tuple[int, int], scales: int) -> None:
    first, second, _ = (image.double() for image in _images(1, *size))
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales]
    channels = list(zip(*((image[0].numpy() + 1) / 2 for image in (first, second)), strict=True))
    expected = 1 - np.mean([_oracle_ms_ssim(a, b, exponents) for a, b in channels])
    assert ms_ssim(first, second).item() == pytest.approx(expected, abs=1e-6)
    assert ms_ssim(first.float(), second.float()).item() == pytest.approx(expected, abs=1e-5)
    # With the border in the means, as in the version of 0.1 and most others, it is hardly another number.
    whole = 1 - np.mean([_oracle_ms_ssim(a, b, exponents, border=0) for a, b in channels])
    assert ms_ssim(first, second).item() == pytest.approx(whole, abs=0.02)


def test_ms_ssim_of_opposite_structure_is_at_most_one() -> None:
    reference = _images(1, 64, 64)[0]
    assert ms_ssim(reference, -reference).item() == 1


@pytest.mark.parametrize("metric", [l2, ssim, ms_ssim])
def test_peers_are_zero_for_identical_images_and_symmetric(metric: Distance) -> None:
    first, second = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    assert metric(first, first).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (metric(first, second) > 0).all()
    assert torch.allclose(metric(first, second), metric(second, first))


@pytest.mark.parametrize("metric", [l2, psnr, ssim, ms_ssim])
def test_peers_do_not_depend_on_the_batch(metric: Distance) -> None:
    first, second = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    one_by_one = [metric(a[None], b[None]) for a, b in zip(first, second, strict=True)]
    assert torch.allclose(metric(first, second), torch.cat(one_by_one))


def test_metrics_are_made_in_order_and_once() -> None:
    assert [metric.name for metric in make_metrics(["ssim", "l2", "ssim"], Choice())] == ["ssim", "l2"]


@pytest.mark.parametrize("name", ["l2", "psnr", "ssim", "ms-ssim", "afv", "d-pool"])
def test_metrics_order_two_distortions(name: str) -> None:
    (metric,) = make_metrics([name], Choice([str(TINY_BUNDLE)]))
    distances = metric.distances(_images())
    assert distances.shape == (3, 2)
    assert (distances[:, 0] < distances[:, 1]).all()
    assert metric.distances(_images()[:2]).shape == (3, 1)


def test_images_are_described_once() -> None:
    described: list[int] = []

    def describe(images: Any) -> list[Tensor]:
        described.append(len(images))
        return [image.mean((2, 3)) for image in images]

    metric = Metric("means", lambda first, second: (first - second).abs().sum(1), describe=describe)
    images = [torch.full((2, 3, 8, 8), value) for value in (0.0, 0.5, 1.0)]
    assert metric.distances(images).tolist() == [[1.5, 3], [1.5, 3]]
    assert described == [3]


def test_large_batches_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def distance(first: Tensor, second: Tensor) -> Tensor:
        sizes.append(len(first))
        return l2(first, second)

    monkeypatch.setattr(metrics, "_PIXELS", 200)
    images = _images(7, 8, 8)
    distances = Metric("l2", distance).distances(images)
    assert sizes == [3, 3, 3, 3, 1, 1]
    assert torch.equal(distances, _pairwise(l2, images))


def test_metrics_run_in_inference_mode() -> None:
    def distance(first: Tensor, second: Tensor) -> Tensor:
        return torch.full((len(first),), float(torch.is_inference_mode_enabled()))

    assert Metric("mode", distance).distances(_images(2)).tolist() == [[1, 1], [1, 1]]


def test_a_metric_gives_a_distance_a_pair() -> None:
    metric = Metric("summed", lambda first, second: (first - second).sum())
    with pytest.raises(ValueError, match=r"summed gave \(\) for 3 pairs of images"):
        metric.distances(_images())


def test_a_metric_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match=r"ssim failed on images of 5x40: .*[Pp]adding"):
        make_metrics(["ssim"], Choice())[0].distances(_images(2, 5, 40))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(64, 64), (45, 38)], ids=["whole", "padded"])
def test_afv_gives_the_distance_of_the_library(form: str, size: tuple[int, int]) -> None:
    images = _images(2, *size)
    (metric,) = make_metrics([f"afv:{form}"], Choice([str(TINY_BUNDLE)]))
    expected = _pairwise(AFVDistance(TINY_BUNDLE, form=form), images)  # type: ignore[arg-type]
    assert metric.distances(images).numpy() == pytest.approx(expected.numpy(), rel=2e-5)
    assert metric.distances([images[0], images[0]]).tolist() == [[0], [0]]


def test_afv_is_made_for_every_bundle_and_form(tmp_path: Path) -> None:
    shutil.copytree(TINY_BUNDLE, tmp_path / "tiny")
    config = tmp_path / "tiny/config.json"
    config.write_text(config.read_text() + " ")
    choice = Choice([str(TINY_BUNDLE), str(tmp_path / "tiny")])
    made = make_metrics(["l2", "afv:local", "afv:fisher", "d-pool"], choice)
    hashes = [sha256_of(TINY_BUNDLE / "config.json"), sha256_of(config)]
    assert [metric.bundle_hash for metric in made] == [None, *hashes, *hashes, *hashes]
    assert [metric.form for metric in made] == [None, "local", "local", "fisher", "fisher", None, None]
    names = [f"{kind}@{digest[:8]}" for kind in _TINY_NAMES for digest in hashes]
    assert [metric.name for metric in made[1:]] == names


_TINY_NAMES = ("afv/tiny-bundle/local", "afv/tiny-bundle/fisher", "d-pool/tiny-bundle")


def test_afv_without_a_form_has_that_of_the_bundle() -> None:
    (metric,) = make_metrics(["afv"], Choice([str(TINY_BUNDLE)]))
    assert metric.form == load_bundle(TINY_BUNDLE).form


def test_afv_random_is_the_bundle_at_its_initialisation() -> None:
    images = _images(2)
    names = ["afv", "afv-random", "afv-random:fisher"]
    trained, untrained, fisher = make_metrics(names, Choice([str(TINY_BUNDLE)]))
    assert untrained.name == f"afv-random/tiny-bundle/{trained.form}"
    assert (untrained.bundle, untrained.bundle_hash) == (trained.bundle, trained.bundle_hash)
    network = random_twin(load_bundle(TINY_BUNDLE, generator=True))
    for metric in (untrained, fisher):
        expected = _pairwise(AFVDistance(network, form=metric.form), images)  # type: ignore[arg-type]
        assert metric.distances(images).numpy() == pytest.approx(expected.numpy(), rel=1e-4)


def test_d_pool_compares_what_the_logit_is_read_off() -> None:
    images = _images(2)
    discriminator = load_bundle(TINY_BUNDLE).discriminator
    seen: list[Tensor] = []
    discriminator.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((2, 3))))
    with torch.no_grad():
        for image in images:
            discriminator.logit(image)
    (metric,) = make_metrics(["d-pool"], Choice([str(TINY_BUNDLE)]))
    expected = [((seen[0] - other) ** 2).sum(1).tolist() for other in seen[1:]]
    assert metric.distances(images).T.tolist() == [pytest.approx(column, rel=1e-4) for column in expected]


def test_d_pool_takes_any_size_from_32() -> None:
    (metric,) = make_metrics(["d-pool"], Choice([str(TINY_BUNDLE)]))
    assert metric.distances(_images(2, 33, 35)).shape == (2, 2)
    with pytest.raises(ValueError, match="smallest side"):
        metric.distances(_images(2, 31, 35))


def test_one_metric_given_twice() -> None:
    with pytest.raises(ValueError, match="given twice: afv/tiny-bundle"):
        make_metrics(["afv"], Choice([str(TINY_BUNDLE)] * 2))
    form = load_bundle(TINY_BUNDLE).form
    with pytest.raises(ValueError, match="given twice: afv/tiny-bundle"):
        make_metrics(["afv", f"afv:{form}"], Choice([str(TINY_BUNDLE)]))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quark", "there are afv, "),
        ("", "there are afv, "),
        ("lpips", "did you mean lpips-alex or lpips-vgg or .*? There are afv, "),
        ("alex", "did you mean lpips-alex or .*? There are afv, "),
        ("sim", "did you mean ssim or .*? There are afv, "),
        ("afv:activations", "did you mean afv:activation or .*? There are afv, "),
        ("l2:", "did you mean .*l2.*? There are afv, "),
        (":l2", "did you mean .*l2.*? There are afv, "),
    ],
)
def test_unknown_names_are_answered_with_near_and_known_ones(name: str, hint: str) -> None:
    message = rf"there is no metric '{name}'; {hint}.*, piq:NAME, .*MODULE:CALL".replace("?", "[?]")
    for ask in (lambda: make_metrics([name], Choice()), lambda: check_names(["l2", name])):
        with pytest.raises(ValueError, match=message):
            ask()


def test_names_are_checked_without_making_anything(module: str) -> None:
    check_names(["afv", "lpips-vgg", "piq:fsim", f"{module}:Scaled"])
    with pytest.raises(ValueError, match="cannot find the metric own_metrics:nothing"):
        check_names(["l2", f"{module}:nothing"])


@pytest.fixture
def untrained_lpips(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, bool], Any]:
    """The networks that the package was asked for, with a random trunk, which takes no download."""
    lpips = pytest.importorskip("lpips")
    original, made = lpips.LPIPS, {}

    def make(net: str, verbose: bool, lpips: bool = True) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made[net, lpips] = original(net=net, lpips=lpips, verbose=verbose, pnet_rand=True)
        return made[net, lpips]

    monkeypatch.setattr(lpips, "LPIPS", make)
    return made


@pytest.mark.parametrize("net", ["alex", "squeeze"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_lpips_gives_the_distance_of_the_package(untrained_lpips: Any, net: str, calibrated: bool) -> None:
    images = _images(4, 64, 64)
    name = f"lpips-{net}" if calibrated else f"lpips-{net}-baseline"
    (metric,) = make_metrics([name], Choice())
    assert metric.name == name
    (network,) = untrained_lpips.values()
    assert list(untrained_lpips) == [(net, calibrated)]
    with torch.no_grad():
        expected = _pairwise(lambda first, second: network(first, second).flatten(), images)
    assert metric.distances(images).numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    passes: list[int] = []
    network.net.register_forward_hook(lambda module, inputs, outputs: passes.append(len(inputs[0])))
    metric.distances(images)
    assert passes == [12]


def test_shift_tolerant_lpips_gives_the_distance_of_the_package() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("IPython", "torchsummary"):
            pytest.importorskip(name)
        package = pytest.importorskip("stlpips_pytorch.stlpips")
        network = package.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    images = _images(2, 64, 64)
    (metric,) = make_metrics(["stlpips-alex"], Choice())
    with torch.no_grad():
        expected = _pairwise(lambda first, second: network(first, second).flatten(), images)
    assert metric.distances(images).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("lpips-alex", "lpips"),
        ("lpips-squeeze-baseline", "lpips"),
        ("stlpips-alex", "stlpips_pytorch.stlpips"),
        ("dists", "piq"),
        ("ssim", "torchmetrics.functional.image"),
        ("ms-ssim", "torchmetrics.functional.image"),
        ("piq:vif_p", "piq"),
        ("torchmetrics:spectral_angle_mapper", "torchmetrics.functional.image"),
    ],
)
def test_a_missing_package_says_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"{name} needs .* pip install ('afv-metric\[peers\]', or [a-z]+|stlpips-pytorch .*)$"
    ):
        make_metrics([name], Choice())


@pytest.mark.parametrize(("name", "package", "attribute"), [("lpips-vgg", "lpips", "LPIPS"), ("dists", "piq", "DISTS")])
def test_missing_weights_say_where_they_belong(
    name: str, package: str, attribute: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Absent(nn.Module):
        def __init__(self, **settings: object) -> None:
            raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{attribute: Absent}))
    with pytest.raises(
        OSError, match=rf"weights of {name} .*no route to host.* {tmp_path}/hub: connect, or set TORCH_H"
    ):
        make_metrics([name], Choice())


def test_dists_gives_the_distance_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    piq = pytest.importorskip("piq")
    torch.manual_seed(0)
    # The trunk of VGG-16 with a few channels only; the first five blocks are those of DISTS.
    layers, channels = [], 3
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            layers += [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU()]
            channels = 4
        layers.append(nn.MaxPool2d(2))
    trunk = SimpleNamespace(features=nn.Sequential(*layers))
    weights = {name: torch.rand(1, 3 + 64 + 128 + 256 + 512 + 512, 1, 1) for name in ("alpha", "beta")}
    monkeypatch.setattr("piq.perceptual.vgg16", lambda **settings: trunk)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *args, **settings: weights)
    made = []

    class Short(piq.DISTS):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.weights = [share[:, : 3 if share.shape[1] == 3 else 4] for share in self.weights]
            made.append(self)

    monkeypatch.setattr(piq, "DISTS", Short)
    (metric,) = make_metrics(["dists"], Choice())
    for size in ((64, 64), (270, 300)):
        images = _images(2, *size)
        expected = _pairwise(made[0], [(image + 1) / 2 for image in images])
        assert metric.distances(images).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize("name", ["ssim", "psnr", "vif_p", "gmsd", "haarpsi", "HaarPSILoss", "MDSILoss"])
def test_piq_by_name_gives_distances(name: str) -> None:
    piq = pytest.importorskip("piq")
    images = _images(2, 64, 64)
    (metric,) = make_metrics([f"piq:{name}"], Choice())
    assert metric.name == f"piq:{name}"
    found = getattr(piq, name)
    function = found(reduction="none") if isinstance(found, type) else lambda x, y: found(x, y, reduction="none")
    reference, *others = ((image + 1) / 2 for image in images)
    expected = torch.stack([function(other, reference).flatten() for other in others], 1)
    distances = metric.distances(images)
    assert torch.allclose(distances.abs(), expected.abs(), atol=1e-6)
    assert (distances[:, 0] < distances[:, 1]).all()


@pytest.mark.parametrize(
    "name",
    [
        "structural_similarity_index_measure",
        "peak_signal_noise_ratio",
        "universal_image_quality_index",
        "error_relative_global_dimensionless_synthesis",
        "spectral_distortion_index",  # which torchmetrics calls better when higher
    ],
)
def test_torchmetrics_by_name_gives_distances_one_by_one(name: str) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    images = _images(2, 64, 64)
    (metric,) = make_metrics([f"torchmetrics:{name}"], Choice())
    ranged = {"data_range": 1.0} if "similarity" in name or "noise" in name else {}
    reference, *others = ((image + 1) / 2 for image in images)
    expected = [
        [abs(float(getattr(functional, name)(other[[row]], reference[[row]], **ranged))) for other in others]
        for row in range(2)
    ]
    distances = metric.distances(images)
    assert distances.abs().tolist() == [pytest.approx(row, rel=1e-4) for row in expected]
    assert (distances[:, 0] < distances[:, 1]).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("piq:nothing", "piq has no metric 'nothing'"),
        ("piq:perceptual", "piq has no metric 'perceptual'"),
        ("piq:total_variation", "does not compare two batches"),
        ("piq:FID", "does not compare two batches"),
        ("torchmetrics:image_gradients", "does not compare two batches"),
        ("torchmetrics:quality_with_no_reference", "does not compare two batches"),
    ],
)
def test_what_is_no_metric_is_refused(name: str, message: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError, match=message):
        make_metrics([name], Choice())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with metrics of all kinds."""
    (tmp_path / "own_metrics.py").write_text(
        """
import torch

def largest(first, second):
    return (first - second).abs().amax((1, 2, 3))

class Scaled(torch.nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, first, second):
        assert not self.training and not self.factor.requires_grad
        return self.factor * largest(first, second)[:, None, None, None]

class Plain:
    def __call__(self, first, second):
        return largest(first, second)

def factory(factor=3.0):
    return Scaled(factor)

made = Scaled(4.0)
number = 3

def float_of(first, second):
    return 1.0

def map_of(first, second):
    return (first - second).abs()

class Namespace:
    largest = staticmethod(largest)

def broken(first, second):
    return {}["no such key"]

class Unmakeable:
    def __init__(self):
        raise RuntimeError("no weights here")
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return "own_metrics"


@pytest.mark.parametrize(
    ("attribute", "factor"),
    [("largest", 1), ("Scaled", 2), ("Plain", 1), ("factory", 3), ("made", 4), ("Namespace.largest", 1)],
)
def test_own_callables(module: str, attribute: str, factor: float) -> None:
    images = _images()
    (metric,) = make_metrics([f"{module}:{attribute}"], Choice())
    assert metric.name == f"{module}:{attribute}"
    expected = factor * _pairwise(lambda first, second: (first - second).abs().amax((1, 2, 3)), images)
    assert torch.allclose(metric.distances(images), expected)


def test_own_callables_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metric_beside.py").write_text(
        "def measure(first, second): return (first - second).abs().mean((1, 2, 3))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    check_names(["metric_beside:measure"])


@pytest.mark.parametrize(
    ("attribute", "message"), [("nothing", "cannot find the metric .*nothing"), ("number", "is no callable but int")]
)
def test_own_callables_that_are_none(module: str, attribute: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_metrics([f"{module}:{attribute}"], Choice())


def test_own_code_that_fails_at_once_is_named(module: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot make the metric own_metrics:Unmakeable: no weights here"):
        make_metrics([f"{module}:Unmakeable"], Choice())
    (tmp_path / "no_python.py").write_text("def (")
    with pytest.raises(ValueError, match="cannot find the metric no_python:metric: .*syntax"):
        check_names(["no_python:metric"])


def test_modules_that_are_missing() -> None:
    with pytest.raises(ValueError, match="cannot find the metric no_such_module:metric: No module named"):
        make_metrics(["no_such_module:metric"], Choice())


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("float_of", r"should give a tensor \(N,\), but gave float"),
        ("map_of", "for 3 pairs"),
        ("broken", "own_metrics:broken failed on images of 40x36: 'no such key'"),
    ],
)
def test_own_callables_that_give_something_else(module: str, attribute: str, message: str) -> None:
    (metric,) = make_metrics([f"{module}:{attribute}"], Choice())
    with pytest.raises(ValueError, match=message):
        metric.distances(_images())
