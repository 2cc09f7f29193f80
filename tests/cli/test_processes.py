"""Commands in two processes, which meet as torchrun lets them: what they write together is what one writes alone."""

import csv
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import TINY_BUNDLE
from PIL import Image

from afv_metric.cli import main

SETTINGS = ["--weights", str(TINY_BUNDLE), "--device", "cpu", "--quiet", "--batch-size", "2"]


@pytest.fixture
def folders(tmp_path):
    chance = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(7):
            pixels = chance.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (tmp_path / "b" / "5.png").write_bytes(b"broken")
    return [str(tmp_path / name) for name in ("a", "b")]


def _in_two(arguments):
    """Exit status, stdout and stderr of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "afv_metric", *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]


def _is_like(table, other):
    rows, others = (list(csv.reader(text.splitlines())) for text in (table, other))
    assert [row[:1] for row in rows] == [row[:1] for row in others]
    for row, expected in zip(rows[1:], others[1:], strict=True):
        for value, right in zip(row[1:], expected[1:], strict=True):
            assert (value, right) == ("", "") or float(value) == pytest.approx(float(right), rel=1e-4)


@pytest.mark.slow
def test_dirs(folders, tmp_path, capsys):
    assert main(["dirs", *folders, *SETTINGS]) == 1
    alone = capsys.readouterr()
    table = tmp_path / "table.csv"
    given = ["dirs", *folders, *SETTINGS, "--csv", str(table)]
    (_, said, status), other = _in_two(given)
    assert (status, other) == (1, ("", "", 0))
    assert sorted(said.splitlines()) == sorted(alone.err.splitlines())
    _is_like(table.read_text(), alone.out)
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    assert _in_two([*given, "--resume"])[0][2] == 1
    _is_like(table.read_text(), alone.out)


@pytest.mark.slow
def test_matrix(folders, capsys):
    assert main(["matrix", folders[1], *SETTINGS]) == 1
    alone = capsys.readouterr()
    (printed, said, status), other = _in_two(["matrix", folders[1], *SETTINGS])
    assert (status, said, other) == (1, alone.err, ("", "", 0))
    _is_like(printed, alone.out)


@pytest.mark.slow
def test_sets(folders, capsys):
    given = ["sets", *folders, *SETTINGS, "--json"]
    assert main(given) == 1
    alone = capsys.readouterr()
    (printed, said, status), other = _in_two(given)
    assert (status, said, other) == (1, alone.err, ("", "", 0))
    found, expected = json.loads(printed), json.loads(alone.out)
    assert found["images"] == expected["images"]
    assert found["distance"]["corrected"] == pytest.approx(expected["distance"]["corrected"], rel=1e-4)
    assert found["distance"]["interval"] == pytest.approx(expected["distance"]["interval"], rel=1e-3)
