"""What a run writes down while it trains: JSON lines, and TensorBoard's events where that is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Log"]


class Log:
    """Appends records to ``stats.jsonl`` and ``monitors.jsonl`` of a run.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(run / "tensorboard")

    def write(self, name: str, iteration: int, seconds: float, values: Mapping[str, float]) -> None:
        """Append one record.

        Args:
            name: ``"stats"`` or ``"monitors"``.
            iteration: Iterations done.
            seconds: Time they took.
            values: What was measured.
        """
        record = {"iteration": iteration, "seconds": round(seconds, 1)} | dict(values)
        with (self._run / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer:
            for key, value in values.items():
                self._writer.add_scalar(f"{name}/{key}", value, iteration)
            self._writer.flush()

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._writer:
            self._writer.close()
