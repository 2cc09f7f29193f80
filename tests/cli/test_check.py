"""The quality gate: statuses, reports, and what is shown of images that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from cli_images import QUIET, measure, save_image
from PIL import Image

from afv_metric.cli import main
from afv_metric.images import read_image

Capture = pytest.CaptureFixture[str]


def limit_between(folders: tuple[Path, Path]) -> tuple[list[float], str]:
    """Distances of the three pairs, which grow with the noise, and a limit that the last exceeds."""
    values = [measure(folders[0] / name, folders[1] / name) for name in ("a.png", "b.png", "deep/c.png")]
    assert values[0] < values[1] < values[2]
    return values, f"{(values[1] + values[2]) / 2:g}"


def test_status_of_folders(folders: tuple[Path, Path], capsys: Capture) -> None:
    values, limit = limit_between(folders)
    assert main(["check", *map(str, folders), "--at-most", "1e9", *QUIET]) == 0
    assert capsys.readouterr() == ("", "0 of 3 pairs above 1e+09, 0 errors\n")
    assert main(["check", *map(str, folders), "--at-most", limit, *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == ["distance", "file", f"{values[2]:.6g}", "deep/c.png"]
    assert printed.err == f"1 of 3 pairs above {limit}, 0 errors\n"


def test_status_of_files(folders: tuple[Path, Path], capsys: Capture) -> None:
    pair = [str(folder / "b.png") for folder in folders]
    assert main(["check", *pair, "--at-most", "1e9", *QUIET]) == 0
    assert main(["check", *pair, "--at-most", "0", *QUIET]) == 1
    assert main(["check", pair[0], pair[0], "--at-most", "0", *QUIET]) == 0
    assert main(["check", pair[0], str(folders[1]), "--at-most", "1", *QUIET]) == 2
    assert "two images or two folders were expected" in capsys.readouterr().err
    for wrong in ("-1", "nan"):
        assert main(["check", *pair, "--at-most", wrong, *QUIET]) == 2


def test_a_missing_or_broken_image_fails(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    (folders[1] / "a.png").unlink()
    (folders[1] / "b.png").write_text("no image")
    junit = tmp_path / "out" / "report.xml"
    arguments = ["check", *map(str, folders), "--at-most", "1e9", "--json", "--junit", str(junit), *QUIET]
    assert main(arguments) == 1
    record = json.loads(capsys.readouterr().out)
    assert [(item["file"], item["passed"]) for item in record["items"]] == [("deep/c.png", True)]
    assert [error.partition(": ")[0] for error in record["errors"]] == ["a.png", str(folders[1] / "b.png")]
    suite = ElementTree.parse(junit).getroot()
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "0",
        "errors": "2",
    }
    assert next(case.get("name") for case in suite if case.find("error") is not None) == "a.png"


def test_reports_name_what_failed(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    odd = "deep/c\x01<&>.png"
    for folder in folders:
        (folder / "deep" / "c.png").rename(folder / odd)
    junit, maps = tmp_path / "report.xml", tmp_path / "maps"
    arguments = ["--json", "--junit", str(junit), "--maps", str(maps), *QUIET]
    values = [measure(folders[0] / name, folders[1] / name) for name in ("a.png", "b.png", odd)]
    limit = (values[1] + values[2]) / 2
    assert main(["check", *map(str, folders), "--at-most", str(limit), *arguments]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["at_most"], record["form"]) == (limit, "activation")
    assert [item["passed"] for item in record["items"]] == [True, True, False]
    assert [item["distance"] for item in record["items"]] == pytest.approx(values, rel=1e-5)
    (failure,) = ElementTree.parse(junit).getroot().findall("testcase[failure]")
    assert failure.get("name") == "deep/c\ufffd<&>.png"
    assert failure.find("failure").get("message") == f"distance {values[2]:.6g}, at most {limit:g}"  # type: ignore[union-attr]
    assert [file.name for file in maps.iterdir()] == ["001-deep_c_.png.png"]
    assert read_image(maps / "001-deep_c_.png.png").shape == (1, 3, 40, 48)


def test_pairs_by_stem(folders: tuple[Path, Path], capsys: Capture) -> None:
    """One of a stem on each side; where there are two, nobody can tell which."""
    with Image.open(folders[1] / "a.png") as image:
        image.save(folders[1] / "a.bmp")
    (folders[1] / "a.png").unlink()
    shutil.copy(folders[0] / "b.png", folders[0] / "d.png")
    for suffix in ("bmp", "gif"):
        with Image.open(folders[0] / "d.png") as image:
            image.save(folders[1] / f"d.{suffix}")
    assert main(["dirs", *map(str, folders), *QUIET]) == 1
    printed = capsys.readouterr()
    assert [line.partition(",")[0] for line in printed.out.splitlines()] == ["file", "a.png", "b.png", "deep/c.png"]
    assert [line for line in printed.err.splitlines() if "error" in line] == [
        f"error: d.png: only in {folders[0]}",
        f"error: d.bmp: only in {folders[1]}",
        f"error: d.gif: only in {folders[1]}",
    ]


def test_pairs_by_a_table(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("a.png,a.png\na.png,deep/c.png\n\n")
    assert main(["dirs", *map(str, folders), "--pairs", str(table), *QUIET]) == 0
    rows = dict(line.split(",") for line in capsys.readouterr().out.splitlines()[1:])
    assert list(rows) == ["a.png", "a.png | deep/c.png"]
    other = measure(folders[0] / "a.png", folders[1] / "deep" / "c.png")
    assert float(rows["a.png | deep/c.png"]) == pytest.approx(other, rel=1e-5)
    table.write_text("a.png,a.png\nb.png\n")
    assert main(["dirs", *map(str, folders), "--pairs", str(table), *QUIET]) == 2
    assert "pairs.csv, line 2: two columns were expected" in capsys.readouterr().err


def test_other_sizes_are_resized_or_cropped(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png", size=(60, 40))
    pixels = read_image(image)[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels[:, 6:54]).save(tmp_path / "middle.png")
    Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(tmp_path / "twice.png")
    for name, option in (("middle.png", "--crop"), ("twice.png", "--resize")):
        arguments = ["compare", str(image), str(tmp_path / name), *QUIET]
        assert main(arguments) == 1
        assert "--resize or --crop" in capsys.readouterr().err
        assert main([*arguments, option, "--map", str(tmp_path / "map.png")]) == 0
        value = float(capsys.readouterr().out.split()[2])
        assert value == 0 if option == "--crop" else value < 0.05
        assert read_image(tmp_path / "map.png").shape[2:] == ((40, 48) if option == "--crop" else (40, 60))


def test_mean_has_an_interval(folders: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["dirs", *map(str, folders), *QUIET]) == 0
    low, high = map(float, capsys.readouterr().err.partition("[")[2].partition("]")[0].split(","))
    values, _ = limit_between(folders)
    assert values[0] * 0.999 <= low < np.mean(values) < high <= values[2] * 1.001
