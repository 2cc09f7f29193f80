"""Bidirectional GANs and their rivals on MNIST: nearest-neighbour accuracy of what each learns without labels.

    python -m experiments mnist mnist.npz --out DIR [--methods bigan ...] [--epochs 400]

Neighbours are found by the Euclidean distance of the last hidden layer: the encoder's, or for ``discriminator`` that of
D. The table also gives the accuracy of E(x) itself, and minutes of processor time; a GAN counts for both methods that
need it.

A finished method is a file ``methods/NAME.json`` in the folder, its weights are in ``networks/NAME.pt`` (the GAN that
``discriminator`` and ``latent-regressor`` share in ``networks/gan.pt``). The same command goes on where it was stopped,
and processes with different methods can share a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock
from PIL import Image

from afv_metric.files import atomic_write
from afv_metric.runtime import read_versions
from experiments.bigan.mnist import (
    LATENTS,
    METHODS,
    Digits,
    Networks,
    Precision,
    Settings,
    encode,
    load_digits,
    make_networks,
    nearest_neighbour_accuracy,
    refuse_other_settings,
    train,
)
from experiments.intervals import share_interval

__all__ = ["PUBLISHED", "add_arguments", "draw", "measure", "run"]

PUBLISHED: Mapping[str, float] = {
    "bigan": 97.39,
    "discriminator": 97.30,
    "latent-regressor": 97.44,
    "joint-latent-regressor": 97.13,
    "autoencoder-l2": 97.58,
    "autoencoder-l1": 97.63,
}
"""Accuracies in per cent, Table 1 of the paper."""

_COLUMNS = 20  # of the picture
_GAP = 4  # between two methods, pixels
_log = logging.getLogger(__name__)


def measure(networks: Networks, digits: Digits, device: str = "cpu") -> dict[str, float]:
    """Accuracies of nearest neighbours, and how well images come back.

    Args:
        networks: Trained ones.
        digits: Images and labels.
        device: Device of the networks.

    Returns:
        ``accuracy`` of the last hidden layer (that of the encoder, else the discriminator) and, with an encoder,
        ``accuracy_code`` of E(x) and ``reconstruction``, the mean of ``||x - G(E(x))||`` over the test images with
        pixels in [0, 1].
    """

    def accuracy(network: torch.nn.Module) -> float:
        train_features, test_features = (
            encode(network, images, device) for images in (digits.train_images, digits.test_images)
        )
        return nearest_neighbour_accuracy(train_features, digits.train_labels, test_features, digits.test_labels)

    numbers = {"accuracy": accuracy(networks.features)}
    if networks.encoder:
        numbers["accuracy_code"] = accuracy(networks.encoder)
        again = encode(torch.nn.Sequential(networks.encoder, networks.generator), digits.test_images, device).cpu()
        numbers["reconstruction"] = (digits.test_images / 255 - again).norm(dim=1).mean().item()
    return numbers


def draw(networks: Networks, digits: Digits, device: str = "cpu", seed: int = 0) -> Image.Image:
    """Three rows, as in Figure 2 of the paper: test images x, two of each digit; G(z) of random latents; G(E(x)).

    Args:
        networks: Trained ones, with an encoder.
        digits: Images and labels.
        device: Device of the networks.
        seed: Seed of the latents.
    """
    assert networks.encoder
    order = digits.test_labels.argsort(stable=True)
    chosen = digits.test_images[order[torch.linspace(0, len(order) - 1, _COLUMNS).long()]]
    latents = torch.rand(_COLUMNS, LATENTS, generator=torch.Generator().manual_seed(seed)).to(device) * 2 - 1
    with torch.no_grad():
        generated = networks.generator(latents).cpu()
    again = encode(torch.nn.Sequential(networks.encoder, networks.generator), chosen, device).cpu()
    size = math.isqrt(chosen.shape[1])
    rows = torch.stack((chosen / 255, generated, again)).view(3, _COLUMNS, size, size)
    return Image.fromarray((rows.transpose(1, 2).reshape(3 * size, -1) * 255).round().byte().numpy())


def _stack(pictures: Sequence[Path]) -> Image.Image:
    """Pictures of several methods below each other."""
    opened = [Image.open(path) for path in pictures]
    whole = Image.new("L", (opened[0].width, sum(picture.height + _GAP for picture in opened) - _GAP), 255)
    top = 0
    for picture in opened:
        whole.paste(picture, (0, top))
        top += picture.height + _GAP
    return whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's own arguments."""
    parser.add_argument("data", metavar="DATA", help=".npz file with train_images, train_labels, test_images, ...")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--epochs", type=_count, default=400, help="default: %(default)s, as in the paper")
    parser.add_argument("--width", type=_count, default=1024, help="of hidden layers (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="of training (default: %(default)s)"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure what is not there yet, draw ``reconstructions.png``, and give the table."""
    digits = load_digits(options.data)
    digest = hashlib.sha256()
    for array in digits:
        digest.update(array.numpy().tobytes())
    settings = Settings(options.epochs, options.width, options.precision, options.seed, digest.hexdigest()[:16])
    records = {method: _finish(method, digits, settings, options) for method in options.methods}
    yardsticks = _measure_yardsticks(digits, settings, options)
    pictures = {method: options.out / "methods" / f"{method}.png" for method in options.methods}
    drawn = [method for method, path in pictures.items() if path.exists()]
    if drawn:
        with atomic_write(options.out / "reconstructions.png") as temporary:
            _stack([pictures[method] for method in drawn]).save(temporary)
    table = [["method", "accuracy", "95 % interval", "published", "accuracy of E(x)", "epochs", "processor minutes"]]
    for method, record in records.items():
        code = record.get("accuracy_code")
        table.append(
            [
                method,
                *_percent(record["accuracy"], len(digits.test_labels)),
                f"{PUBLISHED[method]:.2f}",
                "" if code is None else f"{100 * code:.2f}",
                str(settings.epochs),
                f"{record['seconds'] / 60:.1f}",
            ]
        )
    for name, accuracy in yardsticks.items():
        table.append([name, *_percent(accuracy, len(digits.test_labels)), "", "", "", ""])
    rows = [f"{method}: {row}" for method in drawn for row in ("x", "G(z)", "G(E(x))")]
    return {"methods": records, "yardsticks": yardsticks, "picture_rows": rows, "table": table}


def _percent(share: float, count: int) -> tuple[str, str]:
    """A share of so many images, and its 95 % interval."""
    low, high = share_interval(round(share * count), count)
    return f"{100 * share:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"


def _measure_yardsticks(digits: Digits, settings: Settings, options: argparse.Namespace) -> dict[str, float]:
    """Accuracies without any training: of pixels, and of an encoder's last hidden layer with random weights."""
    pixels = nearest_neighbour_accuracy(
        digits.train_images.float(), digits.train_labels, digits.test_images.float(), digits.test_labels
    )
    networks = make_networks("bigan", digits.train_images.shape[1], settings)
    with tempfile.TemporaryDirectory() as folder:
        start = settings._replace(epochs=0)
        train(networks, "bigan", digits.train_images, start, checkpoint=Path(folder, "start.pt"), device=options.device)
    return {"untrained encoder": measure(networks, digits, options.device)["accuracy"], "pixels": pixels}


def _finish(method: str, digits: Digits, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a method: read, or made and written."""
    path = options.out / "methods" / f"{method}.json"
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        refuse_other_settings(settings, Settings(**record["settings"]), path)
        return record
    networks, seconds = _networks(method, digits, settings, options)
    record = {
        **measure(networks, digits, options.device),
        "seconds": seconds,
        "settings": settings._asdict(),
        "device": options.device,
        "versions": read_versions(),
    }
    _log.info("%s: %.2f %%", method, 100 * record["accuracy"])
    if networks.encoder:
        with atomic_write(path.with_suffix(".png")) as temporary:
            draw(networks, digits, options.device, options.seed).save(temporary)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _networks(method: str, digits: Digits, settings: Settings, options: argparse.Namespace) -> tuple[Networks, float]:
    """Trained networks of a method, and the seconds of processor time that they took."""
    unit = "gan" if method == "discriminator" else method
    folder = options.out / "networks"
    networks = make_networks(unit, digits.train_images.shape[1], settings)
    before = 0.0
    if unit == "latent-regressor":
        gan, before = _networks("discriminator", digits, settings, options)
        networks.generator.load_state_dict(gan.generator.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{unit}.lock"):
        seconds = train(
            networks,
            unit,
            digits.train_images,
            settings,
            checkpoint=folder / f"{unit}.pt",
            device=options.device,
            quiet=options.quiet,
        )
    return networks, before + seconds
