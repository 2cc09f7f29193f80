"""Complete training checkpoints: a resumed run goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from afv_metric.files import replacing

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_LATEST = "latest.pt"


def latest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None if there is none."""
    path = Path(run) / _LATEST
    return path if path.exists() else None


def save_checkpoint(run: str | Path, state: dict[str, Any], *, milestone: bool = False) -> None:
    """Write the state of a run, atomically; a milestone is kept for good under its iteration.

    Args:
        run: Folder of the run.
        state: What the loop needs to go on; tensors and plain Python values only.
        milestone: Also keep it as ``checkpoint-<iteration>.pt``.
    """
    names = [_LATEST, f"checkpoint-{state['iteration']:07d}.pt"] if milestone else [_LATEST]
    for name in names:
        with replacing(Path(run) / name) as temporary:
            torch.save(state, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain values are accepted, never code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
