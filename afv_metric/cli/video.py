"""``video``: distances of two videos, frame by frame."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from afv_metric.cli.items import load_metric, reader_of
from afv_metric.cli.outcome import describe, emit, if_interrupted
from afv_metric.cli.outputs import csv_rows, try_outputs
from afv_metric.video import FrameDistance, compare_frames, read_frames

__all__ = ["video"]

_PERCENTILES = (50, 90, 95, 99)


def video(options: argparse.Namespace) -> None:
    """Print how far two videos are from each other, frame by frame."""
    paths = options.first, options.second
    try_outputs(options, "csv", others=paths)
    metric = load_metric(options)
    reader = reader_of(options, paths, metric)
    frames = [(image.to(options.device) for image in read_frames(path, reader)) for path in paths]
    compared = compare_frames(metric, *frames)
    beginning = list(itertools.islice(compared, 1))  # what cannot be opened replaces no table
    found: list[FrameDistance] = []
    try:
        with (
            if_interrupted(lambda: f"interrupted: {len(found)} frames are compared"),
            csv_rows(options.csv or Path(os.devnull), ("frame", "distance", "temporal")) as write,
            tqdm(itertools.chain(beginning, compared), disable=options.quiet, leave=False, unit="frame") as bar,
        ):
            for frame in bar:
                change = "" if math.isnan(frame.temporal) else f"{frame.temporal:.6g}"
                write([(str(len(found)), f"{frame.distance:.6g}", change)])
                found.append(frame)
    except (OSError, ValueError) as error:  # of one of the videos
        if not found:
            raise
        options.problems.add(f"after {len(found)} frames: {describe(error)}", error)
    finally:
        if found:
            _print_summary(found, options.json)


def _print_summary(found: list[FrameDistance], as_json: bool) -> None:
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
