from pathlib import Path

import numpy as np
import pytest
from cli_images import QUIET, TINY_BUNDLE
from PIL import Image

from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli import main

Capture = pytest.CaptureFixture[str]


def save_scans(folder: Path, count: int, side: int = 64, bits: int = 12) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        small = np.random.default_rng(index).integers(0, 256, (side // 4, side // 4), np.uint8)
        grey = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
        values = np.rint(grey / 255 * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        Image.fromarray(values).save(folder / f"{index}.png")
    return folder


def distance(folder: Path, capsys: Capture, *more: str) -> float:
    assert main(["compare", str(folder / "0.png"), str(folder / "1.png"), *more, *QUIET]) == 0
    return float(capsys.readouterr().out.split()[-2])


def test_twelve_bits_are_as_far_apart_as_eight(tmp_path: Path, capsys: Capture) -> None:
    scans, twins = save_scans(tmp_path / "12", 2), save_scans(tmp_path / "8", 2, bits=8)
    expected = distance(twins, capsys)
    assert distance(scans, capsys, "--range", "0", "4095") == pytest.approx(expected, rel=0.01)
    assert distance(twins, capsys, "--range", "0", "4095") == expected
    assert main(["compare", str(scans / "0.png"), str(scans / "1.png"), *QUIET]) == 2
    assert "--range 0 4095" in capsys.readouterr().err


def test_few_large_scans_are_enough_for_a_bundle(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    scans = save_scans(tmp_path / "scans", 4, side=320)
    command = ["adapt", "--data", str(scans), "--init", TINY_BUNDLE, "--samples", "50", "--quiet"]
    command += ["--range", "0", "4095"]
    assert main([*command, "--out", str(tmp_path / "none"), "--tiles", "1"]) == 2
    assert "4 tiles of images can be read; at least 64 tiles are needed" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "new"), "--tiles", "100"]) == 0
    adapted = load_bundle(tmp_path / "new")
    assert (adapted.data_range, adapted.sampling["tiles"]) == ((0, 4095), 100)
    pair = [str(scans / "0.png"), str(scans / "1.png"), "--weights", str(tmp_path / "new"), "--quiet"]
    printed = []
    for more, said in (([], False), (["--range", "0", "4095"], False), (["--range", "0", "9000"], True)):
        assert main(["compare", *pair, *more]) == 0
        out, errors = capsys.readouterr()
        assert ("made for images of the range 0 4095, not of this one" in errors) == said
        printed.append(out)
    assert printed[0] == printed[1] != printed[2]
    assert main([*command, "--out", str(tmp_path / "no"), "--tiles", "100", "--cache-gb", "1e-5"]) == 2
    assert "1e-05 GB (--cache-gb) have no room for a tile of each of 4 images" in capsys.readouterr().err


def test_percentiles_are_taken_once_over_all_images(tmp_path: Path, capsys: Capture) -> None:
    scans = save_scans(tmp_path / "scans", 3)
    expected = distance(scans, capsys, "--range", "0", "4095")
    pair = [str(scans / "0.png"), str(scans / "1.png"), *QUIET]
    assert main(["compare", "--percentiles", "0", "100", *pair]) == 0
    out, errors = capsys.readouterr()
    assert "between these percentiles lies --range 0 4095" in errors
    assert float(out.split()[-2]) == expected
    assert main(["compare", *pair, "--percentiles", "5", "1"]) == 2
    assert "the lower one first, got 5 and 1" in capsys.readouterr().err


def test_the_range_of_percentiles_is_kept_by_the_bundle(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    scans = save_scans(tmp_path / "scans", 64)
    (scans / "broken.png").write_bytes(b"x")
    common = ["--data", str(scans), "--init", TINY_BUNDLE, "--quiet", "--percentiles", "0", "100"]
    assert main(["adapt", *common, "--out", str(tmp_path / "adapted"), "--samples", "8"]) == 0
    small = ["iterations=1", "batch_size=4", "monitor_samples=4", "precision=float32"]
    assert main(["train", "folder", *common, "--out", str(tmp_path / "run"), "--set", *small]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "new"), "--samples", "4", "--quiet"]) == 0
    for name in ("adapted", "new"):
        assert load_bundle(tmp_path / name).data_range == (0, 4095)
    capsys.readouterr()
    sets = ["sets", str(scans), str(scans), "--weights", str(tmp_path / "new"), "--count", "4", "--quiet"]
    (scans / "broken.png").unlink()
    for more in ([], ["--range", "0", "255"]):
        assert main([*sets, *more]) == 0
        assert ("is made for images of the range 0 4095" in capsys.readouterr().err) == bool(more)
