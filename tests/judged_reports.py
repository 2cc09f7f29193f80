"""Results of random distances on sets of every kind, and the report on all of BAPPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bapps_eval.data import FAMILIES, JudgedSet
from bapps_eval.report import Report, make_report
from bapps_eval.results import MetricRecord, Results, plan_results

METRICS = ["l2", "afv/tiny/local", "afv-random/tiny/local"]


def triplets(name: str, count: int = 10, partial: str = "") -> JudgedSet:
    judged = np.random.default_rng(count).integers(0, 6, count) / 5
    return JudgedSet("triplets", name, Path("bapps"), [(Path("a.png"),) * 3] * count, judged, partial=partial)


def same(name: str, count: int = 10) -> JudgedSet:
    judged = np.random.default_rng(count).integers(0, 4, count) / 3
    return JudgedSet("same", name, Path("bapps"), [(Path("a.png"),) * 2] * count, judged)


def pairs(name: str, groups: int = 1) -> JudgedSet:
    judged = np.random.default_rng(groups).random(20)
    numbers = np.repeat(np.arange(groups), 20 // groups)
    return JudgedSet("pairs", name, Path("scores.csv"), [(Path("a.png"),) * 2] * 20, judged, numbers)


def make_results(sets: Sequence[JudgedSet], names: Sequence[str] = METRICS) -> Results:
    """Distances at random, of metrics of one bundle."""
    random = np.random.default_rng(5)
    metrics = [
        MetricRecord(name, "tiny", "0123456789abcdef0123", "local") if "/" in name else MetricRecord(name)
        for name in names
    ]
    results = plan_results(list(sets), metrics, {"limit": None, "root": ["bapps"]}, {"torch": "2.15"})
    for distances in results.distances:
        distances[:] = random.random(distances.shape)
    return results


def make_whole() -> Report:
    """All of BAPPS val, in no order, and two lists of pairs."""
    families = [triplets(f"2afc/{family}", 10 + index) for index, family in enumerate(FAMILIES[5::-1])]
    return make_report(
        make_results([*families, same("jnd/cnn"), same("jnd/traditional"), pairs("blur"), pairs("hue", 2)])
    )
