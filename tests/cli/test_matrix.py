"""Distances of all pairs."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_images import QUIET, measure, save_image

from afv_metric import AFVDistance, Embedding
from afv_metric.cli import main
from afv_metric.fisher.forms import FORMS
from afv_metric.images import read_image

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("size", ["1", "2", "16"])
@pytest.mark.parametrize("form", list(FORMS))
def test_matrix(gallery: tuple[Path, list[Path]], form: str, size: str, capsys: Capture) -> None:
    folder = gallery[0].parent
    assert main(["matrix", str(folder), "--batch-size", size, "--form", form, *QUIET]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["", "0.png", "20.png", "40.png", "5.png", "60.png", "reference.png"]
    assert [row[0] for row in rows] == header[1:]
    numbers = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_array_equal(numbers, numbers.T)
    np.testing.assert_array_equal(numbers.diagonal(), 0)
    for row, column in ((1, 2), (3, 4), (0, 4)):
        expected = measure(folder / header[1 + row], folder / header[1 + column], form=form)
        assert numbers[row, column] == pytest.approx(expected, rel=1e-5)


def test_matrix_leaves_other_sizes_empty(gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture) -> None:
    for noise in (0, 9):
        save_image(tmp_path / f"wide{noise}.png", noise=noise, size=(64, 40))
    (tmp_path / "broken.png").write_text("no image")
    out = tmp_path / "tables" / "out.csv"
    assert main(["matrix", str(tmp_path), "--csv", str(out), *QUIET]) == 1
    header, *rows = csv.reader(io.StringIO(out.read_text()))
    assert "broken.png" not in header
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["wide0.png"]["20.png"] == table["20.png"]["wide0.png"] == ""
    assert float(table["wide0.png"]["wide9.png"]) > 0
    assert float(table["20.png"]["40.png"]) > 0
    errors = capsys.readouterr().err
    assert re.search(r"broken\.png: cannot be read", errors)
    assert "64x40: wide0.png, wide9.png" in errors


def test_a_file_is_no_folder(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png")
    assert main(["matrix", str(image), *QUIET]) == 2
    assert "is a file; a folder of images was expected" in capsys.readouterr().err


def test_an_image_without_memory_leaves_its_cells_empty(
    gallery: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    embed = AFVDistance.embed
    broken = read_image(gallery[0].parent / "40.png")

    def failing(metric: AFVDistance, images: torch.Tensor) -> Embedding:
        if any(torch.equal(image, broken[0]) for image in images):
            raise MemoryError
        return embed(metric, images)

    monkeypatch.setattr(AFVDistance, "embed", failing)
    assert main(["matrix", str(gallery[0].parent), "--batch-size", "4", *QUIET]) == 1
    printed = capsys.readouterr()
    header, *rows = csv.reader(io.StringIO(printed.out))
    column = header.index("40.png")
    for row in rows:
        assert [not value for value in row[1:]] == [row[0] == "40.png" or index == column for index in range(1, 7)]
    assert re.fullmatch(r"error: 40\.png \(48x40 pixels\): cannot be compared: out of memory.*\n", printed.err)


def test_rows_are_kept_when_it_is_interrupted(
    gallery: tuple[Path, list[Path]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    out = tmp_path_factory.mktemp("tables") / "out.csv"
    given = ["matrix", str(gallery[0].parent), "--batch-size", "2", "--csv", str(out), *QUIET]
    assert main(given) == 0
    whole = out.read_text().splitlines()
    between, calls = AFVDistance.distance_between, []

    def stop(metric: AFVDistance, *blocks: Embedding) -> torch.Tensor:
        calls.append(blocks)
        if len(calls) > 4:  # three for the first two rows
            raise KeyboardInterrupt
        return between(metric, *blocks)

    monkeypatch.setattr(AFVDistance, "distance_between", stop)
    assert main(given) == 130
    assert capsys.readouterr().err == f"interrupted: 2 of 6 rows are in {out}\n"
    assert out.read_text().splitlines() == whole[:3]
