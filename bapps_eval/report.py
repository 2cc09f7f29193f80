"""What came out, for people and for programs: a table, CSV and JSON."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import scipy
import torch

import afv_metric
from afv_metric.files import replacing
from bapps_eval.data import JudgedSet
from bapps_eval.metrics import Metric
from bapps_eval.scores import RESAMPLES, SEED, Summary

__all__ = ["format_table", "write_csv", "write_json"]


def format_table(sets: Sequence[JudgedSet], metrics: Sequence[Metric], summaries: Sequence[Summary]) -> str:
    """Lay out the scores: a row a metric, a column a set, their mean, and its difference to the first metric.

    Below the name of each set stand its measure and number of items; in brackets, 95 % bootstrap intervals.
    """
    rows = [
        ["", *(judged.name for judged in sets), "mean", f"to {metrics[0].name}" if len(metrics) > 1 else ""],
        ["", *(judged.measure for judged in sets), "", ""],
        ["", *(str(len(judged)) for judged in sets), "", ""],
    ]
    for metric, summary in zip(metrics, summaries, strict=True):
        low, high = summary.interval
        mean = f"{summary.mean:.3f} [{low:.3f}, {high:.3f}]"
        low, high = summary.difference_interval
        difference = f"{summary.difference:+.3f} [{low:+.3f}, {high:+.3f}]" if metric is not metrics[0] else ""
        rows.append([metric.name, *(f"{score:.3f}" for score in summary.scores), mean, difference])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def write_csv(
    path: str | os.PathLike[str],
    sets: Sequence[JudgedSet],
    metrics: Sequence[Metric],
    summaries: Sequence[Summary],
) -> None:
    """Write the table with all digits: scores, means, differences and their intervals, a line a metric."""
    head = ["mean", "mean_low", "mean_high", "difference", "difference_low", "difference_high"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", *(judged.name for judged in sets), *head])
        for metric, summary in zip(metrics, summaries, strict=True):
            means = [summary.mean, *summary.interval, summary.difference, *summary.difference_interval]
            writer.writerow([metric.name, *summary.scores, *means])


def write_json(
    path: str | os.PathLike[str],
    sets: Sequence[JudgedSet],
    metrics: Sequence[Metric],
    summaries: Sequence[Summary],
    settings: Mapping[str, Any],
) -> None:
    """Write scores, intervals, counts, settings, seed and versions: all it takes to tell two runs apart."""
    record = {
        "versions": {
            "afv_metric": getattr(afv_metric, "__version__", "unknown"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "settings": dict(settings) | {"seed": SEED, "resamples": RESAMPLES},
        "sets": [
            {
                "name": judged.name,
                "measure": judged.measure,
                "items": len(judged),
                "groups": len(judged.strata),
                "source": str(judged.source),
            }
            for judged in sets
        ],
        "metrics": [
            {
                "name": metric.name,
                "bundle": metric.bundle,
                "bundle_hash": metric.bundle_hash,
                "form": metric.form,
            }
            | asdict(summary)
            | {"scores": dict(zip((judged.name for judged in sets), summary.scores, strict=True))}
            for metric, summary in zip(metrics, summaries, strict=True)
        ],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
