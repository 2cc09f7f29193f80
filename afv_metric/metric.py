"""AFVDistance: the perceptual distance as a module."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.fisher.comparison import Comparison, at_level, pyramid, total_of
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS, ActivationForm, Description, FisherForm, Form, FormName, LocalForm, Part
from afv_metric.images.tensors import check_range, pad_to_multiple, to_network_range, weights_of_padded
from afv_metric.suggestions import did_you_mean, explain_lpips

__all__ = ["AFVDistance", "Embedding", "Reduction"]

Reduction = Literal["none", "mean", "sum"]


@dataclass(frozen=True)
class Embedding:
    """What :meth:`AFVDistance.embed` keeps of N images, to be compared with many others.

    Attributes:
        fingerprint: sha256 of the network, the statistics and the settings that it was made with.
        form: Form of the distance that it is for.
        size: Height and width of the images.
        parts: Descriptions of all parts: tensors whose first dimension is N.
    """

    fingerprint: str
    form: FormName
    size: tuple[int, int]
    parts: dict[Part, Description]

    def __len__(self) -> int:
        """Number of images."""
        return len(next(iter(self.parts.values()))[0])

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Embedding:
        """Embedding of some of the images; one index keeps the first dimension."""
        chosen = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._each(lambda value: value[chosen])

    def to(self, device: str | torch.device) -> Embedding:
        """The same on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Embedding:
        return replace(self, parts={part: tuple(map(change, values)) for part, values in self.parts.items()})


torch.serialization.add_safe_globals([Embedding, Part])  # torch.load reads embeddings without pickled code


class AFVDistance(nn.Module):
    """Perceptual distance between images from the Fisher scores of a discriminator (arXiv:1910.13101).

    Three forms share one network. ``"activation"`` compares whitened activations: their direction at each position and
    their texture in windows. ``"local"`` compares the scores of untied weights at every position, whitened by Kronecker
    factors. ``"fisher"`` is eq. 5 of the paper per parameter, with a floor under the variances, summed over weighted
    levels of an image pyramid. A bundle's default is the form that people agree with most.

    The module is frozen by construction: its weights are plain tensors of its own, no parameters and no buffers, so
    nothing that walks over the modules of a surrounding model can change them, and they are in no ``state_dict``. It
    stays in evaluation mode. It is differentiable with respect to both images. The distance of identical images is 0,
    with gradient 0.

    Device and precision follow the images; ``.to(...)`` is not needed and changes nothing. Float64 images are compared
    in float64, all others in float32, under autocast too; float32 is within 1e-4 of float64, relative (on CUDA with
    ``torch.backends.cudnn.allow_tf32 = False``).

    Args:
        weights: Name of a bundle that ships with the package, a folder, a hub id ``owner/name[@revision]``, or a
            :class:`~afv_metric.bundles.bundle.Bundle`.
        form: Form of the distance; the bundle's default if None.
        pooling: Exponent, from 1 on, of the mean over positions in the forms ``local`` and ``activation``; the bundle's
            if None. People agree most with a high one, which favours the places that differ most; as a loss, a low one
            such as 2 has a denser gradient.
        spatial: Return maps of the local distance instead of distances, each scaled so that its mean is the distance
            (which pools the map by a mean of high order).
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the batch (and the map).
        normalize: Whether floating-point images are in [0, 1] rather than [-1, 1].
        chunk_size: Pairs worked on at a time; chosen by the size of the images if None. Changes no result.
        check: What to do about values that cannot be in the range: ``"error"`` (a warning for tensors that require a
            gradient), ``"warn"``, or False not to look.

    Attributes:
        form: The form in use.
        pooling: The exponent in use; of no effect on the form ``fisher``.
        bundle_name: Name of the bundle.
        bundle_hash: sha256 that identifies the bundle.
        score_range: Smallest and largest distance that there can be; infinity for the form ``fisher``.
        higher_is_better: False: it is a distance.
        is_differentiable: True.
        channels: Channels of the images.
        data_range: Values that are black and white in the files that the bundle is made for, where they were declared.

    Raises:
        TypeError: For an unknown argument.
        ValueError: For an unknown form, reduction or check, or a pooling or chunk size below 1.

    Example:
        >>> distance = AFVDistance()
        >>> image = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> distance(image, image)
        tensor([0., 0.])
        >>> noisy = (image + 0.3 * torch.randn_like(image)).clamp(-1, 1).requires_grad_()
        >>> distance(noisy, image).mean().backward()
        >>> noisy.grad.shape
        torch.Size([2, 3, 64, 64])
    """

    higher_is_better = False
    is_differentiable = True

    def __init__(
        self,
        weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
        *,
        form: FormName | None = None,
        pooling: float | None = None,
        spatial: bool = False,
        reduction: Reduction = "none",
        normalize: bool = False,
        chunk_size: int | None = None,
        check: Literal["error", "warn", False] = "error",
        **unknown: NoReturn,
    ) -> None:
        super().__init__()
        if unknown:
            name, value = next(iter(dict[str, object](unknown).items()))
            hint = explain_lpips(str(value)) or did_you_mean(name, inspect.signature(AFVDistance).parameters)
            raise TypeError(f"AFVDistance has no argument {name!r}{hint}")
        if form is not None and form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
        if pooling is not None and not 1 <= pooling < math.inf:
            raise ValueError(f"pooling must be a finite exponent of at least 1 or None, got {pooling}")
        if check not in ("error", "warn", False):
            raise ValueError(f'check must be "error", "warn" or False, got {check!r}')
        # Wherever it is built (on the meta device, in inference mode), its weights are real and serve a loss.
        with torch.device("cpu"), torch.inference_mode(False):
            bundle = weights if isinstance(weights, Bundle) else load_bundle(weights)
            self.form: FormName = form or bundle.form
            self.pooling = bundle.pooling if pooling is None else pooling
            engine = FisherEngine(bundle.discriminator, bundle.output)
            # The vectors of eq. 6 belong to every bundle, whatever the form of the distance.
            self._fisher = FisherForm(engine, bundle.statistics, bundle.epsilon, bundle.levels)
            self._form = self._make_form(engine, bundle)
        self.bundle_name, self.bundle_hash, self._fingerprint = bundle.name, bundle.hash, _fingerprint(bundle)
        self.score_range = (0.0, self._form.bound)
        self.channels, self.data_range = bundle.channels, bundle.data_range
        self.spatial, self.reduction, self.normalize = spatial, reduction, normalize
        self.chunk_size, self.check = chunk_size, check
        self._multiple = bundle.discriminator.stride * int(2 ** self._form.levels[-1])
        self._range_warned = False
        self.train(False)

    def train(self, mode: bool = True) -> AFVDistance:
        """Do nothing: a metric stays in evaluation mode, also inside a model that trains."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Bundle, form and pooling."""
        return f"bundle={self.bundle_name!r}, form={self.form!r}, pooling={self.pooling:g}"

    def forward(
        self,
        img0: Tensor,
        img1: Tensor,
        *,
        normalize: bool | None = None,
        mask: Tensor | None = None,
        ret_per_layer: bool = False,
    ) -> Tensor | tuple[Tensor, dict[Part, Tensor]]:
        """Distance between images.

        The last row and column are repeated until all levels are whole strides of the network; these have no weight.

        Args:
            img0: ``(N, 3, H, W)`` or ``(3, H, W)``: floating point in [-1, 1] (in [0, 1] with ``normalize``), or
                uint8 in [0, 255]; one channel stands for grey. A bundle of C channels takes as many. H and W are at
                least 32.
            img1: Images of the same size and device. One image is compared with every image of a batch.
            normalize: Overrides the setting of the module.
            mask: Non-negative weights of the pixels, ``(N, 1, H, W)`` or ``(H, W)``, constants for autograd. Pixels
                farther from any positive weight than the network sees have no influence. Where all are 0 the distance
                is 0. Not for ``spatial``: multiply the maps instead.
            ret_per_layer: Whether to return what each part adds to the distance as well.

        Returns:
            Distances ``(N,)``; a scalar for a reduction; maps ``(N, 1, H, W)`` for ``spatial``. Float32, or float64 if
            an image is. With ``ret_per_layer`` these and a dictionary of the same shapes, whose sum they are, by
            ``(term, layer)``: the index of the bundle's term, or of the level in the forms ``local`` and ``fisher``,
            and that of the layer.

        Raises:
            TypeError: If the images or the mask are not tensors of a type above.
            ValueError: If shapes, sizes, devices or ranges are wrong.

        Example:
            >>> images = torch.randint(256, (2, 3, 48, 64), dtype=torch.uint8)
            >>> AFVDistance(reduction="mean")(images, images.flip(3)).shape
            torch.Size([])
            >>> total, parts = AFVDistance()(images, images.flip(3), ret_per_layer=True)
            >>> torch.allclose(total, sum(parts.values()))
            True
        """
        with torch.autocast(_device_type(img0), enabled=False):
            first, second = self._prepare({"img0": img0, "img1": img1}, normalize)
            if first.shape[2:] != second.shape[2:]:
                raise ValueError(
                    f"img0 and img1 must have the same size, got {tuple(first.shape[2:])} and {tuple(second.shape[2:])}"
                )
            counts = first.shape[0], second.shape[0]
            if counts[0] != counts[1] and 1 not in counts:
                raise ValueError(
                    "img0 and img1 must hold as many images, or one of them a single one; "
                    f"got {counts[0]} and {counts[1]}"
                )
            if self.spatial and mask is not None:
                raise ValueError("a mask weights the mean over an image, and maps have none: multiply the maps by it")
            weights = self._weights(first, max(counts), mask)
            x, y = (pad_to_multiple(images, self._multiple) for images in (first, second))
            parts = Comparison(self._form, chunk_size=self.chunk_size).compare_parts(x, y, weights)
            if self.spatial:
                distances = total_of(parts)
                maps = Comparison(self._form, spatial=True, chunk_size=self.chunk_size).compare_parts(x, y)
                maps = {part: values[..., : first.shape[2], : first.shape[3]] for part, values in maps.items()}
                mean = total_of(maps).mean((1, 2, 3), keepdim=True)
                scale = distances.view_as(mean) / mean.clamp_min(torch.finfo(mean.dtype).tiny)
                parts = {part: values * scale for part, values in maps.items()}
            # Kernels may round a batch of one and a batch of many differently; equal images are at 0 all the same.
            identical = (first == second).flatten(1).all(1)
            identical = identical.view(-1, 1, 1, 1) if self.spatial else identical
            parts = {part: values.masked_fill(identical, 0) for part, values in parts.items()}
        total = self._reduce(total_of(parts))
        return (total, {part: self._reduce(values) for part, values in parts.items()}) if ret_per_layer else total

    def embed(self, images: Tensor, *, normalize: bool | None = None) -> Embedding:
        """Describe images once, to compare them with many others.

        Args:
            images: As for :meth:`forward`.
            normalize: Overrides the setting of the module.

        Returns:
            Descriptions of all parts; for the ``fisher`` form as large as the network's weights for every image.
        """
        with torch.autocast(_device_type(images), enabled=False):
            (prepared,) = self._prepare({"images": images}, normalize)
            weights = self._weights(prepared, 1)
            height, width = prepared.shape[2:]
            padded = pad_to_multiple(prepared, self._multiple)
            chunks: list[dict[Part, Description]] = []
            for chunk in padded.split(self.chunk_size or len(padded)):
                chunks.append({})
                for level, level_images in pyramid(chunk, self._form.levels):
                    chunks[-1] |= dict(self._form.describe(level, level_images, at_level(weights, level)))
            parts = {
                part: tuple(map(torch.cat, zip(*(chunk[part] for chunk in chunks), strict=True))) for part in chunks[0]
            }
            return Embedding(self._fingerprint, self.form, (height, width), parts)

    def distance_between(self, first: Embedding, second: Embedding | None = None) -> Tensor:
        """Distances of all images of one embedding to all of another, or to one another.

        Args:
            first: Embedding of N images.
            second: Embedding of M images of the same size; ``first`` if None.

        Returns:
            ``(N, M)``, the numbers that :meth:`forward` gives.

        Raises:
            ValueError: If the embeddings are of other bundles, forms or image sizes.

        Example:
            >>> metric = AFVDistance()
            >>> images = torch.rand(3, 3, 32, 32) * 2 - 1
            >>> table = metric.distance_between(metric.embed(images))
            >>> torch.allclose(table[0], metric(images[:1], images), atol=1e-5)
            True
        """
        second = first if second is None else second
        return torch.stack([self.paired_distance(first[row], second) for row in range(len(first))])

    def paired_distance(self, first: Embedding, second: Embedding) -> Tensor:
        """Distances of the images of two embeddings, pair by pair.

        Args:
            first: Embedding of N images, or of one for all.
            second: Embedding of N images of the same size, or of one for all.

        Returns:
            ``(N,)``, the numbers that :meth:`forward` gives.

        Raises:
            ValueError: If the embeddings are of other bundles, forms or image sizes.
        """
        expected = (self._fingerprint, self.form, first.size)
        for embedding in (first, second):
            if (embedding.fingerprint, embedding.form, embedding.size) != expected:
                bundle = "this" if embedding.fingerprint == self._fingerprint else "another"
                raise ValueError(
                    f"embeddings must be of this bundle ({self.bundle_name} {self.bundle_hash[:12]}), the form "
                    f"{self.form!r} and one image size {first.size}; got {bundle} bundle, the form {embedding.form!r} "
                    f"and {embedding.size}"
                )
        like = next(iter(first.parts.values()))[0]
        weights = weights_of_padded(like.new_ones(1, 1, *first.size), self._multiple)
        total = torch.zeros((), device=like.device, dtype=like.dtype)
        with torch.autocast(like.device.type, enabled=False):
            for part, description in first.parts.items():
                level_weights = at_level(weights, self._form.level_of(part))
                total = total + self._form.compare(part, description, second.parts[part], level_weights)
        return total

    def score_vectors(self, images: Tensor, *, normalize: bool | None = None) -> Tensor:
        """Adversarial Fisher Vectors, eq. 6 of the paper: the centred score, whitened by the diagonal information.

        The mean of the squared difference of two vectors is the ``fisher`` distance of a bundle of one level, that of
        the images' own resolution.

        Args:
            images: As for :meth:`forward`.
            normalize: Overrides the setting of the module.

        Returns:
            ``(N, P)`` for P parameters: weights, then biases, of each layer in the order of the forward pass.
        """
        with torch.autocast(_device_type(images), enabled=False):
            (prepared,) = self._prepare({"images": images}, normalize)
            stride = self._fisher.engine.stride
            weights = weights_of_padded(prepared, stride)
            padded = pad_to_multiple(prepared, stride)
            return torch.cat(
                [self._fisher.vectors(chunk, weights) for chunk in padded.split(self.chunk_size or len(padded))]
            )

    def _reduce(self, values: Tensor) -> Tensor:
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def _make_form(self, engine: FisherEngine, bundle: Bundle) -> Form:
        if self.form == "fisher":
            return self._fisher
        settings = (engine, bundle.statistics, bundle.epsilon)
        if self.form == "local":
            return LocalForm(*settings, bundle.levels, self.pooling, bundle.blocks)
        return ActivationForm(*settings, bundle.activation_terms, self.pooling)

    def _prepare(self, images: dict[str, Tensor], normalize: bool | None) -> list[Tensor]:
        """Images in the range of the network, all on one device and in one floating-point type."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(
                "torch.jit.trace fixes the size of the images: use torch.export or torch.onnx.export(dynamo=True)"
            )
        normalize = self.normalize if normalize is None else normalize
        double = any(isinstance(image, Tensor) and image.dtype == torch.float64 for image in images.values())
        dtype = torch.float64 if double else torch.float32
        devices = {str(image.device) for image in images.values() if isinstance(image, Tensor)}
        if len(devices) > 1:
            raise ValueError(f"img0 and img1 must be on one device, got {' and '.join(sorted(devices))}")
        prepared = [
            to_network_range(image, normalize=normalize, dtype=dtype, name=name, channels=self.channels)
            for name, image in images.items()
        ]
        if not torch.compiler.is_compiling():
            for name, image in images.items():
                self._range_warned = check_range(
                    image, normalize=normalize, name=name, check=self.check, warned=self._range_warned
                )
        return prepared

    def _weights(self, images: Tensor, count: int, mask: Tensor | None = None) -> Tensor | None:
        """Weights of all pixels of the padded images, or None where all are 1: what is padded has weight 0."""
        if mask is None:
            return weights_of_padded(images, self._multiple)
        height, width = images.shape[2:]
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
        weights = mask[None, None] if mask.ndim == 2 else mask
        if weights.ndim != 4 or weights.shape[1:] != (1, height, width) or len(weights) not in (1, count):
            raise ValueError(
                f"mask must have shape ({count}, 1, {height}, {width}) or ({height}, {width}), got {tuple(mask.shape)}"
            )
        return pad_to_multiple(weights.detach().to(images), self._multiple, "constant")


def _fingerprint(bundle: Bundle) -> str:
    """sha256 of all that decides what images are described by, whatever ``bundle.hash`` says: it may be a copy's."""
    settings = (bundle.output, bundle.levels, bundle.blocks, bundle.terms, bundle.epsilon)
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in (*bundle.discriminator.state_dict().values(), *itertools.chain(*bundle.statistics.layers)):
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _device_type(images: Tensor) -> str:
    kind = images.device.type if isinstance(images, Tensor) else "cpu"
    if torch.compiler.is_compiling():  # the compiler of torch 2.6 does not know the question
        return kind
    return kind if torch.amp.is_autocast_available(kind) else "cpu"
