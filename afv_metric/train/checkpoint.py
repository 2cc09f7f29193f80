"""Complete training checkpoints: a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from afv_metric.files import atomic_write
from afv_metric.train.log import read_records
from afv_metric.train.recipes import Recipe

__all__ = [
    "best_checkpoints", "checkpoint_at", "checkpoints", "latest_checkpoint", "load_checkpoint", "load_newest",
    "prune_checkpoints", "read_recipe", "rewind", "sample_grids", "save_checkpoint",
]  # fmt: skip

_SIMILARITY = "fisher_similarity/held_out"
# What runs did that were made before a setting existed, where that is not its default of today.
_EARLIER = {"held_out": 0.0, "strided_stem": False, "tolerance": 0.0}
_GONE = {"reconstruction": 0.0}  # settings of earlier versions, and the values at which they did nothing
_LOGS = ("stats.jsonl", "monitors.jsonl")
_TEMPORARY = re.compile(r"\.(checkpoint-\d+|samples-\d+|recipe|machines|stats|monitors|stream)-[0-9a-f]{16}\.\w+")


def checkpoint_at(run: str | Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is kept."""
    return Path(run) / f"checkpoint-{iteration:07d}.pt"


def checkpoints(run: str | Path) -> dict[int, Path]:
    """Find all checkpoints of a run by their iterations, oldest first; files of other names are passed over."""
    return _numbered(run, "checkpoint", ".pt")


def sample_grids(run: str | Path) -> dict[int, Path]:
    """Find all pictures of samples of a run by their iterations, oldest first; files of other names are passed over."""
    return _numbered(run, "samples", ".png")


def _numbered(run: str | Path, stem: str, suffix: str) -> dict[int, Path]:
    name = re.compile(rf"{stem}-(\d{{7,}}){re.escape(suffix)}", re.ASCII)  # as checkpoint_at pads them
    found = ((name.fullmatch(path.name), path) for path in Path(run).glob(f"{stem}-*") if path.is_file())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def latest_checkpoint(run: str | Path) -> Path | None:
    """Find the newest checkpoint of a run, if there is one."""
    return next(reversed(checkpoints(run).values()), None)


def best_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The checkpoints that are kept with the highest Fisher Similarity of held-out images, best first."""
    kept = checkpoints(run)
    lines = [line for line in read_records(Path(run) / "monitors.jsonl") if _SIMILARITY in line]
    ranked = sorted(lines, key=lambda line: float(line[_SIMILARITY]), reverse=True)
    return [kept[line["iteration"]] for line in ranked if line["iteration"] in kept][:count]


def save_checkpoint(run: str | Path, state: dict[str, Any]) -> Path:
    """Write the state of a run, of tensors and plain Python values, atomically."""
    path = checkpoint_at(run, state["iteration"])
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain values are accepted, never code.

    Raises:
        ValueError: If it is no whole checkpoint.
    """
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch promises none in particular; a cut file gives OSError, EOFError and others
            reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
            raise ValueError(f"{path} is cut short, damaged or no checkpoint ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("recipe"), dict) or "iteration" not in state:
        raise ValueError(f"{path} is no checkpoint of a run")
    return state


def load_newest(run: str | Path) -> tuple[dict[str, Any] | None, dict[Path, str]]:
    """Read the newest whole checkpoint of a run, None if there are none; and what is wrong with newer ones.

    Raises:
        ValueError: If none of the checkpoints is whole.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(run).values()):
        try:
            return load_checkpoint(path), damaged
        except ValueError as error:
            damaged[path] = str(error)
    if damaged:
        raise ValueError(f"{'; '.join(damaged.values())}. {run} has no whole checkpoint; begin anew in another folder")
    return None, damaged


def read_recipe(saved: Mapping[str, Any]) -> Recipe:
    """The recipe that a run or a bundle recorded, also an earlier version of this package.

    Settings that did not exist then get the value that describes what was done without them; those that are gone are
    left out where they did nothing.

    Raises:
        ValueError: If there are settings that this version does not know.

    Example:
        >>> read_recipe({"width": 4}).held_out, read_recipe({"width": 4, "held_out": 0.1}).held_out
        (0.0, 0.1)
    """
    known = {field.name for field in fields(Recipe)}
    saved = {name: value for name, value in saved.items() if name not in _GONE or value != _GONE[name]}
    if unknown := sorted(saved.keys() - known):
        raise ValueError(f"the recorded settings {', '.join(unknown)} are unknown: a newer afv_metric is needed")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return Recipe(**_EARLIER | settings)  # type: ignore[arg-type]


def prune_checkpoints(run: str | Path, *, milestone_interval: int, best: int) -> None:
    """Remove all checkpoints but the last two, the milestones and the best by held-out Fisher Similarity."""
    found, the_best = checkpoints(run), best_checkpoints(run, best)
    for iteration, path in list(found.items())[:-2]:
        if iteration % milestone_interval and path not in the_best:
            path.unlink()


def rewind(run: str | Path, iteration: int) -> None:
    """Forget what a run did after an iteration: lines, checkpoints, pictures, and what a kill left half-written."""
    run = Path(run)
    for path in filter(Path.is_file, (run / name for name in _LOGS)):
        kept = [line for line in read_records(path) if line["iteration"] <= iteration]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    numbered = [*checkpoints(run).items(), *sample_grids(run).items()]
    later = [path for number, path in numbered if number > iteration]
    for path in [*later, *(path for path in run.glob(".*") if _TEMPORARY.fullmatch(path.name))]:
        path.unlink()
