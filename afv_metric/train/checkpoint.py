"""Complete training checkpoints: a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from afv_metric.files import replacing
from afv_metric.train.log import read_records

__all__ = [
    "best_checkpoints",
    "checkpoint_at",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "prune_checkpoints",
    "rewind",
    "save_checkpoint",
]

_SIMILARITY = "fisher_similarity/held_out"


def checkpoint_at(run: str | Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is kept.

    Example:
        >>> checkpoint_at("run", 500).name
        'checkpoint-0000500.pt'
    """
    return Path(run) / f"checkpoint-{iteration:07d}.pt"


def checkpoints(run: str | Path) -> dict[int, Path]:
    """All checkpoints of a run by their iterations, oldest first."""
    found = {int(path.stem.partition("-")[2]): path for path in Path(run).glob("checkpoint-*.pt")}
    return dict(sorted(found.items()))


def latest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None if there is none."""
    return next(reversed(checkpoints(run).values()), None)


def best_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The checkpoints that are kept with the highest Fisher Similarity of held-out images, best first."""
    kept = checkpoints(run)
    lines = [line for line in read_records(Path(run) / "monitors.jsonl") if _SIMILARITY in line]
    ranked = sorted(lines, key=lambda line: float(line[_SIMILARITY]), reverse=True)
    return [kept[line["iteration"]] for line in ranked if line["iteration"] in kept][:count]


def save_checkpoint(run: str | Path, state: dict[str, Any]) -> Path:
    """Write the state of a run, atomically.

    Args:
        run: Folder of the run.
        state: What the loop needs to go on; tensors and plain Python values only.
    """
    path = checkpoint_at(run, state["iteration"])
    with replacing(path) as temporary:
        torch.save(state, temporary)
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain values are accepted, never code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def prune_checkpoints(run: str | Path, *, milestone_interval: int, best: int) -> None:
    """Remove all checkpoints but the last two, the milestones and the best by held-out Fisher Similarity."""
    found = checkpoints(run)
    keep = set(list(found)[-2:]) | {iteration for iteration in found if iteration % milestone_interval == 0}
    kept = {found[iteration] for iteration in keep} | set(best_checkpoints(run, best))
    for path in found.values():
        if path not in kept:
            path.unlink()


def rewind(run: str | Path, iteration: int) -> None:
    """Forget what a run did after an iteration: lines, checkpoints, and what a kill left half-written."""
    run = Path(run)
    for path in run.glob("*.jsonl"):
        lines = read_records(path)
        kept = [line for line in lines if line["iteration"] <= iteration]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    for later, path in checkpoints(run).items():
        if later > iteration:
            path.unlink()
    for path in run.glob(".*-*"):
        if re.match(r"\.(checkpoint|samples|recipe|stats|monitors)-", path.name):
            path.unlink()
