"""What a run writes down while it trains: JSON lines, and TensorBoard's events where that is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Log", "read_records"]


class Log:
    """Appends records to ``stats.jsonl`` and ``monitors.jsonl`` in the folder of a run.

    Events of TensorBoard from after the iterations done, of a branch that was given up, are void.
    """

    def __init__(self, run: Path, iteration: int = 0) -> None:
        self._run = run
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(run / "tensorboard", purge_step=iteration + 1)

    def write(self, name: str, iteration: int, seconds: float, values: Mapping[str, float]) -> None:
        """Append to ``"stats"`` or ``"monitors"`` what was measured after so many iterations and seconds."""
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read what a :class:`Log` has written, in order of iterations.

    A kill may leave half of a last line, which is left out. A run that was resumed from an earlier checkpoint may have
    repeated some iterations: the later record counts. Without the file there are no records.

    Raises:
        ValueError: If another line than the last is no record, naming it.
    """
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is no record of an iteration: {error!r}") from error
        while records and records[-1]["iteration"] >= iteration:
            records.pop()
        records.append(record)
    return records
