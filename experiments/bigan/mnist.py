"""Permutation-invariant MNIST (section 4.1 of the paper): six ways to learn features of digits without labels.

The networks follow the program that the authors published: multilayer perceptrons without biases whose weights start
from N(0, 0.02²) and, for outputs of discriminators and regressors, from zero. An encoder or discriminator has two
hidden layers of leaky rectifiers, a generator two of rectifiers. Batch normalisation, without gains, stands before the
nonlinearity of the second hidden layer, in generators of both. Latents enter the joint discriminator at its second
hidden layer, beside the first one's output, and the generator at both hidden layers.

Features are compared at the last hidden layer, which is the space of the published accuracies: the authors' program
prints 97.35 % for it and 92.10 % for E(x) itself.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from afv_metric.files import atomic_write
from experiments.bigan.objective import BiGAN

__all__ = [
    "BATCH_SIZE", "LATENTS", "METHODS", "Digits", "Discriminator", "Encoder", "Generator", "Networks", "Precision",
    "Settings", "encode", "load_digits", "make_networks", "nearest_neighbour_accuracy", "refuse_other_settings",
    "train",
]  # fmt: skip

METHODS = (
    "bigan",
    "discriminator",
    "latent-regressor",
    "joint-latent-regressor",
    "autoencoder-l2",
    "autoencoder-l1",
)
LATENTS = 50
BATCH_SIZE = 128
_RATE, _LAST_RATE = 2e-4, 2e-6
_BETAS = (0.5, 0.999)
_WEIGHT_DECAY = 2.5e-5
_SPREAD = 0.02  # of initial weights
_LEAK = 0.2
_REGRESSION_WEIGHT = 0.25  # of the joint regressor's error; with 1 the game has a degenerate solution
_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_EVALUATED = 1000  # images per batch when no gradients are taken

Precision = Literal["float32", "bfloat16"]


class Settings(NamedTuple):
    """What the weights depend on.

    Attributes:
        epochs: Passes over the training images; the learning rate is constant in the first half of them.
        width: Size of the hidden layers.
        precision: Precision of the matrix products in training.
        seed: Seed of the initial weights, of the order of the images and of the latents.
        data: Fingerprint of the data.
    """

    epochs: int = 400
    width: int = 1024
    precision: Precision = "float32"
    seed: int = 0
    data: str = ""


class Digits(NamedTuple):
    """Images uint8 ``(N, pixels)`` and labels int64 ``(N,)``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(path: str | Path) -> Digits:
    """Read images and labels from an ``.npz`` file.

    Args:
        path: File of uint8 arrays ``train_images`` ``(N, H, W)``, ``train_labels`` ``(N,)``, ``test_images`` and
            ``test_labels``; or ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras names them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or its arrays do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}; expected an .npz file with train_images, train_labels and so on.")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            arrays = dict(loaded.items())
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error
    for names in (Digits._fields, ("x_train", "y_train", "x_test", "y_test")):
        if all(name in arrays for name in names):
            train_images, train_labels, test_images, test_labels = (arrays[name] for name in names)
            break
    else:
        raise ValueError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; expected {', '.join(Digits._fields)}"
            " (or x_train, y_train, x_test, y_test)."
        )
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(f"Images of {path} are {images.dtype} {images.shape}; expected uint8 (N, size, size).")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"Labels of {path} are {labels.dtype} {labels.shape}; expected {len(images)} integers.")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(f"{path} has training images {train_images.shape[1:]}, test images {test_images.shape[1:]}.")
    if len(train_images) < BATCH_SIZE or len(test_images) == 0:
        raise ValueError(f"{path} has {len(train_images)} training images; expected at least {BATCH_SIZE}, and a test.")
    return Digits(
        torch.from_numpy(train_images).flatten(1),
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test_images).flatten(1),
        torch.from_numpy(test_labels).long(),
    )


class _Hidden(nn.Module):
    """Two hidden layers of an encoder or a discriminator, which may see latents beside the image."""

    def __init__(self, pixels: int, width: int, latents: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width, bias=False)
        self.second = nn.Linear(width + latents, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, images: Tensor, latents: Tensor | None = None) -> Tensor:
        hidden = F.leaky_relu(self.first(images), _LEAK)
        if latents is not None:
            hidden = torch.cat((hidden, latents.to(hidden.dtype)), 1)
        return F.leaky_relu(self.norm(self.second(hidden)), _LEAK)


class Encoder(nn.Module):
    """E: images ``(N, pixels)`` in [0, 1] to latents ``(N, LATENTS)`` in [-1, 1]."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.hidden = _Hidden(pixels, width)
        self.out = nn.Linear(width, LATENTS, bias=False)

    def logits(self, images: Tensor) -> Tensor:
        """What a regressor's cross-entropy takes: log-odds of (E(x) + 1) / 2, ``(N, LATENTS)`` float32."""
        return cast("Tensor", self.out(self.hidden(images))).float()

    def forward(self, images: Tensor) -> Tensor:
        """Encode."""
        return torch.tanh(self.logits(images) / 2)


class Generator(nn.Module):
    """G: latents ``(N, LATENTS)`` to images ``(N, pixels)`` in [0, 1]."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(LATENTS, width, bias=False)
        self.first_norm = nn.BatchNorm1d(width, affine=False)
        self.second = nn.Linear(width + LATENTS, width, bias=False)
        self.second_norm = nn.BatchNorm1d(width, affine=False)
        self.out = nn.Linear(width, pixels, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Generate."""
        hidden = F.relu(self.first_norm(self.first(latents)))
        hidden = torch.cat((hidden, latents.to(hidden.dtype)), 1)
        hidden = F.relu(self.second_norm(self.second(hidden)))
        return torch.sigmoid(self.out(hidden).float())


class Discriminator(nn.Module):
    """D: logits ``(N,)`` of images alone or, if ``joint``, of pairs of image and latent; high for real images."""

    def __init__(self, pixels: int, width: int, *, joint: bool = False) -> None:
        super().__init__()
        self.hidden = _Hidden(pixels, width, LATENTS if joint else 0)
        self.out = nn.Linear(width, 1, bias=False)

    def forward(self, images: Tensor, latents: Tensor | None = None) -> Tensor:
        """Discriminate."""
        return cast("Tensor", self.out(self.hidden(images, latents))).float().squeeze(1)


class Networks(nn.Module):
    """What is trained together; a network that a unit lacks is None."""

    def __init__(self, encoder: Encoder | None, generator: Generator, discriminator: Discriminator | None) -> None:
        super().__init__()
        self.encoder, self.generator, self.discriminator = encoder, generator, discriminator

    @property
    def features(self) -> nn.Module:
        """The hidden layers whose output is compared: the encoder's, or the discriminator's where there is none."""
        network = self.encoder or self.discriminator
        assert network is not None
        return network.hidden


def _game(networks: Networks, images: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of D and of G in a game without an encoder; G's gradient does not vanish where D is sure."""
    assert networks.discriminator
    real_logits, fake_logits = networks.discriminator(images), networks.discriminator(generated)
    return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2, F.softplus(-fake_logits).mean()


def _gan(networks: Networks, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    return _game(networks, images, networks.generator(latents))


def _bigan(networks: Networks, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of D and of E with G; halved as in the authors' program, which matters beside the weight decay."""
    assert networks.encoder
    assert networks.discriminator
    game = BiGAN(networks.encoder, networks.generator, networks.discriminator)
    losses = game.losses(*game.pairs(images, latents))
    return losses.discriminator / 2, losses.encoder_generator / 2


def _regression(encoder: Encoder, images: Tensor, latents: Tensor) -> Tensor:
    """How badly the encoder predicts the latents of generated images: cross-entropy, mean over the latents."""
    return F.binary_cross_entropy_with_logits(encoder.logits(images), (latents + 1) / 2)


def _latent_regressor(networks: Networks, images: Tensor, latents: Tensor) -> tuple[Tensor]:
    """Loss of E beside a generator that is trained already."""
    assert networks.encoder
    with torch.no_grad():
        generated = networks.generator(latents)
    return (_regression(networks.encoder, generated, latents),)


def _joint_latent_regressor(networks: Networks, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of D and of E with G, which both have a part in how well the latents are predicted."""
    assert networks.encoder
    generated = networks.generator(latents)
    discriminator, generator = _game(networks, images, generated)
    return discriminator, generator + _REGRESSION_WEIGHT * _regression(networks.encoder, generated, latents)


def _autoencoder(error: Callable[..., Tensor], networks: Networks, images: Tensor, latents: Tensor) -> tuple[Tensor]:
    """Error of G(E(x)), summed over the pixels and averaged over the images."""
    assert networks.encoder
    return (error(networks.generator(networks.encoder(images)), images, reduction="sum") / len(images),)


class _Unit(NamedTuple):
    """What is trained in one go: its losses, and for each of them the networks that minimise it."""

    losses: Callable[[Networks, Tensor, Tensor], tuple[Tensor, ...]]
    sides: tuple[tuple[str, ...], ...]
    regresses: bool = False


_UNITS: Mapping[str, _Unit] = {
    "gan": _Unit(_gan, (("discriminator",), ("generator",))),
    "bigan": _Unit(_bigan, (("discriminator",), ("encoder", "generator"))),
    "latent-regressor": _Unit(_latent_regressor, (("encoder",),), regresses=True),
    "joint-latent-regressor": _Unit(
        _joint_latent_regressor, (("discriminator",), ("encoder", "generator")), regresses=True
    ),
    "autoencoder-l2": _Unit(partial(_autoencoder, F.mse_loss), (("encoder", "generator"),)),
    "autoencoder-l1": _Unit(partial(_autoencoder, F.l1_loss), (("encoder", "generator"),)),
}


def _random(seed: int, unit: str, epoch: int) -> torch.Generator:
    """Random numbers of an epoch, or of the start (-1): a resumed training draws what it would have drawn."""
    state = np.random.SeedSequence((seed, list(_UNITS).index(unit), epoch + 1)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def make_networks(unit: str, pixels: int, settings: Settings) -> Networks:
    """Networks at the start of training.

    Args:
        unit: A method, or ``"gan"``, which ``discriminator`` and ``latent-regressor`` share.
        pixels: Number of pixels of an image.
        settings: The width and the seed count.

    Example:
        >>> networks = make_networks("bigan", 784, Settings(width=8)).eval()
        >>> networks.generator(networks.encoder(torch.rand(3, 784))).shape
        torch.Size([3, 784])
        >>> networks.features(torch.rand(3, 784)).shape
        torch.Size([3, 8])
    """
    sides = _UNITS[unit].sides
    networks = Networks(
        None if unit == "gan" else Encoder(pixels, settings.width),
        Generator(pixels, settings.width),
        Discriminator(pixels, settings.width, joint=unit == "bigan") if ("discriminator",) in sides else None,
    )
    generator = _random(settings.seed, unit, -1)
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=_SPREAD, generator=generator)
    if networks.discriminator:
        nn.init.zeros_(networks.discriminator.out.weight)
    if networks.encoder and _UNITS[unit].regresses:
        nn.init.zeros_(networks.encoder.out.weight)
    return networks


def train(
    networks: Networks,
    unit: str,
    images: Tensor,
    settings: Settings,
    *,
    checkpoint: Path,
    device: str = "cpu",
    quiet: bool = True,
) -> float:
    """Train, or go on where the checkpoint is; return the seconds of processor time that all of it took.

    Afterwards the networks are in evaluation mode. Features are normalised by the statistics of all training images,
    the generator by those of as many latents (codes, for an autoencoder), and not by moving averages.

    Args:
        networks: Networks of :func:`make_networks`; a latent regressor's generator is kept. Moved to the device.
        unit: What to train, as for :func:`make_networks`.
        images: Training images, uint8 ``(N, pixels)``, ``N >= BATCH_SIZE``.
        settings: Settings of the training.
        checkpoint: File that is written about every minute and at the end.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Raises:
        ValueError: If the checkpoint is of other settings.
    """
    rule = _UNITS[unit]
    networks.to(device)
    images = images.to(device)
    sides = [[weight for name in side for weight in getattr(networks, name).parameters()] for side in rule.sides]
    optimizers = [
        torch.optim.Adam(side, lr=_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True) for side in sides
    ]
    done, seconds, started = 0, 0.0, time.process_time()
    if (state := _read_state(checkpoint, settings)) is not None:
        networks.load_state_dict(state["networks"])
        done, seconds = state["epoch"], state["seconds"]
        if done == settings.epochs:
            networks.eval()
            return seconds
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    saved_at = time.monotonic()
    for epoch in tqdm(range(done, settings.epochs), unit, settings.epochs, initial=done, unit="epoch", disable=quiet):
        networks.eval()
        for name in chain(*rule.sides):
            getattr(networks, name).train()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = _rate(epoch, settings.epochs)
        _train_epoch(networks, rule.losses, sides, optimizers, images, _random(settings.seed, unit, epoch), settings)
        if time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS and epoch + 1 < settings.epochs:
            spent = seconds + time.process_time() - started
            _save_state(checkpoint, settings, epoch + 1, spent, networks, optimizers)
            saved_at = time.monotonic()
    _settle(networks, unit, images, _random(settings.seed, unit, settings.epochs))
    seconds += time.process_time() - started
    _save_state(checkpoint, settings, settings.epochs, seconds, networks, ())
    return seconds


class _State(TypedDict):
    settings: list[str | int]
    epoch: int
    seconds: float
    networks: dict[str, Tensor]
    optimizers: list[dict[str, Any]]


def _save_state(
    checkpoint: Path,
    settings: Settings,
    epoch: int,
    seconds: float,
    networks: Networks,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    state: _State = {
        "settings": list(settings),
        "epoch": epoch,
        "seconds": seconds,
        "networks": networks.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    with atomic_write(checkpoint) as temporary:
        torch.save(state, temporary)


def _read_state(checkpoint: Path, settings: Settings) -> _State | None:
    """What a checkpoint holds, if there is one."""
    if not checkpoint.exists():
        return None
    state: _State = torch.load(checkpoint, map_location="cpu", weights_only=True)
    refuse_other_settings(settings, Settings._make(state["settings"]), checkpoint)
    return state


def refuse_other_settings(wanted: Settings, found: Settings, path: Path) -> None:
    """See that what stands in a file is what is wanted.

    Raises:
        ValueError: If not; it says in what they differ.
    """
    different = [
        f"{name} is {there!r}, asked for {here!r}"
        for name, here, there in zip(Settings._fields, wanted, found, strict=True)
        if here != there
    ]
    if different:
        raise ValueError(f"{path} is of other settings: {'; '.join(different)}. Choose another --out, or remove it")


def _rate(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch: constant for half of them, then exponentially down to the last one's."""
    decayed = max(0, epoch + 1 - epochs // 2) / (epochs - epochs // 2)
    return float(_RATE * (_LAST_RATE / _RATE) ** decayed)


def _train_epoch(
    networks: Networks,
    losses: Callable[[Networks, Tensor, Tensor], tuple[Tensor, ...]],
    sides: Sequence[list[nn.Parameter]],
    optimizers: Sequence[torch.optim.Optimizer],
    images: Tensor,
    generator: torch.Generator,
    settings: Settings,
) -> None:
    """One pass over the images; all sides step from the same forward pass. An incomplete batch is left out."""
    steps = len(images) // BATCH_SIZE
    order = torch.randperm(len(images), generator=generator)[: steps * BATCH_SIZE].to(images.device)
    latents = (torch.rand(steps * BATCH_SIZE, LATENTS, generator=generator) * 2 - 1).to(images.device)
    for rows, drawn in zip(order.split(BATCH_SIZE), latents.split(BATCH_SIZE), strict=True):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            sides_losses = losses(networks, images[rows].float().div_(255), drawn)
        for loss, side in zip(sides_losses, sides, strict=True):
            loss.backward(inputs=side, retain_graph=loss is not sides_losses[-1])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def _settle(networks: Networks, unit: str, images: Tensor, generator: torch.Generator) -> None:
    """Normalise from now on by averages over the training set, as the features see real images."""
    networks.eval()
    # Parts that are equal but for one image: averages of batch normalisation give every part the same weight.
    parts = -(-len(images) // _EVALUATED)
    _average_statistics(networks.features, (part.float().div_(255) for part in images.tensor_split(parts)))
    if "generator" not in chain(*_UNITS[unit].sides):
        return
    if networks.discriminator:
        latents = (torch.rand(len(images), LATENTS, generator=generator) * 2 - 1).to(images.device)
    else:  # an autoencoder's generator has only ever seen codes
        assert networks.encoder
        latents = encode(networks.encoder, images, images.device)
    _average_statistics(networks.generator, latents.tensor_split(parts))


def _average_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None  # plain averages
    network.train()
    for batch in batches:
        network(batch)
    network.eval()


@torch.no_grad()
def encode(network: Callable[[Tensor], Tensor], images: Tensor, device: str | torch.device = "cpu") -> Tensor:
    """Apply a network to uint8 images ``(N, pixels)``: float32 ``(N, size)``, on its device."""
    return torch.cat([network(batch.to(device).float().div_(255)) for batch in images.split(_EVALUATED)])


def nearest_neighbour_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Share of test images whose nearest training image, by Euclidean distance of features, has their label.

    Args:
        train_features: ``(N, size)``.
        train_labels: ``(N,)``.
        test_features: ``(M, size)``.
        test_labels: ``(M,)``.

    Example:
        >>> training, test = torch.tensor([[0.0], [10.0]]), torch.tensor([[4.0], [6.0]])
        >>> nearest_neighbour_accuracy(training, torch.tensor([3, 4]), test, torch.tensor([3, 3]))
        0.5
    """
    middle = train_features.mean(0)  # distances do not change, and cancel less in float32
    train_features, test_features = train_features - middle, test_features - middle
    half_norms = train_features.square().sum(1) / 2
    nearest = torch.cat(
        [(batch @ train_features.T - half_norms).argmax(1) for batch in test_features.split(_EVALUATED)]
    )
    return (train_labels[nearest.cpu()] == test_labels).double().mean().item()
