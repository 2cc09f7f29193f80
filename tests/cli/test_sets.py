"""Folders as sets of images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_images import QUIET, TINY_BUNDLE, save_image

from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli import main
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import mean_scores, set_distance
from afv_metric.images import Reader

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of 40 and 36 noisy pictures of several sizes, those of the second noisier."""
    for side, (count, noise) in enumerate([(40, 10), (36, 60)]):
        for index in range(count):
            size = [(48, 40), (40, 48), (64, 64), (32, 33)][index % 4]
            save_image(tmp_path / f"set{side}" / f"{index}.png", seed=100 * side + index, noise=noise, size=size)
    return tmp_path / "set0", tmp_path / "set1"


def _compare_sets(folders: tuple[Path, Path], capsys: Capture, *more: str, status: int = 0) -> tuple[Any, str]:
    assert main(["sets", *map(str, folders), "--json", *more, *QUIET]) == status
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_sets_is_the_distance_of_the_middle_squares(sets: tuple[Path, Path], capsys: Capture) -> None:
    found, errors = _compare_sets(sets, capsys)
    bundle = load_bundle(TINY_BUNDLE)
    engine = FisherEngine(bundle.discriminator, bundle.output)
    means = [
        mean_scores(engine, [Reader().read(path, square=32) / 127.5 - 1 for path in sorted(folder.iterdir())])
        for folder in sets
    ]
    expected = set_distance(*means, bundle.statistics, bundle.epsilon)
    assert found["distance"]["plain"] == pytest.approx(expected, rel=1e-4)
    assert found["similarity"]["plain"] == pytest.approx(np.exp(-10 * expected), rel=1e-4)
    assert (found["images"], found["size"], found["bundle"]) == ([40, 36], 32, "tiny-bundle")
    corrected = found["distance"]["plain"] - found["bias"]
    assert found["distance"]["corrected"] == pytest.approx(corrected)
    low, high = found["distance"]["interval"]
    assert 0 < low < corrected < high
    assert found["similarity"]["interval"] == pytest.approx([np.exp(-10 * high), np.exp(-10 * low)])
    assert "unequal sizes" in errors
    assert "reaches 0" not in errors


def test_sets_prints_a_table(sets: tuple[Path, Path], capsys: Capture) -> None:
    found, _ = _compare_sets(sets, capsys)
    assert main(["sets", *map(str, sets), *QUIET]) == 0
    header, distance, similarity, bias, images = capsys.readouterr().out.splitlines()
    assert header.split() == ["plain", "corrected", "95", "%", "interval"]
    for line, name in ((distance, "distance"), (similarity, "similarity")):
        first, plain, corrected, low, to, high = line.split()
        assert (first, to) == (name, "to")
        expected = [found[name]["plain"], found[name]["corrected"], *found[name]["interval"]]
        assert [float(plain), float(corrected), float(low), float(high)] == pytest.approx(expected, rel=1e-4)
    assert re.fullmatch(r"bias +[\d.e-]+; \d+ images per set make it a tenth of the distance", bias)
    assert images == "images      40 and 36, squares of 32 pixels"


def test_sets_draws_by_the_seed(sets: tuple[Path, Path], capsys: Capture) -> None:
    one, errors = _compare_sets(sets, capsys, "--count", "20", "--seed", "3")
    same, _ = _compare_sets(sets, capsys, "--count", "20", "--seed", "3", "--batch-size", "3")
    other, _ = _compare_sets(sets, capsys, "--count", "20", "--seed", "4")
    assert one["images"] == same["images"] == [20, 20]
    assert "unequal" not in errors
    assert "fewer than 32 images" in errors
    assert same["distance"]["plain"] == pytest.approx(one["distance"]["plain"], rel=1e-4)
    assert same["distance"]["interval"] == pytest.approx(one["distance"]["interval"], rel=1e-3)
    assert abs(other["distance"]["plain"] / one["distance"]["plain"] - 1) > 1e-3


def test_sets_of_another_size_and_of_more_resamples(sets: tuple[Path, Path], capsys: Capture) -> None:
    small, _ = _compare_sets(sets, capsys)
    large, _ = _compare_sets(sets, capsys, "--size", "64", "--resamples", "10")
    assert (small["size"], large["size"]) == (32, 64)
    assert (small["resamples"], large["resamples"]) == (2000, 10)
    assert large["distance"]["plain"] != pytest.approx(small["distance"]["plain"], rel=1e-2)


def test_sets_that_do_not_differ(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    found, errors = _compare_sets((sets[0], sets[0]), capsys)
    assert found["distance"]["plain"] == pytest.approx(0, abs=1e-7)
    assert found["distance"]["corrected"] < -1e-4
    assert found["similarity"] == {"plain": pytest.approx(1), "corrected": 1, "interval": [1, 1]}
    assert found["needed"] is None
    assert "do the folders share images?" in errors
    same_kind = tmp_path / "same-kind"
    for index in range(36):
        size = [(48, 40), (40, 48), (64, 64), (32, 33)][index % 4]
        save_image(same_kind / f"{index}.png", seed=500 + index, noise=10, size=size)
    found, errors = _compare_sets((sets[0], same_kind), capsys)
    assert found["distance"]["plain"] > 0
    assert found["distance"]["interval"][0] <= 0 <= found["distance"]["interval"][1]
    assert "do not tell the two sets apart" in errors


def test_sets_goes_on_after_bad_files(sets: tuple[Path, Path], capsys: Capture) -> None:
    expected, _ = _compare_sets(sets, capsys)
    (sets[0] / "broken.png").write_text("no image")
    (sets[1] / ".hidden").write_text("no image, but nobody asked for it")
    found, errors = _compare_sets(sets, capsys, status=1)
    assert found["images"] == [40, 36]
    assert found["distance"]["plain"] == pytest.approx(expected["distance"]["plain"], rel=1e-4)
    assert re.search(r"broken\.png: cannot be read", errors)
    assert f"{sets[1]}: passed over 1 other file (1 hidden)" in errors


def test_sets_of_too_few_images(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    save_image(tmp_path / "few" / "a.png")
    (tmp_path / "few" / "b.png").write_text("no image")
    (tmp_path / "none").mkdir()
    assert main(["sets", str(tmp_path / "few"), str(tmp_path / "none"), *QUIET]) == 2
    assert "none holds no image" in capsys.readouterr().err
    assert main(["sets", str(tmp_path / "few"), str(tmp_path / "few"), *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(r"b\.png: cannot be read", printed.err)
    assert re.search(r"few: holds too few images to compare, 1", printed.err)
