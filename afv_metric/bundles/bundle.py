"""The bundle: a discriminator and its Fisher statistics in a folder, checked strictly when it is read.

    config.json            what it is: shapes, output, default form, levels, provenance, licence, golden numbers, hashes
    model.safetensors      plain weights of the discriminator, and the statistics
    generator.safetensors  the generator that the statistics were sampled from
    README.md              the model card
    scale.json             what distances amount to, if it was calibrated: see afv_metric.scale

Everything is safetensors and JSON; no pickle is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afv_metric.bundles.resolve import BundleError, find_bundle
from afv_metric.bundles.tensors import read_tensors, write_tensors
from afv_metric.files import atomic_update, finish_update, locked, real_path, reason_of, sha256_of
from afv_metric.fisher.engine import Output
from afv_metric.fisher.forms import FORMS, FormName, Term
from afv_metric.fisher.statistics import FisherStatistics, LayerStatistics
from afv_metric.images.formats import DataRange, check_data_range
from afv_metric.networks import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, for_channels

__all__ = [
    "FILES", "SCHEMA_VERSION", "Bundle", "BundleError", "load_bundle", "reserve_folder", "save_bundle",
    "training_stages",
]  # fmt: skip

SCHEMA_VERSION = 3
FILES = _CONFIG, _MODEL, _GENERATOR = "config.json", "model.safetensors", "generator.safetensors"
_CARD = "README.md"
_PLAIN = ("name", "output", "form", "pooling", "epsilon", "training", "licence")  # which JSON holds as they are


@dataclass(frozen=True, eq=False)
class Bundle:
    """A discriminator, its Fisher statistics, and where both come from.

    Attributes:
        name: Short name.
        discriminator: Baked discriminator.
        generator: Generator whose samples the statistics describe, in evaluation mode; None if it was not loaded.
        statistics: Fisher statistics.
        output: What the Fisher score is the gradient of: the ``"logit"``, or its ``"sigmoid"`` where the network was
            trained with one.
        form: Default form of the distance.
        levels: Weight of each level of the image pyramid, finest first; level k is the image at 1 / 2^k of its size.
        blocks: Residual blocks whose layers count in the form ``local``, from 0 on; all layers, the head too, if None.
        terms: Terms of the form ``activation``; if None, the directions of the layers of ``blocks`` at all ``levels``.
        pooling: Exponent of their pooling over positions: 1 is the mean, 2 the root mean square, and the larger it is,
            the more the places count where two images differ most.
        epsilon: Relative floor of the whitening, see :func:`~afv_metric.fisher.statistics.inverse_root`.
        data_range: Values of the images' files that are black and white, where these were declared.
        sampling: Provenance of the statistics: source, seed, mode of the generator.
        training: Provenance of the weights: recipe, data, iterations, hours.
        licence: Licence of the weights and what is known of the data's.
        golden: Distances of fixed images in every form, by which a copy is known to compute what the original did;
            empty for bundles without.
        card: The model card, Markdown.
        hash: sha256 of ``config.json``, which holds the hashes of all tensors; empty until saved.
    """

    name: str
    discriminator: Discriminator
    generator: Generator | None
    statistics: FisherStatistics
    output: Output = "logit"
    form: FormName = "activation"
    levels: tuple[float, ...] = (1.0,)
    blocks: tuple[int, ...] | None = None
    terms: tuple[Term, ...] | None = None
    pooling: float = 2.0
    epsilon: float = 0.03
    data_range: DataRange | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: Mapping[str, str] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise BundleError(f"the default form must be one of {', '.join(FORMS)}; got {self.form!r}")
        if self.output not in ("logit", "sigmoid"):
            raise BundleError(f'the output must be "logit" or "sigmoid", got {self.output!r}')
        if not self.levels or min(self.levels) < 0 or not sum(self.levels) > 0:
            raise BundleError(f"levels must be non-negative weights with a positive sum, got {self.levels}")
        known = range(len(self.discriminator.residual_blocks()))
        if self.blocks is not None and not (self.blocks and set(self.blocks) <= set(known)):
            raise BundleError(
                f"blocks must be some of {', '.join(map(str, known))}, or None for all; got {self.blocks}"
            )
        if not 1 <= self.pooling < math.inf:
            raise BundleError(f"pooling must be a finite exponent of at least 1, got {self.pooling}")
        if not self.epsilon > 0:
            raise BundleError(f"epsilon must be positive, got {self.epsilon}")
        if self.data_range is not None:
            check_data_range(self.data_range)
        last = 3 * len(known)
        if self.terms is not None and not (self.terms and all(max(term.layers) <= last for term in self.terms)):
            raise BundleError(f"terms must name layers from 0 to {last}, the head; got {self.terms}")

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.discriminator.config.channels

    def for_channels(self, channels: int) -> Bundle:
        """The bundle with networks for images of other channels; its statistics stay as they are."""
        if channels == self.channels or self.generator is None:
            return self
        discriminator = Discriminator(replace(self.discriminator.config, channels=channels))
        discriminator.load_state_dict(for_channels(self.discriminator.state_dict(), channels))
        generator = Generator(replace(self.generator.config, channels=channels))
        generator.load_state_dict(for_channels(self.generator.state_dict(), channels))
        return replace(self, discriminator=discriminator.eval(), generator=generator.eval())

    @property
    def activation_terms(self) -> tuple[Term, ...]:
        """Terms of the form ``activation``."""
        if self.terms is not None:
            return self.terms
        head = 3 * len(self.discriminator.residual_blocks())
        layers = tuple(layer for layer in range(head + 1) if self.blocks is None or layer // 3 in self.blocks)
        return tuple(Term("direction", level, layers, weight) for level, weight in enumerate(self.levels) if weight)


@contextlib.contextmanager
def reserve_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock the place of a bundle, and refuse one that holds something else, before any work is done for it.

    A bundle is replaced: its own files alone, known by a ``config.json`` that names the hashes of the two files of
    tensors. All else in the folder stays.

    Raises:
        BlockingIOError: If another process writes there.
        BundleError: If it is a file, or not empty and no bundle, or holds tensors that are not the bundle's.
    """
    with locked(folder):
        _refuse_foreign(real_path(folder))
        yield


def save_bundle(
    bundle: Bundle, folder: str | os.PathLike[str], decorate: Callable[[Path], object] | None = None
) -> Path:
    """Write a bundle in one step; a bundle that stands at ``folder`` is replaced, all else there stays.

    Args:
        bundle: The bundle, with its generator.
        folder: Where to put it; given back.
        decorate: Called with the folder of the complete bundle before it is put in its place, to add to it.

    Raises:
        BlockingIOError: If another process writes there.
        BundleError: If the generator is missing, a tensor is not finite, or ``folder`` holds something else.
    """
    folder = Path(folder)
    if bundle.generator is None:
        raise BundleError("a bundle is saved with its generator; load it with load_bundle(..., generator=True)")
    with reserve_folder(folder), atomic_update(folder, _CONFIG) as temporary:
        generator = {name: value.contiguous() for name, value in bundle.generator.state_dict().items()}
        config = _to_config(bundle)
        config["files"] = {
            _MODEL: write_tensors(_to_tensors(bundle), temporary / _MODEL),
            _GENERATOR: write_tensors(generator, temporary / _GENERATOR),
        }
        (temporary / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / _CARD).write_text(bundle.card, encoding="utf-8")
        if decorate:
            decorate(temporary)
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Raise a BundleError unless a bundle may be written to a folder without loss of what is not a bundle's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; choose another place for the bundle")
    finish_update(folder, _CONFIG)
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        hashes = {file: config["files"][file]["sha256"] for file in (_MODEL, _GENERATOR)}
        ours = isinstance(config["schema_version"], int) and {"discriminator", "generator", "statistics"} <= set(config)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        ours, hashes = False, {}
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith((".lock", ".stag")))
    if not ours and others:
        raise BundleError(
            f"{folder} is not a bundle and not empty: it holds {', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}; choose another place"
        )
    for file, expected in hashes.items():
        if (folder / file).exists() and sha256_of(folder / file) != expected:
            raise BundleError(
                f"{folder / file} is not the file that {_CONFIG} beside it names: it is damaged or not of this bundle. "
                "Move it away, or choose another place"
            )


def load_bundle(weights: str | os.PathLike[str], *, generator: bool = False) -> Bundle:
    """Read a bundle and check all of it.

    Args:
        weights: Name of a bundle that ships with the package, a folder, or a hub id ``owner/name[@revision]``.
        generator: Whether to read the generator too.

    Returns:
        The bundle, on the CPU.

    Raises:
        BundleError: If anything in the bundle is missing, too much, misshapen, damaged or not finite, or the folder.
        HubError: If a bundle cannot be had from the hub.
        ValueError: If ``weights`` is none of the three.

    Example:
        >>> load_bundle("tiny-imagenet-v8").form in ("fisher", "local", "activation")
        True
    """
    folder = find_bundle(weights, FILES if generator else FILES[:2])
    try:
        content = (folder / _CONFIG).read_bytes()
        config = json.loads(content)
    except OSError as error:
        raise BundleError(f"{folder / _CONFIG} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{folder / _CONFIG} is not valid JSON ({error}); it may be cut short: get it again"
        ) from error
    found = config.get("schema_version") if isinstance(config, dict) else None
    if not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
        raise BundleError(
            f"{folder / _CONFIG} has schema version {found!r}, this release reads 1 to {SCHEMA_VERSION}; "
            "a newer bundle needs a newer afv_metric"
        )
    if found == 1:  # what bundles of earlier schemas did, which had no such fields
        config |= {"pooling": 2.0, "blocks": None}
    if found <= 2:
        config |= {"terms": None, "output": config.get("energy")}
    try:
        return _from_folder(folder, config, hashlib.sha256(content).hexdigest(), with_generator=generator)
    except BundleError as error:
        if str(folder) in str(error):
            raise
        raise BundleError(f"{folder / _CONFIG}: {error}") from error
    except OSError as error:
        raise BundleError(f"the bundle in {folder} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise BundleError(f"{folder / _CONFIG} does not describe a bundle of this release: {reason}") from error


def training_stages(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of all runs that a bundle's weights went through, each started from the bundle of the one before."""
    before = training.get("before")
    return [*(training_stages(before) if before else []), training]


def _from_folder(folder: Path, config: dict[str, Any], digest: str, *, with_generator: bool) -> Bundle:
    shape = DiscriminatorConfig(**config["discriminator"]).plain()
    with torch.device("meta"):
        discriminator = Discriminator(shape)
        network = Generator(GeneratorConfig(**config["generator"]))
    model = read_tensors(folder / _MODEL, config["files"][_MODEL], _expected_model(discriminator))
    weights = {name.removeprefix("discriminator."): model[name] for name in model if name.startswith("discriminator.")}
    discriminator.load_state_dict(weights, assign=True)
    if with_generator:
        expected = {name: value.shape for name, value in network.state_dict().items()}
        network.load_state_dict(read_tensors(folder / _GENERATOR, config["files"][_GENERATOR], expected), assign=True)
    layers = (
        LayerStatistics(*(model[f"statistics.{name}.{key}"] for key in LayerStatistics._fields))
        for name in _layer_names(discriminator)
    )
    sampling = dict(config["statistics"])
    card = folder / _CARD
    return Bundle(
        discriminator=discriminator.eval(),
        generator=network.eval() if with_generator else None,
        statistics=FisherStatistics(sampling.pop("count"), tuple(layers)),
        levels=tuple(config["levels"]),
        blocks=None if config["blocks"] is None else tuple(config["blocks"]),
        terms=None if config["terms"] is None else tuple(Term(**term) for term in config["terms"]),
        data_range=tuple(config["data_range"]) if "data_range" in config else None,
        sampling=sampling,
        golden=dict(config.get("golden", {})),
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        hash=digest,
        **{name: config[name] for name in _PLAIN},
    )


def _to_config(bundle: Bundle) -> dict[str, Any]:
    assert bundle.generator is not None
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(bundle, name) for name in (*_PLAIN, "levels", "blocks")},
        "discriminator": asdict(bundle.discriminator.config),
        "generator": asdict(bundle.generator.config),
        "terms": None if bundle.terms is None else [asdict(term) for term in bundle.terms],
        "statistics": {"count": bundle.statistics.count, **bundle.sampling},
        **{name: getattr(bundle, name) for name in ("data_range", "golden") if getattr(bundle, name)},
    }


def _layer_names(discriminator: Discriminator) -> list[str]:
    return [name.removesuffix(".weight") for name in discriminator.state_dict() if name.endswith(".weight")]


def _to_tensors(bundle: Bundle) -> dict[str, Tensor]:
    tensors = {f"discriminator.{name}": value for name, value in bundle.discriminator.state_dict().items()}
    for name, layer in zip(_layer_names(bundle.discriminator), bundle.statistics.layers, strict=True):
        tensors |= {f"statistics.{name}.{key}": value.float() for key, value in layer._asdict().items()}
    return {name: value.contiguous() for name, value in tensors.items()}


def _expected_model(discriminator: Discriminator) -> dict[str, torch.Size]:
    state = discriminator.state_dict()
    expected = {f"discriminator.{name}": value.shape for name, value in state.items()}
    for name in _layer_names(discriminator):
        weight = state[f"{name}.weight"].shape
        outputs, inputs = weight[:2]
        shapes = (weight, weight, (outputs,), (outputs,), (inputs, inputs), (outputs, outputs))
        for key, shape in zip(LayerStatistics._fields, shapes, strict=True):
            expected[f"statistics.{name}.{key}"] = torch.Size(shape)
    return expected
