"""The distances that can be scored: ours and its peers."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.bundles.twin import random_twin
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS
from afv_metric.images import Reader
from afv_metric.images.tensors import pad_to_multiple, to_network_range
from afv_metric.metric import AFVDistance
from bapps_eval.data import refuse_repeated

__all__ = [
    "METRICS", "NAMES", "Choice", "Distance", "Metric", "check_names", "l2", "make_metrics", "ms_ssim", "psnr",
    "ssim",
]  # fmt: skip

Distance = Callable[[Any, Any], Tensor]
"""Compares the descriptions of two batches of N images, the images themselves by default; gives ``(N,)``."""

_TORCHMETRICS = "torchmetrics.functional.image"
_PIXELS = 2**18  # of the first images of the items that are worked on at a time, which bounds memory


@dataclass(frozen=True)
class Metric:
    """A distance in two steps, and its provenance.

    Attributes:
        name: Heading of its row.
        distance: Compares the descriptions of two batches.
        form: Form of the AFV distance; None for others.
        bundle: Name of the AFV bundle, for ``afv-random`` of the one that it is the initialisation of.
        bundle_hash: sha256 that identifies that bundle.
        describe: Describes batches ``(N, 3, H, W)`` in [-1, 1] of one shape, by the features of a network for example;
            every image is described once, however often it is compared.
        one_at_a_time: Whether batches must not be compared in several threads at once, as with code of others.

    Example:
        >>> images = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)]
        >>> Metric("l2", l2).distances(images)
        tensor([[0., 1.],
                [0., 1.]])
    """

    name: str
    distance: Distance
    form: str | None = None
    bundle: str | None = None
    bundle_hash: str | None = None
    describe: Callable[[Sequence[Tensor]], Sequence[Any]] = list
    one_at_a_time: bool = False

    @property
    def reader(self) -> Reader:
        """Rules to read images by: channels and range of the bundle."""
        return Reader(getattr(self.distance, "data_range", None), getattr(self.distance, "channels", 3))

    @torch.inference_mode()
    def distances(self, images: Sequence[Tensor]) -> Tensor:
        """Compare the first image of N items with the others: K tensors ``(N, 3, H, W)`` in [-1, 1] to ``(N, K - 1)``.

        Raises:
            ValueError: If the metric cannot compare images of this size, or does not give a number for each pair.
        """
        if self.one_at_a_time:  # code of others may count on the usual layout
            images = [column.contiguous() for column in images]
        height, width = images[0].shape[2:]
        count = max(1, _PIXELS // (height * width))
        try:
            parts = [self._compare(part) for part in zip(*(column.split(count) for column in images), strict=True)]
        except ValueError:
            raise
        except Exception as error:  # code of others may raise anything
            raise ValueError(f"{self.name} failed on images of {height}x{width}: {_first_line(error)}") from error
        return torch.cat(parts)

    def _compare(self, images: Sequence[Tensor]) -> Tensor:
        first, *others = self.describe(images)
        columns = [self.distance(first, other) for other in others]
        for values in columns:
            if values.shape != images[0].shape[:1]:
                raise ValueError(f"{self.name} gave {tuple(values.shape)} for {len(images[0])} pairs of images")
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class Choice:
    """The bundles to make metrics of, by name, folder or hub id; the default bundle if there are none."""

    weights: Sequence[str] = ()
    device: str = "cpu"

    @cached_property
    def bundles(self) -> list[Bundle]:
        """The bundles, read once."""
        return [load_bundle(weights, generator=True) for weights in self.weights or [DEFAULT_BUNDLE]]

    @cached_property
    def random_bundles(self) -> list[Bundle]:
        """The bundles at their random initialisation, whose statistics take some seconds, made once."""
        return list(map(random_twin, self.bundles))


def l2(img0: Tensor, img1: Tensor) -> Tensor:
    """Mean squared difference of images ``(N, 3, H, W)`` in [-1, 1]: ``(N,)`` in [0, 4].

    Example:
        >>> l2(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5))
        tensor([0.2500])
    """
    return (img0 - img1).square().mean((1, 2, 3))


def psnr(img0: Tensor, img1: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, negated, so that more is farther: ``(N,)`` from -200, for equals, to 0.

    It orders pairs as :func:`l2` does and has the same 2AFC, JND and rank correlations; the linear one differs.

    Example:
        >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2))
        tensor([-20.])
    """
    return 10 * (l2(img0, img1) / 4).clamp_min(1e-20).log10()


def ssim(img0: Tensor, img1: Tensor) -> Tensor:
    """One minus the structural similarity of Wang et al. 2004 per colour channel, on values in [0, 1], by torchmetrics.

    SSIM depends on where zero is: values in [0, 1] are the usual convention, and the stronger rival. Images
    ``(N, 3, H, W)`` in [-1, 1] of at least 6x6 give ``(N,)`` in [0, 2], 0 for identical ones.
    """
    measure = _import("ssim", _TORCHMETRICS).structural_similarity_index_measure
    values: Tensor = measure(*map(_to_unit_range, (img0, img1)), data_range=1.0, reduction="none")
    return 1 - values


# The weight of each scale, finest first, in Wang, Simoncelli and Bovik 2003.
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(img0: Tensor, img1: Tensor) -> Tensor:
    """One minus the multi-scale structural similarity of Wang et al. 2003, on values in [0, 1], by torchmetrics.

    The paper has five scales, each half the size of the one before. Images that are too small for them (a side of up to
    160 pixels) are compared at as many of the finest scales as torchmetrics takes, whose weights are scaled to a sum of
    1. The mean over the colour channels is taken of the similarities, not of their factors. Images ``(N, 3, H, W)`` in
    [-1, 1] of at least 11x11 give ``(N,)`` in [0, 1], 0 for identical ones.
    """
    measure = _import("ms-ssim", _TORCHMETRICS).multiscale_structural_similarity_index_measure
    count = max(n for n in range(1, 6) if n == 1 or min(img0.shape[2:]) // (n - 1) ** 2 > 10)
    betas = tuple(weight / sum(_SCALES[:count]) for weight in _SCALES[:count])
    channels = [_to_unit_range(images).flatten(0, 1)[:, None] for images in (img0, img1)]
    values: Tensor = measure(*channels, data_range=1.0, reduction="none", betas=betas)
    return 1 - values.view(-1, img0.shape[1]).mean(1)


def _to_unit_range(images: Tensor) -> Tensor:
    return (images + 1) / 2


_PLAIN: dict[str, Distance] = {"l2": l2, "psnr": psnr, "ssim": ssim, "ms-ssim": ms_ssim}


def _make_plain(name: str, choice: Choice) -> list[Metric]:
    if "ssim" in name:
        _import(name, _TORCHMETRICS)
    return [Metric(name, _PLAIN[name])]


def _make_afv(name: str, choice: Choice) -> list[Metric]:
    """One metric for each bundle; the form is what follows the colon, or else the bundle's."""
    kind, _, form = name.partition(":")
    metrics = []
    networks = choice.random_bundles if kind == "afv-random" else choice.bundles
    for bundle, network in zip(choice.bundles, networks, strict=True):
        used: Any = form or bundle.form
        distance = AFVDistance(network, form=used, check=False)
        metrics.append(Metric(f"{kind}/{bundle.name}/{used}", distance, used, bundle.name, bundle.hash))
    return metrics


def _make_d_pool(name: str, choice: Choice) -> list[Metric]:
    """Squared difference of the discriminator's last map, averaged over positions; the logit is linear in it.

    Without gradients, statistics or levels. The vectors keep their length: at length 1 they agree with people less.
    """

    def describe(engine: FisherEngine, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        joined = to_network_range(torch.cat(list(images)), normalize=False, dtype=images[0].dtype)
        *_, (_, maps) = engine.inputs(pad_to_multiple(joined, engine.stride))
        return maps.mean((2, 3)).chunk(len(images))

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().sum(1)

    return [
        Metric(f"{name}/{of.name}", distance, None, of.name, of.hash, partial(describe, FisherEngine(of.discriminator)))
        for of in choice.bundles
    ]


def _make_lpips(name: str, choice: Choice) -> list[Metric]:
    """A network of the package lpips, or of its shift-tolerant kin, with its own features and weights of the layers."""
    kind, net, *baseline = name.split("-")
    if kind == "stlpips":  # the wheel declares neither of the other two packages
        package = _import(name, "stlpips_pytorch.stlpips", "stlpips-pytorch ipython torchsummary")
        settings: dict[str, Any] = {"variant": "shift_tolerant"}
    else:
        package = _import(name, "lpips")
        settings = {"lpips": not baseline}
    with _explained(name):
        network = package.LPIPS(net=net, verbose=False, **settings)
    # In this layout pooling is ten times as fast on the CPU.
    network = network.eval().requires_grad_(False).to(choice.device, memory_format=torch.channels_last)

    def describe(images: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        joined = torch.cat(list(images)).contiguous(memory_format=torch.channels_last)
        features = network.net(network.scaling_layer(joined))
        features = [maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10) for maps in features]
        return list(zip(*(maps.chunk(len(images)) for maps in features), strict=True))

    def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        layers: list[Tensor] = [(one - other).square() for one, other in zip(first, second, strict=True)]
        if network.lpips:
            layers = [weigh(squares) for weigh, squares in zip(network.lins, layers, strict=True)]
        return torch.stack([layer.sum(1).mean((1, 2)) for layer in layers]).sum(0)

    return [Metric(name, distance, describe=describe)]


def _make_piq(name: str, choice: Choice) -> list[Metric]:
    """``piq:NAME``: a function, such as ``vif_p``, or a class of losses, such as ``HaarPSILoss``; ``dists`` is one."""
    found = _attribute(_import(name, "piq"), "DISTS" if name == "dists" else name.partition(":")[2])
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    with _explained(name):
        compare: Any = found(reduction="none") if is_module else partial(found, data_range=1.0, reduction="none")
    compare = _frozen(compare, choice.device)
    return [_tried(name, lambda reference, distorted: compare(distorted, reference).flatten(), choice.device)]


def _make_torchmetrics(name: str, choice: Choice) -> list[Metric]:
    """``torchmetrics:NAME``: a function of ``torchmetrics.functional.image``, for one pair at a time.

    A batch at once would be another number for some of them, which pool over it.
    """
    found = _attribute(_import(name, _TORCHMETRICS), name.partition(":")[2])
    parameters = inspect.signature(found).parameters
    settings: dict[str, Any] = {"data_range": 1.0} if "data_range" in parameters else {}
    if "normalize" in parameters and parameters["normalize"].default is False:
        settings["normalize"] = True  # images in [0, 1], as for all the others

    def compare(reference: Tensor, distorted: Tensor) -> Tensor:
        pairs = zip(distorted.split(1), reference.split(1), strict=True)
        return torch.stack([found(*pair, **settings).mean() for pair in pairs])

    return [_tried(name, compare, choice.device)]


def _tried(name: str, compare: Distance, device: str) -> Metric:
    """A metric of another package on values in [0, 1], turned so that a noisy copy is farther than the image itself."""

    def measure(img0: Tensor, img1: Tensor) -> Tensor:
        return compare(_to_unit_range(img0).clamp(0, 1), _to_unit_range(img1).clamp(0, 1))

    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1, 256, mode="bilinear")
    noisy = (image + 0.3 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)
    with _explained(name), torch.inference_mode():
        same, apart = (float(measure(image.to(device), other.to(device))) for other in (image, noisy))
    if not same < apart and not same > apart:
        raise ValueError(f"{name} does not separate an image from a noisy copy; write a function: MODULE:CALLABLE")
    sign = 1 if same < apart else -1
    return Metric(name, lambda img0, img1: sign * measure(img0, img1), one_at_a_time=True)


def _find_callable(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # an installed command does not look in the current folder as python -m does
        sys.path.append("")
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # whatever a module does when it is imported
        raise ValueError(f"cannot find the metric {name}: {_first_line(error)}") from error
    if not callable(found):
        raise ValueError(f"the metric {name} is no callable but {type(found).__name__}")
    return cast("Callable[..., Any]", found)


def _make_callable(name: str, choice: Choice) -> list[Metric]:
    """``MODULE:CALLABLE``, see :func:`make_metrics`."""
    found = _find_callable(name)
    try:
        compare = found() if _takes_nothing(found) else found
    except Exception as error:  # whatever it does when it is made
        raise ValueError(f"cannot make the metric {name}: {_first_line(error)}") from error
    compare = _frozen(compare, choice.device)

    def distance(img0: Tensor, img1: Tensor) -> Tensor:
        values = compare(img0, img1)
        if not isinstance(values, Tensor):
            raise ValueError(f"{name} should give a tensor (N,), but gave {type(values).__name__}")
        return values.flatten(1).squeeze(1) if values.ndim > 1 else values

    return [Metric(name, distance, one_at_a_time=True)]


def _frozen(compare: Any, device: str) -> Any:
    """What compares, on the device and without gradients if it is a module."""
    return compare.eval().requires_grad_(False).to(device) if isinstance(compare, nn.Module) else compare


def _takes_nothing(found: Callable[..., Any]) -> bool:
    """Whether something can be called without arguments, which makes it a factory; a module says that it can."""
    if isinstance(found, nn.Module):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        return False
    return True


def _import(name: str, module: str, install: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = install or f"'afv-metric[peers]', or {module.partition('.')[0]}"
        raise ImportError(f"the metric {name} needs another package: pip install {install}") from error


def _attribute(module: Any, wanted: str) -> Any:
    found = getattr(module, wanted, None)
    if not callable(found):
        raise ValueError(f"{module.__name__} has no metric {wanted!r}")
    return found


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Run what a package does, and say what to do when weights are missing."""
    try:
        # The packages call torchvision in a way that it has deprecated; downloads are announced where tables belong.
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise OSError(
            f"the weights of {name} cannot be had ({_first_line(error)}). They are downloaded once, to "
            f"{torch.hub.get_dir()}: connect, or set TORCH_HOME to where they are"
        ) from error
    except Exception as error:  # whatever is raised by what was never meant to compare two images
        raise ValueError(f"{name} does not compare two batches of images: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_Maker = Callable[[str, Choice], list[Metric]]
METRICS: dict[str, _Maker] = {
    **{kind + form: _make_afv for kind in ("afv", "afv-random") for form in ("", *(f":{form}" for form in FORMS))},
    "d-pool": _make_d_pool,
    **dict.fromkeys(_PLAIN, _make_plain),
    **{f"lpips-{net}{end}": _make_lpips for end in ("", "-baseline") for net in ("alex", "vgg", "squeeze")},
    **{f"stlpips-{net}": _make_lpips for net in ("alex", "vgg")},
    "dists": _make_piq,
}
_PACKAGES: dict[str, _Maker] = {"piq": _make_piq, "torchmetrics": _make_torchmetrics}

NAMES = (*METRICS, "piq:NAME", "torchmetrics:NAME", "MODULE:CALLABLE")
"""What :func:`make_metrics` takes."""


def check_names(names: Sequence[str]) -> None:
    """Check names for :func:`make_metrics`, before anything is read or computed."""
    for name in names:
        if _maker(name) is _make_callable:
            _find_callable(name)


def make_metrics(names: Sequence[str], choice: Choice) -> list[Metric]:
    """Make metrics by name, in order, repeated names once; ``afv``, ``afv-random`` and ``d-pool`` give one per bundle.

    Those of bundles of one name have the start of the hash in theirs.

    ``piq:NAME`` and ``torchmetrics:NAME`` are functions of these packages (of piq losses too) with their own settings,
    called with images in [0, 1], the distorted one first. What is larger for an image and itself than for a noisy copy
    is a similarity, and negated.

    ``MODULE:CALLABLE`` is imported, from the current folder too. It takes two tensors ``(N, 3, H, W)`` in [-1, 1], the
    reference first, and gives distances ``(N,)``. A class, or whatever can be called without arguments, is called
    first, and its result is the distance; a module is frozen and moved to the device. All metrics run under
    ``torch.inference_mode()``.

    Raises:
        ImportError: If a metric needs a package that is not installed.
        OSError: If the pretrained weights of one cannot be had.
        ValueError: If a name is unknown, something is no metric, or two metrics are the same.

    Example:
        >>> [metric.name for metric in make_metrics(["psnr", "l2", "afv:local"], Choice())]
        ['psnr', 'l2', 'afv/tiny-imagenet-v8/local']
    """
    metrics = [metric for name in dict.fromkeys(names) for metric in _maker(name)(name, choice)]
    counts = Counter(metric.name for metric in metrics)
    metrics = [
        replace(metric, name=f"{metric.name}@{(metric.bundle_hash or '')[:8]}") if counts[metric.name] > 1 else metric
        for metric in metrics
    ]
    refuse_repeated(metric.name for metric in metrics)
    return metrics


def _maker(name: str) -> _Maker:
    """What makes the metric of a name; a colon that is none of ours belongs to a package or a module."""
    package, _, wanted = name.partition(":")
    if name in METRICS:
        return METRICS[name]
    if package in METRICS or not (package and wanted):
        near = [known for known in METRICS if name and name in known] or difflib.get_close_matches(name, METRICS)
        hint = f"did you mean {' or '.join(near[:3])}? There" if near else "there"
        raise ValueError(f"there is no metric {name!r}; {hint} are {', '.join(NAMES)}")
    return _PACKAGES.get(package, _make_callable)
