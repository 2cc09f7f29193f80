"""The command from its arguments to its numbers, files, messages and exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance, __version__
from afv_metric.bundles import resolve as hub
from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli import commands as cli
from afv_metric.cli.commands import main
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS
from afv_metric.fisher.sets import mean_scores, middle_square, set_distance
from afv_metric.images.tensors import read_image

TINY_BUNDLE = str(Path(__file__).parents[1] / "data" / "tiny-bundle")
QUIET = ["--weights", TINY_BUNDLE, "--quiet"]

Capture = pytest.CaptureFixture[str]


def save_image(path: Path, seed: int = 0, noise: float = 0, size: tuple[int, int] = (48, 40)) -> Path:
    """A smooth picture of the given width and height, with noise; the seed is the noise's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 5, size[1]))
    smooth = 128 + 80 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2)
    noisy = smooth + noise * np.random.default_rng(seed).normal(size=smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


def measure(first: Path, second: Path, **settings: object) -> float:
    metric = AFVDistance(TINY_BUNDLE, **settings)  # type: ignore[arg-type]
    return float(metric(read_image(first), read_image(second)))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with three pairs, one of them in a folder of its own."""
    for index, name in enumerate(["a.png", "b.png", "deep/c.png"]):
        save_image(tmp_path / "0" / name)
        save_image(tmp_path / "1" / name, seed=index, noise=5 + 10 * index)
    return tmp_path / "0", tmp_path / "1"


@pytest.fixture
def gallery(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A reference and five images, none of them in order of its distance."""
    images = [save_image(tmp_path / f"{noise}.png", noise, noise) for noise in (20, 5, 60, 0, 40)]
    return save_image(tmp_path / "reference.png"), images


def test_compare_sorts_by_distance(gallery: tuple[Path, list[Path]], capsys: Capture) -> None:
    reference, images = gallery
    assert main(["compare", str(reference), *map(str, images), *QUIET]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    header, *lines = printed.out.splitlines()
    assert header.split() == ["distance", "file"]
    assert [Path(line.split()[1]).stem for line in lines] == ["0", "5", "20", "40", "60"]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        sorted(measure(reference, image) for image in images), rel=1e-5
    )


@pytest.mark.parametrize("form", [None, *FORMS])
def test_compare_json_is_the_metric(gallery: tuple[Path, list[Path]], form: str | None, capsys: Capture) -> None:
    reference, images = gallery
    arguments = ["compare", str(reference), *map(str, images), "--json", *QUIET, *(["--form", form] if form else [])]
    assert main(arguments) == 0
    found = {item["file"]: item["distance"] for item in json.loads(capsys.readouterr().out)}
    expected = {str(image): measure(reference, image, form=form) for image in images}
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[str(images[3])] == 0  # equal to the reference


def test_batches_change_no_number(gallery: tuple[Path, list[Path]], capsys: Capture) -> None:
    reference, images = gallery
    results = []
    for size in ("1", "2", "16"):
        assert main(["compare", str(reference), *map(str, images), "--json", "--batch-size", size, *QUIET]) == 0
        results.append({item["file"]: item["distance"] for item in json.loads(capsys.readouterr().out)})
        assert len(results[-1]) == len(images)
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


def test_batches_are_filled_and_never_too_large(
    gallery: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def record(metric: AFVDistance, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sizes.append(len(second))
        return torch.zeros(len(second))

    monkeypatch.setattr(AFVDistance, "forward", record)
    reference, images = gallery
    assert main(["compare", str(reference), *map(str, images), "--batch-size", "2", *QUIET]) == 0
    assert sizes == [2, 2, 1]


def test_compare_goes_on_after_a_bad_file(gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture) -> None:
    reference, images = gallery
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:300])
    large = save_image(tmp_path / "large.png", size=(64, 40))
    tiny = save_image(tmp_path / "tiny.png", size=(48, 31))
    missing = tmp_path / "missing.png"
    assert (
        main(["compare", str(reference), *map(str, [images[0], broken, large, tiny, missing, images[1]]), *QUIET]) == 1
    )
    printed = capsys.readouterr()
    assert [Path(line.split()[1]).stem for line in printed.out.splitlines()[1:]] == ["5", "20"]
    lines = printed.err.splitlines()
    assert len(lines) == 4
    for line, path, reason in zip(
        lines, [broken, large, tiny, missing], ["cannot be read", "64x40", "48x31", "No such file"], strict=True
    ):
        assert str(path) in line
        assert reason in line


def test_compare_without_a_reference(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png")
    assert main(["compare", str(tmp_path / "missing.png"), str(image), *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "missing.png" in printed.err


def test_map_is_hot_where_the_images_differ(tmp_path: Path, capsys: Capture) -> None:
    reference = save_image(tmp_path / "reference.png", size=(96, 64))
    pixels = np.asarray(Image.open(reference)).copy()
    pixels[40:56, 72:88] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    changed, out = tmp_path / "changed.png", tmp_path / "maps" / "out.png"
    Image.fromarray(pixels).save(changed)
    assert main(["compare", str(reference), str(changed), "--map", str(out), *QUIET]) == 0
    with Image.open(out) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (96, 64), "RGB")
        brightness = np.asarray(image).astype(float).sum(2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 36 <= row < 60
    assert 68 <= column < 92
    assert brightness[40:56, 72:88].mean() > 2 * brightness[:, :40].mean()
    largest = AFVDistance(TINY_BUNDLE, spatial=True)(read_image(changed), read_image(reference)).max()
    printed = capsys.readouterr()
    assert float(re.search(r"to ([\d.e-]+) \(pale", printed.err)[1]) == pytest.approx(float(largest), rel=1e-5)  # type: ignore[index]
    assert "changed.png" in printed.out
    assert [path.name for path in out.parent.iterdir()] == ["out.png"]


def test_map_of_equal_images(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png")
    assert main(["compare", str(image), str(image), "--map", str(tmp_path / "out.png"), *QUIET]) == 0
    assert "from 0 (black) to 0 " in capsys.readouterr().err
    assert np.asarray(Image.open(tmp_path / "out.png")).max() <= 0.35 * 255 + 3


def test_map_takes_one_image(gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture) -> None:
    reference, images = gallery
    out = tmp_path / "out.png"
    assert main(["compare", str(reference), *map(str, images), "--map", str(out), *QUIET]) == 2
    assert "exactly one" in capsys.readouterr().err
    assert not out.exists()


def test_colours_grow_lighter() -> None:
    luminance = np.array(cli._RAMP) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 20).all()


def test_dirs(folders: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["dirs", *map(str, folders), *QUIET]) == 0
    printed = capsys.readouterr()
    rows = list(csv.reader(io.StringIO(printed.out)))
    assert rows[0] == ["file", "distance"]
    assert [name for name, _ in rows[1:]] == ["a.png", "b.png", "deep/c.png"]
    expected = [measure(folders[0] / name, folders[1] / name) for name, _ in rows[1:]]
    assert [float(value) for _, value in rows[1:]] == pytest.approx(expected, rel=1e-5)
    mean = re.fullmatch(r"mean distance ([\d.]+) over 3 pairs\n", printed.err)
    assert mean
    assert float(mean[1]) == pytest.approx(np.mean(expected), rel=1e-5)


def test_dirs_goes_on_after_bad_files(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    save_image(folders[0] / "only0.png")
    save_image(folders[1] / "only1.png")
    for folder, size in zip(folders, [(48, 40), (40, 48)], strict=True):
        (folder / "aa.png").write_text("no image")
        save_image(folder / "size.png", size=size)
        save_image(folder / "z, other size.png", seed=len(folder.name), noise=9, size=(32, 36))
        (folder / ".hidden").write_text("no image, but nobody asked for it")
    out = tmp_path / "out.csv"
    assert main(["dirs", *map(str, folders), "--csv", str(out), *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    names = [row[0] for row in csv.reader(io.StringIO(out.read_text()))]
    assert names == ["file", "a.png", "b.png", "deep/c.png", "z, other size.png"]
    assert "over 4 pairs" in printed.err
    assert f"only0.png: only in {folders[0]}" in printed.err
    assert f"only1.png: only in {folders[1]}" in printed.err
    assert re.search(r"aa\.png: cannot be read", printed.err)
    assert re.search(r"size\.png: is 40x48 pixels, to be compared with 48x40", printed.err)
    assert "hidden" not in printed.err


def test_dirs_batches_change_no_number(folders: tuple[Path, Path], capsys: Capture) -> None:
    tables = []
    for size in ("1", "2", "3"):
        assert main(["dirs", *map(str, folders), "--batch-size", size, *QUIET]) == 0
        tables.append(dict(list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]))
    numbers = [{name: float(value) for name, value in table.items()} for table in tables]
    assert len(numbers[0]) == 3
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)
    assert numbers[2] == pytest.approx(numbers[0], rel=1e-5)


def test_progress_is_on_stderr(folders: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["dirs", *map(str, folders), "--weights", TINY_BUNDLE]) == 0
    printed = capsys.readouterr()
    assert "0/3" in printed.err
    assert len(printed.out.splitlines()) == 4


def test_names_that_are_no_text_are_escaped(folders: tuple[Path, Path]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        for folder in folders:
            (folder / "a.png").rename(folder / name)
    except OSError:
        pytest.skip("the file system takes text only")
    out = folders[0].parent / "out.csv"
    assert main(["dirs", *map(str, folders), "--csv", str(out), *QUIET]) == 0
    names = [row[0] for row in csv.reader(io.StringIO(out.read_text(encoding="utf-8")))]
    assert names == ["file", "b.png", "caf\\udce9.png", "deep/c.png"]


def test_dirs_without_a_pair(tmp_path: Path, capsys: Capture) -> None:
    save_image(tmp_path / "0" / "a.png")
    save_image(tmp_path / "1" / "b.png")
    assert main(["dirs", str(tmp_path / "0"), str(tmp_path / "1"), *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == "file,distance\n"
    assert "not one pair" in printed.err
    assert "mean" not in printed.err


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
    engine = FisherEngine(bundle.discriminator, bundle.energy)
    means = [
        mean_scores(engine, [middle_square(read_image(path) / 127.5 - 1, 32) for path in sorted(folder.iterdir())])
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
    assert re.fullmatch(r"bias +[\d.e-]+; \d+ images a set make it a tenth of the distance", bias)
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
    save_image(sets[1] / "tiny.png", size=(48, 31))
    (sets[1] / ".hidden").write_text("no image, but nobody asked for it")
    found, errors = _compare_sets(sets, capsys, status=1)
    assert found["images"] == [40, 36]
    assert found["distance"]["plain"] == pytest.approx(expected["distance"]["plain"], rel=1e-4)
    assert re.search(r"broken\.png: cannot be read", errors)
    assert re.search(r"tiny\.png: is 48x31 pixels", errors)
    assert "hidden" not in errors


def test_sets_of_too_few_images(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    save_image(tmp_path / "few" / "a.png")
    (tmp_path / "few" / "b.png").write_text("no image")
    (tmp_path / "none").mkdir()
    assert main(["sets", str(tmp_path / "few"), str(tmp_path / "none"), *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(r"b\.png: cannot be read", printed.err)
    assert re.search(r"few: holds too few images to compare, 1", printed.err)
    assert re.search(r"none: holds too few images to compare, 0", printed.err)


def test_info(capsys: Capture) -> None:
    assert main(["info", TINY_BUNDLE]) == 0
    text = capsys.readouterr().out
    assert main(["info", TINY_BUNDLE, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    metric = AFVDistance(TINY_BUNDLE)
    parameters = len(metric.score_vectors(torch.zeros(1, 3, 32, 32))[0])
    assert record["name"] == "tiny-bundle"
    assert record["sha256"] == metric.bundle_hash
    assert record["parameters"] == parameters
    assert (record["form"], tuple(record["levels"])) == (metric.form, metric.levels)
    assert record["discriminator"]["width"] == 4
    assert record["statistics"] == {"count": 50, "source": "generator", "seed": 0}
    assert record["training"]["iterations"] == 0
    assert record["licence"] == {"weights": "BSD-2-Clause"}
    for line in (
        f"sha256: {metric.bundle_hash}",
        f"parameters: {parameters}",
        "levels: 0.2, 0.4, 0.4",
        "blocks: 1, 2",
        "pooling: 8.0",
        "  source: generator",
        "    latent_size: 8",
        "  weights: BSD-2-Clause",
    ):
        assert line in text.splitlines()
    assert "ship" not in text


def test_info_of_the_default_lists_all(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(hub, "_shipped_roots", lambda: [Path(TINY_BUNDLE).parent])
    monkeypatch.setattr(cli, "DEFAULT_BUNDLE", "tiny-bundle")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name: tiny-bundle"
    assert lines[-1] == "bundles that ship with the package: tiny-bundle"


def test_cite(capsys: Capture) -> None:
    assert main(["cite", "--weights", TINY_BUNDLE, "--form", "local"]) == 0
    digest = AFVDistance(TINY_BUNDLE).bundle_hash[:12]
    assert capsys.readouterr().out == (
        f"afv_metric {__version__}, bundle tiny-bundle (sha256 {digest}), form local, levels 0.2/0.4/0.4, "
        "blocks 1/2, pooling 8; "
        f"Zhai et al., NeurIPS 2019, arXiv:1910.13101; torch {torch.__version__}\n"
    )
    assert main(["cite", "--weights", TINY_BUNDLE]) == 0
    assert "form activation," in capsys.readouterr().out
    assert main(["cite", "--weights", TINY_BUNDLE, "--form", "fisher"]) == 0
    assert "form fisher, levels 0.2/0.4/0.4; Zhai" in capsys.readouterr().out  # all layers, and no positions


@pytest.mark.parametrize("arguments", [["info", "no such bundle"], ["cite", "--weights", "no such bundle"]])
def test_wrong_bundle(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot find a bundle 'no such bundle'" in printed.err


def test_damaged_bundle(tmp_path: Path, capsys: Capture) -> None:
    for path in Path(TINY_BUNDLE).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    assert main(["cite", "--weights", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["compare", "a.png"], "IMG"),
        (["compare", "a.png", "b.png", "--form", "euclid"], "euclid"),
        (["matrix", ".", "--batch-size", "0"], "at least 1"),
        (["sets", ".", ".", "--size", "48"], "48"),
        (["sets", ".", ".", "--resamples", "0"], "at least 1"),
        (["dirs", ".", ".", "--device", "abacus"], "abacus"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "mention"),
    [
        ("compare", "--map PNG"),
        ("dirs", "DIR0 DIR1"),
        ("matrix", "--csv FILE"),
        ("sets", "--resamples R"),
        ("info", "BUNDLE"),
        ("cite", "--form"),
    ],
)
def test_every_command_has_help(command: str, mention: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert mention in capsys.readouterr().out


def test_a_file_is_no_folder(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png")
    assert main(["matrix", str(image), *QUIET]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_auto_device_and_all_forms_are_accepted(tmp_path: Path, capsys: Capture) -> None:
    image = str(save_image(tmp_path / "a.png"))
    assert main(["compare", image, image, "--device", "auto", *QUIET]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0", image]
    (command,) = (action for action in cli._make_parser()._actions if action.choices)
    for name in ("compare", "dirs", "matrix", "cite"):
        (form,) = (action for action in command.choices[name]._actions if action.dest == "form")  # type: ignore[index]
        assert tuple(form.choices) == tuple(FORMS)


def test_module_runs_as_a_command() -> None:
    run = subprocess.run([sys.executable, "-m", "afv_metric", "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stderr == ""
    for command in ("compare", "dirs", "matrix", "sets", "info", "cite"):
        assert re.search(rf"^\s+{command}\s", run.stdout, re.MULTILINE)
