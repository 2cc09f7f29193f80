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
    assert main(["compare", str(scans / "0.png"), str(scans / "1.png"), *QUIET]) == 1
    assert "--range 0 4095" in capsys.readouterr().err


def test_few_large_scans_are_enough_for_a_bundle(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    scans = save_scans(tmp_path / "scans", 4, side=320)
    command = ["adapt", "--data", str(scans), "--init", TINY_BUNDLE, "--samples", "50", "--quiet"]
    command += ["--range", "0", "4095"]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "4 squares of images can be read; at least 64 are needed" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "new"), "--tiles", "100"]) == 0
    sampling = load_bundle(tmp_path / "new").sampling
    assert (sampling["data_range"], sampling["tiles"]) == ([0.0, 4095.0], 100)
    pair = [str(scans / "0.png"), str(scans / "1.png"), "--weights", str(tmp_path / "new"), "--quiet"]
    printed = []
    for more, said in (([], False), (["--range", "0", "4095"], False), (["--range", "0", "9000"], True)):
        assert main(["compare", *pair, *more]) == 0
        out, errors = capsys.readouterr()
        assert ("adapted to images of the range 0 4095, not of this --range" in errors) == said
        printed.append(out)
    assert printed[0] == printed[1] != printed[2]
    assert main([*command, "--out", str(tmp_path / "no"), "--tiles", "100", "--cache-gb", "1e-5"]) == 2
    assert "1e-05 GB (--cache-gb) have no room for a square of each of 4 images" in capsys.readouterr().err
