"""Distances between image files, from the arguments to numbers, files and messages."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_images import QUIET, TINY_BUNDLE, measure, save_image
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.cli import items, main
from afv_metric.fisher.forms import FORMS
from afv_metric.images import read_image

Capture = pytest.CaptureFixture[str]


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
    assert main(["compare", str(tmp_path / "missing.png"), str(image), *QUIET]) == 2
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


def test_dirs(folders: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["dirs", *map(str, folders), *QUIET]) == 0
    printed = capsys.readouterr()
    rows = list(csv.reader(io.StringIO(printed.out)))
    assert rows[0] == ["file", "distance"]
    assert [name for name, _ in rows[1:]] == ["a.png", "b.png", "deep/c.png"]
    expected = [measure(folders[0] / name, folders[1] / name) for name, _ in rows[1:]]
    assert [float(value) for _, value in rows[1:]] == pytest.approx(expected, rel=1e-5)
    mean = re.fullmatch(r"mean distance ([\d.]+) \[.*\] over 3 pairs\n", printed.err)
    assert mean
    assert float(mean[1]) == pytest.approx(np.mean(expected), rel=1e-5)


def test_dirs_by_several_metrics(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    table, page = tmp_path / "table.csv", tmp_path / "page.html"
    named = ["dirs", *map(str, folders), "--metric", "afv", "l2", "bapps_eval.metrics:psnr", *QUIET]
    assert main([*named, "--csv", str(table), "--html", str(page)]) == 0
    header, *rows = csv.reader(io.StringIO(table.read_text()))
    assert header == ["file", "afv", "l2", "bapps_eval.metrics:psnr"]
    assert [name for name, *_ in rows] == ["a.png", "b.png", "deep/c.png"]
    for name, afv, l2, psnr in rows:
        pair = [read_image(folder / name).double() / 127.5 for folder in folders]
        squared = float((pair[0] - pair[1]).square().mean())
        expected = [measure(folders[0] / name, folders[1] / name), squared, 10 * math.log10(squared / 4)]
        assert [float(afv), float(l2), float(psnr)] == pytest.approx(expected, rel=1e-4)
    means = capsys.readouterr().err.splitlines()
    assert [line.split(" [")[0] for line in means] == [
        f"mean {name} {np.mean([float(row[place]) for row in rows]):.6g}" for place, name in enumerate(header) if place
    ]
    text = page.read_text()
    assert re.findall(r'<button type="button">(.*?)</button>', text) == header
    assert f"<td>{rows[0][1]}</td><td>{rows[0][2]}</td><td>{rows[0][3]}</td>" in text
    assert all(line.removesuffix(" over 3 pairs") in text for line in means)
    assert f"{rows[2][0]}: afv <b>{rows[2][1]}</b>, l2 <b>{rows[2][2]}</b>, " in text

    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    assert main([*named, "--csv", str(table), "--resume", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [list(item) for item in record["items"]] == [header] * 3
    assert [item["l2"] for item in record["items"]] == pytest.approx([float(row[2]) for row in rows], rel=1e-5)
    low, high = record["means"]["l2"]["interval"]
    assert low < record["means"]["l2"]["mean"] < high
    assert list(csv.reader(io.StringIO(table.read_text()))) == [header, *rows]
    assert main([*named[:4], "l2", "--csv", str(table), "--resume", *QUIET]) == 2
    assert "is not a table that this command has begun" in capsys.readouterr().err


def test_a_batch_is_brought_to_the_range_once_for_all_metrics(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, calls = items.to_network_range, []
    monkeypatch.setattr(items, "to_network_range", lambda *a, **options: calls.append(a) or convert(*a, **options))
    assert main(["dirs", *map(str, folders), "--metric", "afv", "l2", "ssim", *QUIET]) == 0
    assert [len(images) for (images,) in calls] == [3, 3]


def test_what_is_given_twice_is_compared_and_refused_once(
    gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture
) -> None:
    reference, images = gallery
    (tmp_path / "broken.png").write_text("no image")
    given = [images[0], tmp_path / "broken.png"] * 2
    assert main(["compare", str(reference), *map(str, given), *QUIET]) == 1
    printed = capsys.readouterr()
    assert (len(printed.out.splitlines()), len(printed.err.splitlines())) == (2, 1)


def test_metrics_of_dirs_that_fail(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main(["dirs", *map(str, folders), "--metric", "lpips-alx", *QUIET]) == 2
    assert "there is no metric 'lpips-alx'; did you mean lpips-alex" in capsys.readouterr().err
    monkeypatch.setattr("bapps_eval.metrics.l2", lambda first, second: first.mean((1, 2, 3)) * torch.nan)
    assert main(["dirs", *map(str, folders), "--metric", "bapps_eval.metrics:l2", *QUIET]) == 1
    printed = capsys.readouterr()
    assert printed.out == "file,bapps_eval.metrics:l2\n"
    assert "error: a.png (48x40 pixels): cannot be compared: bapps_eval.metrics:l2 gave no finite number" in printed.err


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
    assert f"{folders[0]}: passed over 1 other file (1 hidden)" in printed.err


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


def test_a_folder_stands_for_its_images(gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture) -> None:
    reference, images = gallery
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    for image in images[1:]:
        image.rename(folder / image.name)
    assert main(["compare", str(reference), str(images[0]), str(folder.parent), *QUIET]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [Path(line.split()[1]).stem for line in lines] == ["0", "5", "20", "40", "60"]
    assert main(["compare", str(folder), str(reference), *QUIET]) == 2
    assert "'afv-metric dirs' compares two folders" in capsys.readouterr().err


def test_no_table_where_nothing_could_be_compared(tmp_path: Path, capsys: Capture) -> None:
    image = save_image(tmp_path / "a.png")
    assert main(["compare", str(image), str(tmp_path / "none.png"), *QUIET]) == 1
    assert capsys.readouterr() == ("", f"error: {tmp_path / 'none.png'}: cannot be read: No such file or directory\n")


def fail_on(monkeypatch: pytest.MonkeyPatch, width: int, error: BaseException, after: int = 0) -> None:
    """Let the distance fail at images of a width, the first calls left out."""
    forward, calls = AFVDistance.forward, []

    def failing(metric: AFVDistance, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        calls.append(second.shape[3] == width)
        if calls[-1] and sum(calls) > after:
            raise error
        return forward(metric, first, second)

    monkeypatch.setattr(AFVDistance, "forward", failing)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_pair_without_memory_is_named_and_the_others_go_on(
    folders: tuple[Path, Path], error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for seed, folder in enumerate(folders):
        save_image(folder / "big.png", seed, 9 * seed, size=(64, 40))
    fail_on(monkeypatch, 64, error)
    assert main(["dirs", *map(str, folders), *QUIET]) == 1
    printed = capsys.readouterr()
    assert [row[0] for row in csv.reader(io.StringIO(printed.out))] == ["file", "a.png", "b.png", "deep/c.png"]
    first, mean = printed.err.splitlines()
    assert first.startswith("error: big.png (64x40 pixels): cannot be compared: out of memory")
    assert mean.endswith("over 3 pairs")


def test_pairs_of_a_batch_that_fails_are_tried_alone(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    forward = AFVDistance.forward

    def failing(metric: AFVDistance, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if len(second) > 1:
            raise MemoryError
        return forward(metric, first, second)

    monkeypatch.setattr(AFVDistance, "forward", failing)
    assert main(["dirs", *map(str, folders), *QUIET]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_an_interrupt_keeps_what_is_compared(
    gallery: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    reference, images = gallery
    fail_on(monkeypatch, 48, KeyboardInterrupt(), after=2)
    assert main(["compare", str(reference), *map(str, images), "--batch-size", "1", *QUIET]) == 130
    printed = capsys.readouterr()
    assert [Path(line.split()[1]).stem for line in printed.out.splitlines()[1:]] == ["5", "20"]
    assert printed.err == "interrupted: 2 of 5 images are compared\n"


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Arguments of ``dirs`` over ten pairs of two sizes, one of them damaged."""
    for side in (0, 1):
        for index in range(10):
            size = (48, 40) if index in (1, 2, 3, 6) else (40, 40)
            save_image(tmp_path / f"{side}" / f"{index}.png", index + 1, 9 * side * (index % 4), size)
    (tmp_path / "1" / "4.png").write_text("no image")
    return ["dirs", str(tmp_path / "0"), str(tmp_path / "1"), "--batch-size", "3", *QUIET]


def test_a_table_that_was_interrupted_is_completed(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert main([*many, "--csv", str(whole)]) == 1
    said = capsys.readouterr()
    assert len(whole.read_text().splitlines()) == 1 + 9
    for after in (0, 1, 2, 3):
        out.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            fail_on(patch, 40, KeyboardInterrupt(), after=after)
            assert main([*many, "--csv", str(out)]) == (130 if after < 3 else 1)
        capsys.readouterr()
        for _ in range(2):  # what is complete stays so
            assert main([*many, "--csv", str(out), "--resume"]) == 1
            assert capsys.readouterr() == said
            assert out.read_bytes() == whole.read_bytes()


def test_a_table_of_other_images_or_settings_is_not_completed(many: list[str], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.csv"
    assert main([*many, "--resume"]) == 2
    assert "give its --csv FILE" in capsys.readouterr().err
    assert main([*many, "--csv", str(out)]) == 1
    text = "\n".join(out.read_text().splitlines()[:5]) + "\n"
    for kept, arguments, message in (
        (text, ["--form", "fisher"], r"other images or settings: .* the distance of '1.png' was [\d.]+, and is [\d.]+"),
        (text + "z.png,0.5\n", [], "'z.png' is none of the pairs"),
        ("name,value\n", [], "is not a table that this command has begun"),
        ("file,distance\n1.png,far\n", [], "is not a table that this command has begun"),
    ):
        out.write_text(kept)
        capsys.readouterr()
        assert main([*many, "--csv", str(out), "--resume", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert out.read_text() == kept


def test_outputs_are_tried_before_the_work(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    fail_on(monkeypatch, 48, AssertionError("computed"))
    image = str(folders[0] / "a.png")
    for arguments in (
        ["dirs", *map(str, folders), "--csv", image + "/out.csv"],
        ["matrix", str(folders[0]), "--csv", str(folders[1])],
        ["compare", image, image, "--map", str(folders[1])],
        ["compare", image, image, "--map", image],
        ["dirs", *map(str, folders), "--csv", image],
        ["matrix", str(folders[0]), "--csv", image],
    ):
        assert main([*arguments, *QUIET]) == 2
        error = capsys.readouterr().err
        assert re.match(r"error: --(csv|map) \S+ (is a folder|cannot be written|would replace)", error)
