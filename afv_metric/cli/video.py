"""``video``: distances of two videos, frame by frame."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate
from tqdm import tqdm

from afv_metric.cli.items import load_metric
from afv_metric.cli.options import add_device, add_json, add_metric, add_quiet, add_reading, reader_of
from afv_metric.cli.outcome import Problems, describe, emit, if_interrupted
from afv_metric.cli.outputs import CSVRows, try_output

if TYPE_CHECKING:
    from afv_metric.video import FrameDistance

__all__ = ["add_video"]

_PERCENTILES = (50, 90, 95, 99)


def add_video(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``video``."""
    command.add_argument("first", type=Path, metavar="A", help="video file, or folder of frames")
    command.add_argument("second", type=Path, metavar="B", help="video of as many frames of the same size")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write a row per frame there, as it comes")
    add_json(command)
    add_metric(command)
    add_reading(command)
    add_device(command)
    add_quiet(command)
    command.set_defaults(command=_video)


def _video(options: argparse.Namespace) -> int:
    from afv_metric.video import compare_frames, read_frames

    try_output(options.csv, "--csv", (options.first, options.second))
    metric, problems = load_metric(options), Problems(options.debug)
    reader = reader_of(options, [options.first, options.second], metric)
    frames = [
        (image.to(options.device) for image in read_frames(path, reader)) for path in (options.first, options.second)
    ]
    found: list[FrameDistance] = []
    try:
        with (
            if_interrupted(lambda: f"interrupted: {len(found)} frames are compared"),
            CSVRows(options.csv, ("frame", "distance", "temporal")) as table,
        ):
            for frame in tqdm(compare_frames(metric, *frames), disable=options.quiet, leave=False, unit="frame"):
                if options.csv:
                    change = "" if math.isnan(frame.temporal) else f"{frame.temporal:.6g}"
                    table.write([(str(len(found)), f"{frame.distance:.6g}", change)])
                found.append(frame)
    except (OSError, ValueError) as error:  # of one of the videos
        if not found:
            raise
        problems.add(f"after {len(found)} frames: {describe(error)}", error)
    finally:
        if found:
            _print_summary(found, options.json)
    return problems.status


def _print_summary(found: list[FrameDistance], as_json: bool) -> None:
    import numpy as np

    distances = np.array([frame.distance for frame in found])
    changes = np.array([frame.temporal for frame in found[1:]])
    summary = {
        "frames": len(found),
        "mean": float(distances.mean()),
        **{f"p{share}": float(np.percentile(distances, share)) for share in _PERCENTILES},
        "worst": float(distances.max()),
        "worst_frame": int(distances.argmax()),
        "temporal": float(abs(changes).mean()) if len(changes) else None,
    }
    if as_json:
        emit(json.dumps({**summary, "distances": distances.tolist(), "temporals": changes.tolist()}, indent=2))
    else:
        rows = [(name, "" if value is None else f"{value:.6g}") for name, value in summary.items()]
        emit(tabulate(rows, tablefmt="plain", disable_numparse=True))
