"""Whether a bundle is what it claims to be: whole, computing what it did where it was made, and truly whitened."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from afv_metric.bundles.bundle import FILES, Bundle, BundleError, load_bundle
from afv_metric.bundles.golden import GOLDEN_NAME, golden_distances, golden_pairs
from afv_metric.bundles.resolve import find_bundle
from afv_metric.files import sha256_of
from afv_metric.fisher.forms import FORMS, FormName
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.fisher.statistics import FisherStatistics, inverse_root, inverse_root_matrix
from afv_metric.metric import AFVDistance

__all__ = ["Check", "Report", "validate_bundle", "whitened_lengths"]

_CARD = "README.md"
_GOLDEN_TOLERANCE = 1e-5  # relative; float64 on another machine stays well below, another network does not
_SYMMETRY_TOLERANCE = 1e-4  # relative, of float32
_IDENTITY_TOLERANCE = 1e-3  # of an image to itself, as a share of the smallest distance of two samples
_EMBEDDING_TOLERANCE = 1e-3  # relative, of float32, where equal parts of two images cancel
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_FEWEST = 100  # samples that say something about a variance
_SPREAD = 1e-3  # smallest standard deviation over samples of a generator that has not collapsed, of images in [-1, 1]
_Outcome = tuple[bool | None, str]  # of a check, as in Check
_Measure = Callable[[FisherStatistics, FisherStatistics, float], dict[str, float]]


@dataclass(frozen=True)
class Check:
    """One check of a bundle; ``passed`` is None if it could not be made, ``detail`` what was measured or is wrong."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Report:
    """What the validation of a bundle found; the hash of one that does not load is empty.

    Example:
        >>> print(Report("mine", "", (Check("files", False, "config.json is missing"),)))
        mine: FAILED 1 of 1 checks
          files  FAILED  config.json is missing
    """

    bundle: str
    hash: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        """A table with one line per check."""
        failed = sum(check.passed is False for check in self.checks)
        outcome = f"FAILED {failed} of {len(self.checks)} checks" if failed else "passed"
        width = max(len(check.name) for check in self.checks)
        words = {True: "passed", False: "FAILED", None: "left out"}
        rows = [f"  {check.name:{width}}  {words[check.passed]:8}  {check.detail}" for check in self.checks]
        return "\n".join([f"{self.bundle} {self.hash[:12]}".rstrip() + f": {outcome}", *rows])


def validate_bundle(
    weights: str | os.PathLike[str], *, samples: int = 1_000, seed: int | None = None, quiet: bool = True
) -> Report:
    """Check a bundle from its files to its distances.

    The checks: all files are there and match their hashes, shapes and names; the card speaks of these files; distances
    of fixed images are what they were when the bundle was made; the generator gives images; on fresh samples of it the
    whitened scores have variance 1, and the whitened inputs and deltas a mean squared length of 1; the distance of
    every form is 0 for equal images, the same by embeddings, symmetric, positive and finite.

    The weights are as for :func:`~afv_metric.bundles.bundle.load_bundle`; the seed of the fresh samples is one above
    that of the statistics if None.

    Raises:
        HubError: If a bundle cannot be had from the hub.
        ValueError: If ``weights`` is neither a name, a folder nor a hub id, or there is no sample.
    """
    if samples < 1:
        raise ValueError(f"validation needs at least one sample, got {samples}")
    try:
        bundle = load_bundle(weights, generator=True)
        folder = find_bundle(weights, FILES)
    except BundleError as error:
        return Report(str(weights), "", (Check("files", False, str(error)),))
    generator = bundle.generator
    assert generator is not None
    seed = int(bundle.sampling.get("seed", 0)) + 1 if seed is None else seed
    with torch.no_grad():
        images = generator(generator.sample_latents(8, generator=torch.Generator().manual_seed(seed)))
    fresh = cache(
        partial(sample_statistics, bundle.discriminator, generator, bundle.output, samples, seed, quiet=quiet)
    )
    source = bundle.sampling.get("source", "generator")
    unfit = ""
    if source != "generator":
        unfit = f"the statistics are of {source!r}, not of the generator"
    elif min(samples, bundle.statistics.count) < _FEWEST:
        unfit = f"{samples} fresh samples against statistics of {bundle.statistics.count}; {_FEWEST} of both are needed"

    def whitening(measure: _Measure) -> Callable[[], _Outcome]:
        return lambda: (None, unfit) if unfit else _check_whitening(bundle, fresh(), measure)

    sizes = [f"{file} {(folder / file).stat().st_size:,} bytes" for file in FILES]
    checks: dict[str, Callable[[], _Outcome]] = {
        "files": lambda: (True, "hashes, names, shapes, finite: " + ", ".join(sizes)),
        "card": partial(_check_card, bundle, folder),
        **{f"golden {form}": partial(_check_golden, bundle, form) for form in FORMS},
        "generator": partial(_check_images, images),
        "whitened scores": whitening(_whitened_scores),
        "whitened inputs": whitening(partial(whitened_lengths, "input_factor")),
        "whitened deltas": whitening(partial(whitened_lengths, "delta_factor")),
        **{f"distance {form}": partial(_check_distance, bundle, form, images) for form in FORMS},
    }
    return Report(bundle.name, bundle.hash, tuple(Check(name, *_outcome(check)) for name, check in checks.items()))


def _outcome(check: Callable[[], _Outcome]) -> _Outcome:
    try:
        return check()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        return False, f"{type(error).__name__}: {error}"


def pictures_of(card: str) -> list[str]:
    """Files of the pictures that a model card shows from its own folder."""
    return re.findall(r"!\[[^]]*\]\(([^):]+)\)", card)


def _check_card(bundle: Bundle, folder: Path) -> _Outcome:
    if not bundle.card.strip():
        return False, f"there is no {_CARD}"
    recorded = json.dumps([dict(bundle.training), dict(bundle.sampling)])  # its data, and the bundles it was made from
    own = {bundle.hash, *_HASH.findall(recorded), *(sha256_of(folder / file) for file in FILES)}
    foreign = set(_HASH.findall(bundle.card)) - own
    if foreign:
        return False, f"{_CARD} names a sha256 that is not of this bundle, {foreign.pop()}: write the card again"
    images = pictures_of(bundle.card)
    missing = [image for image in images if not (folder / image).is_file()]
    if missing:
        return False, f"{_CARD} shows {', '.join(missing)}, which the folder does not hold"
    return True, f"{len(bundle.card):,} characters, {len(images)} image{'' if len(images) == 1 else 's'}"


def _check_golden(bundle: Bundle, form: FormName) -> _Outcome:
    if not bundle.golden:
        return None, "the bundle records no golden distances; export it again to have some"
    if bundle.golden.get("pairs") != GOLDEN_NAME:
        return None, f"the golden distances are of other images, {bundle.golden.get('pairs')!r}, than {GOLDEN_NAME!r}"
    expected = torch.tensor(bundle.golden["distances"][form], dtype=torch.float64)
    found = torch.tensor(golden_distances(bundle, [form])[form], dtype=torch.float64)
    error = float(((found - expected).abs() / expected.abs()).max())
    text = f"largest relative error {error:.1e}, at most {_GOLDEN_TOLERANCE:g}"
    if not error <= _GOLDEN_TOLERANCE:
        return False, f"{text}: {_rounded(found)} where {_rounded(expected)} was recorded"
    return True, text


def _check_images(images: Tensor) -> _Outcome:
    largest, spread = float(images.abs().max()), float(images.std(0).mean())
    text = f"largest value {largest:.3f}, standard deviation over samples {spread:.3f}"
    if not largest <= 1:
        return False, f"{text}; images should be in [-1, 1]"
    if not spread >= _SPREAD:
        return False, f"{text}, at least {_SPREAD:g} expected: all samples are nearly the same image"
    return True, text


def _check_whitening(bundle: Bundle, fresh: FisherStatistics, measure: _Measure) -> _Outcome:
    ratios = measure(bundle.statistics, fresh, bundle.epsilon)
    if not ratios:
        return None, "all scores are constant"
    # Over n samples a layer's ratio has a standard deviation of about n^-1/2: its scores are far from independent.
    bound = 1 + 5 * (1 / fresh.count + 1 / bundle.statistics.count) ** 0.5
    worst = max(ratios, key=lambda name: _factor(ratios[name]))
    mean = sum(ratios.values()) / len(ratios)
    return _factor(ratios[worst]) <= bound, (
        f"mean {mean:.3f}, farthest from 1 {ratios[worst]:.3f} ({worst}) over {fresh.count:,} fresh samples, "
        f"{1 / bound:.2f} to {bound:.2f} allowed"
    )


def _factor(ratio: float) -> float:
    """How many times a ratio is away from 1, up or down; one that is not positive is infinitely far."""
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def _whitened_scores(stored: FisherStatistics, fresh: FisherStatistics, epsilon: float) -> dict[str, float]:
    """Mean square of each layer's whitened, centred scores: of parameters above the floor, whose part is taken out."""
    ratios = {}
    for index, (was, now) in enumerate(zip(stored.layers, fresh.layers, strict=True)):
        for kind in ("weight", "bias"):
            mean, variance = (getattr(was, f"{kind}_{moment}").double() for moment in ("mean", "variance"))
            square = getattr(now, f"{kind}_variance") + (getattr(now, f"{kind}_mean") - mean).square()
            above = variance > epsilon * variance.mean()
            if above.any():
                whitening = inverse_root(variance, epsilon)[above].square()
                ratios[f"{kind} of layer {index}"] = _ratio(square[above] * whitening, variance[above] * whitening)
    return ratios


def whitened_lengths(kind: str, stored: FisherStatistics, fresh: FisherStatistics, epsilon: float) -> dict[str, float]:
    """Mean squared length of whitened vectors, as a share of what the floor leaves of it: 1 where the whitening fits.

    The kind is ``"input_factor"`` or ``"delta_factor"``; ``stored`` whitens what ``fresh`` is of, layer by layer.
    """
    ratios = {}
    for index, (was, now) in enumerate(zip(stored.layers, fresh.layers, strict=True)):
        factor = getattr(was, kind).double()
        if factor.trace() > 0:
            whitening = inverse_root_matrix(factor, epsilon)
            whitened = [(whitening @ moment @ whitening).diagonal() for moment in (getattr(now, kind), factor)]
            ratios[f"layer {index}"] = _ratio(*whitened)
    return ratios


def _ratio(first: Tensor, second: Tensor) -> float:
    return float(first.mean() / second.mean())


def _check_distance(bundle: Bundle, form: FormName, images: Tensor) -> _Outcome:
    # Images of the generator are in its range by construction, and may all be dark.
    metric = AFVDistance(replace(bundle, generator=None), form=form, check=False)
    first, second = images, images.roll(1, 0)
    with torch.no_grad():
        there, back = metric(first, second), metric(second, first)
        # Not metric(first, first), which knows equal images without comparing anything.
        table = metric.distance_between(metric.embed(images))
        apart = torch.cat([there, metric(*golden_pairs(bundle.channels))])
    identity, embedded = float(table.diagonal().abs().max()), table.diagonal(-1)
    asymmetry = float(((there - back).abs() / there).max())
    text = f"of samples {float(there.min()):.3g} to {float(there.max()):.3g}; "
    if not identity <= _IDENTITY_TOLERANCE * float(there.min()):
        return False, f"{text}that of an image to itself is {identity:.3g}, not 0"
    if not torch.allclose(embedded, there[1:], rtol=_EMBEDDING_TOLERANCE):
        return False, f"{text}embeddings of the same images give {float(embedded.min()):.3g} and more"
    if not apart.isfinite().all():
        return False, f"{text}it is not finite for all pairs"
    if not (apart > 0).all():
        return False, f"{text}it is not positive for all pairs of different images"
    if not asymmetry <= _SYMMETRY_TOLERANCE:
        return False, f"{text}exchanged images differ by {asymmetry:.1e}, relative"
    return True, f"{text}identity {identity:.0e}, asymmetry {asymmetry:.0e}"


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]
