"""Scoring triplets with LPIPS (alex): the loop of the official scripts against ours, in turns, in one run.

    python benchmarks/bapps_loop.py [--triplets 2000] [--repeats 3]

Both score one generated set of 64x64 PNG files in the layout of BAPPS. The official loop is
``lpips.score_2afc_dataset`` over a ``DataLoader`` with batches of 50, as ``test_dataset_model.py`` of LPIPS calls it:
images are read by Pillow, resized and normalised by torchvision, four worker processes. Ours is
``bapps_eval.run.evaluate``, with batches of 128, and ``bapps_eval.scores.agreement``. Absolute times on a shared
machine say little; the ratio of two turns says more, and that of the processor time, workers included, most.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lpips
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bapps_eval.data import read_root
from bapps_eval.metrics import Choice, make_metrics
from bapps_eval.run import evaluate
from bapps_eval.scores import agreement

FOLDERS = ("ref", "p0", "p1")


def make_triplets(family: Path, count: int, side: int = 64, seed: int = 0) -> None:
    """Write triplets: smooth random fields with edges and grain, blurred, noisy or shifted; random judgements."""
    generator = np.random.default_rng(seed)
    for folder in (*FOLDERS, "judge"):
        (family / folder).mkdir(parents=True)
    for index in range(count):
        reference = make_field(generator, side)
        images = (reference, distort(reference, generator), distort(reference, generator))
        for folder, pixels in zip(FOLDERS, images, strict=True):
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(family / folder / f"{index:06d}.png")
        np.save(family / "judge" / f"{index:06d}.npy", np.array([generator.integers(6) / 5], np.float32))


def make_field(generator: np.random.Generator, side: int) -> NDArray[np.float64]:
    """An image like a photograph: spectrum falling as 1/f, an edge, a little grain; ``(side, side, 3)``."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    waves = np.fft.fft2(generator.normal(size=(3, side, side))) / frequency
    field = np.fft.ifft2(waves).real.transpose(1, 2, 0)
    field = 128 + 48 * field / field.std()
    rows, columns = np.mgrid[:side, :side]
    edge = np.cos(generator.uniform(0, 7)) * (rows - side / 2) + np.sin(generator.uniform(0, 7)) * (columns - side / 2)
    return np.where(edge[..., None] > 0, field + generator.normal(0, 25, 3), field) + generator.normal(
        0, 1.5, field.shape
    )


def distort(pixels: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Blur, noise or shift, at random."""
    kind = generator.integers(3)
    if kind == 0:
        return gaussian_filter(pixels, (*2 * [generator.uniform(0.5, 2)], 0))
    if kind == 1:
        return pixels + generator.normal(0, generator.uniform(3, 25), pixels.shape)
    return np.roll(pixels, generator.integers(-3, 4, 2), (0, 1)) + generator.uniform(-15, 15)


class Triplets(Dataset[dict[str, Tensor]]):
    """The set as the official scripts read it, file by file."""

    def __init__(self, family: Path) -> None:
        self.files = {folder: sorted((family / folder).iterdir()) for folder in (*FOLDERS, "judge")}
        to_network = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.transform = transforms.Compose([transforms.Resize(64), transforms.ToTensor(), to_network])

    def __len__(self) -> int:
        """Number of triplets."""
        return len(self.files["judge"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One triplet, in [-1, 1]."""
        item = {folder: self.transform(Image.open(self.files[folder][index]).convert("RGB")) for folder in FOLDERS}
        return item | {"judge": torch.from_numpy(np.load(self.files["judge"][index]).reshape(1, 1, 1))}


class Loader:
    """What ``score_2afc_dataset`` asks for."""

    def __init__(self, family: Path, batch_size: int, workers: int) -> None:
        self.loader = DataLoader(Triplets(family), batch_size=batch_size, num_workers=workers)

    def load_data(self) -> DataLoader[dict[str, Tensor]]:
        """The batches."""
        return self.loader


class Turn(NamedTuple):
    """What came out of one loop, and what it took."""

    score: float
    seconds: float
    processor: float


def take_turn(function: Callable[[], float]) -> Turn:
    """Run a loop once."""
    gc.collect()
    started, processor = time.perf_counter(), processor_seconds()
    value = function()
    gc.collect()
    return Turn(value, time.perf_counter() - started, processor_seconds() - processor)


def processor_seconds() -> float:
    """Time on all processors of this process and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Print scores, times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--official-batch", type=int, default=50)
    parser.add_argument("--official-workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, help="ours; by default what the command takes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        family = Path(folder) / "2afc/val/generated"
        make_triplets(family, options.triplets)
        peer = lpips.LPIPS(net="alex", verbose=False).eval().to(options.device)
        metrics = make_metrics(["lpips-alex"], Choice(device=options.device))

        def official() -> float:
            loader = Loader(family, options.official_batch, options.official_workers)

            def distance(first: Tensor, second: Tensor) -> Tensor:
                return peer.forward(first.to(options.device), second.to(options.device))

            with contextlib.redirect_stderr(io.StringIO()):
                return float(lpips.score_2afc_dataset(loader, distance)[0])

        def ours() -> float:
            sets = read_root(folder)
            size, workers, device = options.batch_size, options.workers, options.device
            ((distances,),) = evaluate(metrics, sets, batch_size=size, workers=workers, device=device).distances
            return float(agreement(distances[:, 0], distances[:, 1], sets[0].judged).mean())

        turns = [(take_turn(official), take_turn(ours)) for _ in range(options.repeats)]
    scores = {turn.score for pair in turns for turn in pair}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.triplets} triplets on {options.device}"
    )
    print(f"2AFC scores: {', '.join(f'{value:.9f}' for value in sorted(scores))}")
    if max(scores) - min(scores) > 1e-6:
        raise SystemExit("the scores differ")
    for name, of_one in zip(("official", "ours"), zip(*turns, strict=True), strict=True):
        seconds = statistics.median(turn.seconds for turn in of_one)
        processor = statistics.median(turn.processor for turn in of_one) / options.triplets
        rate = f"{options.triplets / seconds:.0f} triplets/s, {1e3 * processor:.2f} ms of processor time each"
        print(f"{name}: {rate} (medians of {len(turns)})")
    for what in ("seconds", "processor"):
        ratios = sorted(getattr(official, what) / getattr(ours, what) for official, ours in turns)
        print(f"{what}: official over ours {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
