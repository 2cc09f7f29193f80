"""The training loop: steps of the generator, then steps of the discriminator, and what happens at intervals.

Every random number is a function of the seed, the iteration and the process, so a run that was killed and resumed
goes on exactly as if it had never stopped, whatever else used random numbers in between.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.distributed import any_rank, average, rank_and_world_size
from afv_metric.files import atomic_write, locked, made_folder
from afv_metric.images.augment import augment
from afv_metric.images.cache import ImageSet, ImageView, draw_images, load_images, split_held_out
from afv_metric.images.grid import save_grid
from afv_metric.images.reading import Reader
from afv_metric.images.rounds import Rounds
from afv_metric.images.tiles import Tiling
from afv_metric.runtime import record_machine
from afv_metric.train.checkpoint import (
    checkpoint_at,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    read_recipe,
    rewind,
    save_checkpoint,
)
from afv_metric.train.divergence import DivergenceError, Watch
from afv_metric.train.log import Log
from afv_metric.train.losses import discriminator_loss, generator_loss, gradient_penalty, proximal_term
from afv_metric.train.monitor import Monitor
from afv_metric.train.negatives import corrupt
from afv_metric.train.recipes import Recipe
from afv_metric.train.settings import check_resumable, resolve_precision
from afv_metric.train.state import State
from afv_metric.train.tolerance import measure_tolerance

__all__ = ["StoppedError", "iterate", "train"]

Paths = str | Path | Sequence[str | Path]

_MOST_ROLLBACKS = 5
_FREE = {"name", "iterations", "keep_best", "monitor_samples"}  # settings that may change in a run, beside intervals
_log = logging.getLogger(__name__)


class StoppedError(RuntimeError):
    """The run was asked to stop by the signal of this number, has saved its state, and can be resumed."""

    def __init__(self, number: int, iteration: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} and saved at iteration {iteration}")
        self.signal = number


def train(
    recipe: Recipe,
    data: Paths,
    out: str | Path,
    *,
    held_out: Paths = (),
    init: Bundle | None = None,
    evaluate: Callable[[Bundle], dict[str, float]] | None = None,
    reader: Reader | None = None,
    tiling: Tiling | None = None,
    cache: str | Path | None = None,
    on_divergence: Literal["stop", "rollback"] = "stop",
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Path:
    """Train a discriminator and a generator, or go on with a run that was interrupted.

    In a job of several processes (``torchrun``) each takes its share of every batch, and the first writes.

    A run can only be resumed with the settings and the images it began with, except its length and its intervals. Data
    and held-out images, which the monitors alone see, are folders, archives or a stream, see
    :func:`~afv_metric.images.cache.load_images`; the recipe sets a share of the data aside if none are held out. A new
    run may start from the two networks of a bundle. ``evaluate`` scores a bundle by name, for the monitors alone, see
    :func:`bapps_eval.watch.make_evaluation`. When a network collapses or a number is not finite, the run stops, or goes
    back to the checkpoint before the last and on with half the learning rates.

    Returns:
        The folder of the run, with checkpoints, ``stats.jsonl``, ``monitors.jsonl``, ``recipe.json`` and
        ``samples-*.png``.

    Raises:
        BlockingIOError: If another process trains in this folder.
        ValueError: If the folder holds a run with other settings or data, naming them, or the data are too few.
        DivergenceError: If training fails; the last good checkpoints are kept.
        StoppedError: If SIGINT or SIGTERM arrived; the state is saved.
    """
    device, out = torch.device(device), Path(out)
    rank, processes = rank_and_world_size()
    quiet = quiet or rank > 0
    reader = replace(reader or Reader(), channels=recipe.channels)
    if on_divergence not in ("stop", "rollback"):
        raise ValueError(f'on_divergence must be "stop" or "rollback", got {on_divergence!r}')
    if recipe.batch_size % processes:
        raise ValueError(f"a batch of {recipe.batch_size} cannot be shared equally by {processes} processes")

    def load(paths: Paths, position: Any = None) -> ImageSet:
        """The first process decodes into the cache, the others then find it there."""
        settings: dict[str, Any] = {"reader": reader, "tiling": tiling, "cache": cache, "quiet": quiet}
        if rank:
            distributed.barrier()
        found = load_images(paths, 2 * recipe.image_size, position=position, **settings)
        if processes > 1 and rank == 0:
            distributed.barrier()
        return found

    with locked(out) if rank == 0 else nullcontext(), made_folder(out):
        # Everything is checked before anything is written.
        saved, damaged = load_newest(out)
        begun = saved["recipe"] if saved else _read_begun(out)
        recipe = resolve_precision(recipe, begun, device)
        if begun:
            check_resumable(recipe, asdict(read_recipe(begun)), out, _FREE)
        if saved and saved["iteration"] >= recipe.iterations:
            _log.info("%s has done its %d iterations already", out, saved["iteration"])
            return out
        images = everything = load(data)
        facts: dict[str, Any] = {"data": images.fingerprint, "held_out": ""}
        if held_out:
            aside = load(held_out)
            facts["held_out"] = aside.fingerprint
        else:
            images, aside = split_held_out(images, recipe.held_out, recipe.seed)
        if recipe.images and everything.end is not None:
            raise ValueError(f"images={recipe.images} is for data that are read whole; of a stream give no number")
        images = draw_images(images, recipe.images, recipe.seed)
        for name, option in (("data", "--data"), ("held_out", "--held-out")):
            if saved and saved.get(name, facts[name]) != facts[name]:
                raise ValueError(f"{out} was begun with other images; give the same {option}, or another --out")
        if reader.data_range:
            facts["data_range"] = list(reader.data_range)
        rounds = Rounds(
            everything,
            images.images,
            aside.names,
            partial(load, data),
            recipe.batch_size * recipe.discriminator_steps,
            out / "stream.json",
            writes=rank == 0,
        )
        state = State(recipe, device)
        if saved:
            facts |= _take_up(state, saved, out)
        elif init:
            state.start_from(init)
            facts |= {"init": f"{init.name} {init.hash}", "before": dict(init.training)}
        else:
            facts["init"] = ""
        writer = None
        if rank == 0:
            monitor = Monitor(recipe, images, aside, evaluate=evaluate, device=device)
            for path, what in damaged.items():
                _log.warning("%s; it is now %s", what, path.rename(path.with_name(f"damaged-{path.name}")).name)
            if saved:
                _log.info("resuming %s at iteration %d", out, state.iteration)
            if begun:
                rewind(out, state.iteration if saved else -1)
            writer = _Writer(recipe, out, facts, monitor, state)
            record_machine(out, device, processes)
        _run(state, recipe, rounds, writer, out, on_divergence, quiet)
    return out


def _run(
    state: State, recipe: Recipe, rounds: Rounds, writer: _Writer | None, out: Path, on_divergence: str, quiet: bool
) -> None:
    """Train to the end; the first process alone has a writer."""
    device = next(state.generator.parameters()).device
    intervals = (recipe.checkpoint_interval, recipe.monitor_interval, recipe.milestone_interval)
    watch = Watch()
    bar = tqdm(total=recipe.iterations, initial=state.iteration, desc="training", disable=quiet, unit="it")
    with bar, _signals() as received:
        while state.iteration < recipe.iterations:
            try:
                images = rounds.at(state.iteration)
                began = time.perf_counter()
                statistics = iterate(state, recipe, images, device)
                seconds = time.perf_counter() - began
                statistics["data_share"] = statistics.pop("data_seconds") / seconds
                state.seconds += seconds
                state.iteration += 1
                bar.update()
                stop = any_rank(bool(received), device)
                last = stop or state.iteration == recipe.iterations
                if state.iteration % recipe.log_interval == 0:
                    joint = torch.stack([value.float().cpu() for value in statistics.values()])
                    average([joint])
                    values = dict(zip(statistics, joint.tolist(), strict=True))
                    watch.check(state.iteration, values)
                    bar.set_postfix({name: f"{values[name]:.2f}" for name in ("loss_d", "loss_g", "real", "fake")})
                    if writer:
                        writer.log.write("stats", state.iteration, state.seconds, values)
                if last or any(state.iteration % interval == 0 for interval in intervals):
                    if not state.is_finite():
                        raise DivergenceError(f"at iteration {state.iteration} weights are not finite")
                    if writer:
                        writer.save(state)
                if writer and state.iteration % recipe.sample_interval == 0:
                    writer.save_samples(state)
            except DivergenceError as error:
                if on_divergence == "stop" or state.rate_factor <= 0.5**_MOST_ROLLBACKS:
                    raise DivergenceError(f"{error}. {_advice(out)}") from error
                _log.warning("%s; going back, with half the learning rates", error)
                _roll_back(state, out)
                if writer:
                    writer.begin_again(state)
                watch = Watch()
                bar.reset(recipe.iterations)
                bar.update(state.iteration)
                continue
            if stop:
                raise StoppedError(received[0] if received else signal.SIGTERM, state.iteration)
    if writer:
        writer.log.close()


def iterate(state: State, recipe: Recipe, images: ImageView | Tensor, device: torch.device) -> dict[str, Tensor]:
    """One iteration of training, which changes the state: steps of the generator and the discriminator, both averages.

    The images are uint8 ``(N, C, 2 S, 2 S)``; the networks see crops of side S. Returned are losses, mean logits and
    their spread over the batch of this process, as scalar tensors.
    """
    discriminator, generator = state.discriminator, state.generator
    rank, processes = rank_and_world_size()
    # All processes draw the same latents and choice of images, and each takes its part; crops and noise are its own.
    shared = torch.Generator().manual_seed(_seed(recipe.seed, state.iteration, 0))
    torch.manual_seed(_seed(recipe.seed, state.iteration, 1 + rank))
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.precision]
    autocast = torch.autocast(device.type, dtype, enabled=recipe.precision != "float32")
    data_seconds = 0.0

    def draw_latents() -> Tensor:
        return generator.sample_latents(recipe.batch_size, generator=shared).chunk(processes)[rank]

    discriminator.requires_grad_(False)
    for _ in range(recipe.generator_steps):
        latents = draw_latents()
        with autocast:
            fake = generator(latents)
            logits = discriminator(fake)
        loss_generator = generator_loss(recipe.loss, logits.float())
        if recipe.gamma:
            with torch.no_grad():
                averaged = state.averaged_generator(latents)
            loss_generator = loss_generator + recipe.gamma * proximal_term(fake.float(), averaged, recipe.noise_std)
        state.step("generator", loss_generator)

    discriminator.requires_grad_(True)
    for step in range(recipe.discriminator_steps):
        if step:
            with torch.no_grad(), autocast:
                fake = generator(draw_latents())
        began = time.perf_counter()
        chosen = torch.randint(len(images), (recipe.batch_size,), generator=shared).chunk(processes)[rank]
        pixels = images[chosen]
        if device.type == "cuda" and torch.cuda.is_available():
            pixels = pixels.pin_memory()  # else the copy, and so the clock, would wait for the generator's step
        pixels = pixels.to(device, non_blocking=True).float() / 127.5 - 1
        real = augment(pixels, recipe.image_size, recipe.augmentation)
        data_seconds += time.perf_counter() - began
        kinds = [real.requires_grad_(recipe.r1 > 0), fake.detach().float()]
        corrupted = round(recipe.negatives * len(real))
        if corrupted:
            kinds.append(corrupt(real.detach()[torch.randperm(len(real))[:corrupted]]))
        with autocast:
            logits = discriminator(torch.cat(kinds))
        real_logits, *negative_logits = logits.float().split([len(kind) for kind in kinds])
        loss_discriminator = discriminator_loss(recipe.loss, real_logits, negative_logits)
        if recipe.r1:
            loss_discriminator = loss_discriminator + recipe.r1 * gradient_penalty(real_logits, real)
        if recipe.tolerance:
            with autocast:
                tolerance = measure_tolerance(discriminator, pixels)
            loss_discriminator = loss_discriminator + recipe.tolerance * tolerance.loss
        state.step("discriminator", loss_discriminator)

    state.update_averages(recipe)
    with torch.no_grad():
        statistics = {"loss_d": loss_discriminator, "loss_g": loss_generator}
        statistics |= {"real": real_logits.mean(), "fake": negative_logits[0].mean()}
        if corrupted:
            statistics["corrupted"] = negative_logits[1].mean()
        if recipe.tolerance:
            statistics |= {"shift_ratio": tolerance.shift_ratio, "disorder": tolerance.disorder}
        if len(fake) > 1:  # one image has no spread
            statistics |= {"real_spread": real_logits.mean(1).std(), "fake_spread": negative_logits[0].mean(1).std()}
            statistics["sample_variance"] = fake[:, :, ::4, ::4].float().var(0).mean()
        statistics["data_seconds"] = torch.tensor(data_seconds)
    return {name: value.detach() for name, value in statistics.items()}


class _Writer:
    """What the first process writes, and when."""

    def __init__(self, recipe: Recipe, out: Path, facts: dict[str, Any], monitor: Monitor, state: State) -> None:
        self.recipe, self.out, self.facts, self.monitor = recipe, out, facts, monitor
        seeded = torch.Generator().manual_seed(recipe.seed)
        self.latents = state.generator.sample_latents(64, generator=seeded)
        with atomic_write(out / "recipe.json") as temporary:
            temporary.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
        self.log = Log(out, state.iteration)
        if state.iteration == 0:
            self.log.write("monitors", 0, 0.0, monitor.measure(state))

    def begin_again(self, state: State) -> None:
        """Forget what came after the state, to which the run was rolled back."""
        self.log.close()
        rewind(self.out, state.iteration)
        self.log = Log(self.out, state.iteration)
        save_checkpoint(self.out, state.to_checkpoint(self.recipe) | self.facts)  # a kill keeps the lower rates

    def save(self, state: State) -> None:
        """Write a checkpoint, with a record of the monitors where one is due."""
        recipe, finished = self.recipe, state.iteration == self.recipe.iterations
        if finished or state.iteration % recipe.monitor_interval == 0:
            self.log.write("monitors", state.iteration, state.seconds, self.monitor.measure(state))
        if finished:
            self.save_samples(state)
        save_checkpoint(self.out, state.to_checkpoint(recipe) | self.facts)
        prune_checkpoints(self.out, milestone_interval=recipe.milestone_interval, best=recipe.keep_best)

    @torch.no_grad()
    def save_samples(self, state: State) -> None:
        """Write what the averaged generator makes of the same latents every time."""
        save_grid(state.averaged_generator(self.latents), self.out / f"samples-{state.iteration:07d}.png")


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _take_up(state: State, saved: dict[str, Any], out: Path) -> dict[str, Any]:
    """Give a state what a checkpoint holds; returns how the run was begun."""
    try:
        state.from_checkpoint(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        path, reason = checkpoint_at(out, saved["iteration"]), " ".join(str(error).split("\n\t")[:2])
        raise ValueError(f"{path} does not hold the state of a run with its settings ({reason})") from error
    return {name: saved[name] for name in ("init", "before") if name in saved}


def _read_begun(out: Path) -> dict[str, Any] | None:
    """The settings of a run that has no checkpoint yet; None where there is no run."""
    path = out / "recipe.json"
    if not path.is_file():
        for name in ("stats.jsonl", "monitors.jsonl", "machines.json"):
            if (out / name).exists():
                raise ValueError(f"{out} holds {name} but no recipe.json, so it is no run; choose another --out")
        return None
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        read_recipe(begun)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a run ({error}); choose another --out") from error
    return dict(begun)


def _advice(out: Path) -> str:
    if path := latest_checkpoint(out):
        return (
            f"{path} is intact; go on from it with --on-divergence rollback, or begin again with lower learning rates."
        )
    return "There is no checkpoint from before; begin again with lower learning rates."


def _roll_back(state: State, out: Path) -> None:
    """To the last checkpoint but one: the last may be from after the trouble began."""
    kept = list(checkpoints(out).values())[-2:]
    if not kept:
        raise DivergenceError(f"training has failed before its first checkpoint. {_advice(out)}")
    factor = state.rate_factor / 2
    state.from_checkpoint(load_checkpoint(kept[0]))
    state.lower_rates(factor / state.rate_factor)
    if rank_and_world_size()[1] > 1:
        distributed.barrier()  # all have read it before what follows it is removed


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, which is read between iterations; a second one acts at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
