"""The table, the CSV and the JSON say what the summaries say."""

from __future__ import annotations

import csv
import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from bapps_eval.data import PairSet, TripletSet
from bapps_eval.metrics import Metric, l2
from bapps_eval.report import format_table, write_csv, write_json
from bapps_eval.scores import Summary

SETS = [
    TripletSet("2afc/cnn", Path("a"), [(Path(),) * 3] * 7, np.zeros(7)),
    PairSet("colours", Path("b"), [(Path(),) * 2] * 20, np.zeros(20), np.repeat([0, 1], 10)),
]
METRICS = [Metric("l2", l2), Metric("afv/tiny/local", l2, "local", "tiny", "0123abcd")]
SUMMARIES = [
    Summary((0.625, -0.1), 0.2625, (0.2, 0.31), 0.0, (0.0, 0.0)),
    Summary((0.7, 0.5), 0.6, (0.55, 0.66), 0.3375, (-0.01, 0.41)),
]


def test_table_lines_up() -> None:
    lines = format_table(SETS, METRICS, SUMMARIES).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["2afc/cnn", "colours", "mean", "to", "l2"],
        ["2AFC", "SROCC", "in", "groups"],
        ["7", "20"],
    ]
    assert lines[3].split(maxsplit=3) == ["l2", "0.625", "-0.100", "0.263 [0.200, 0.310]"]
    expected = ["afv/tiny/local", "0.700", "0.500", "0.600 [0.550, 0.660]  +0.338 [-0.010, +0.410]"]
    assert lines[4].split(maxsplit=3) == expected
    assert (
        len(
            {
                line.index(end) + len(end)
                for line, end in zip(lines, ("2afc/cnn", "2AFC", "7", "0.625", "0.700"), strict=True)
            }
        )
        == 1
    )


def test_table_of_one_metric_has_no_differences() -> None:
    assert " to l2" not in format_table(SETS, METRICS[:1], SUMMARIES[:1])


def test_csv_has_all_digits(tmp_path: Path) -> None:
    write_csv(tmp_path / "new/scores.csv", SETS, METRICS, SUMMARIES)
    with (tmp_path / "new/scores.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["metric"], second["metric"]) == ("l2", "afv/tiny/local")
    assert float(first["2afc/cnn"]) == 0.625
    assert float(second["colours"]) == 0.5
    assert [float(second[f"mean{end}"]) for end in ("", "_low", "_high")] == [0.6, 0.55, 0.66]
    assert [float(second[f"difference{end}"]) for end in ("", "_low", "_high")] == [0.3375, -0.01, 0.41]


def test_json_tells_where_the_numbers_come_from(tmp_path: Path) -> None:
    write_json(tmp_path / "new/scores.json", SETS, METRICS, SUMMARIES, {"pairs": [Path("list.csv")], "limit": None})
    record = json.loads((tmp_path / "new/scores.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["python"] == platform.python_version()
    assert "afv_metric" in record["versions"]
    assert record["settings"] == {"pairs": ["list.csv"], "limit": None, "seed": 0, "resamples": 1000}
    assert [(s["name"], s["measure"], s["items"], s["groups"]) for s in record["sets"]] == [
        ("2afc/cnn", "2AFC", 7, 1),
        ("colours", "SROCC in groups", 20, 2),
    ]
    second = record["metrics"][1]
    assert second["scores"] == {"2afc/cnn": 0.7, "colours": 0.5}
    assert (second["mean"], second["interval"]) == (0.6, [0.55, 0.66])
    assert (second["difference"], second["difference_interval"]) == (0.3375, [-0.01, 0.41])
    assert (second["bundle"], second["bundle_hash"], second["form"]) == ("tiny", "0123abcd", "local")
    assert record["metrics"][0]["bundle_hash"] is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "scores"
    file.write_text("old")
    with pytest.raises(ValueError, match="shorter"):
        write_csv(file, SETS, METRICS, SUMMARIES[:1])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, SETS, METRICS, [Summary((0, 0), float("nan"), (0, 0), 0, (0, 0))] * 2, {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
