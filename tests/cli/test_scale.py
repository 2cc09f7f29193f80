"""``calibrate`` and ``compare --scale``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_images import QUIET, TINY_BUNDLE, save_image

from afv_metric import load_bundle
from afv_metric.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny bundle, to write to, calibrated on three images."""
    folder = shutil.copytree(TINY_BUNDLE, tmp_path / "bundle")
    for seed in range(3):
        save_image(tmp_path / "data" / f"{seed}.png", seed, 5)
    assert main(["calibrate", str(folder), "--data", str(tmp_path / "data"), "--quiet"]) == 0
    return folder


def test_a_table_is_added_and_the_bundle_stays(copy: Path) -> None:
    assert load_bundle(copy).hash == load_bundle(TINY_BUNDLE).hash
    assert json.loads((copy / "scale.json").read_text())["images"] == 3


def test_scale_of_images(copy: Path, gallery: tuple[Path, list[Path]], tmp_path: Path, capsys: Capture) -> None:
    reference, images = gallery
    arguments = ["compare", str(reference), *map(str, images), "--scale", "--quiet", "--weights", str(copy)]
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    head, first, *_ = printed.out.splitlines()
    assert " ".join(head.split()) == "distance blur, pixels JPEG quality noise of 255 percentile file"
    assert " ".join(first.split()) == f"0 <0.3 (<0.3 to <0.3) >95 (>95 to >95) <1 (<1 to <1) 0 {images[3]}"
    assert main([*arguments, "--json"]) == 0
    found = {Path(item["file"]).stem: item["scale"] for item in json.loads(capsys.readouterr().out)}
    for noise in ("20", "40"):  # in a picture so small one draw of the noise differs from another
        assert found[noise]["noise"]["strength"] == pytest.approx(float(noise), rel=0.5)
        assert found[noise]["noise"]["others"].keys() == {"10", "50", "90"}
    assert found["40"]["percentile"] >= found["5"]["percentile"] > 0
    assert found["0"]["blur"]["strength"] is None
    out = tmp_path / "map.png"
    assert main(["compare", str(reference), str(images[0]), "--map", str(out), *arguments[-4:]]) == 0
    assert "(pale yellow), as far as Gaussian blur of " in capsys.readouterr().err


def test_without_a_table_the_reference_alone_is_told(gallery: tuple[Path, list[Path]], capsys: Capture) -> None:
    reference, images = gallery
    assert main(["compare", str(reference), str(images[0]), "--scale", *QUIET]) == 0
    printed = capsys.readouterr()
    assert "has no scale.json" in printed.err
    assert " ".join(printed.out.split("\n")[0].split()) == "distance blur, pixels JPEG quality noise of 255 file"


def test_a_table_is_of_one_bundle_and_form(copy: Path, gallery: tuple[Path, list[Path]], capsys: Capture) -> None:
    reference, images = gallery
    arguments = ["compare", str(reference), str(images[0]), "--scale", "--quiet", "--weights", str(copy)]
    assert main([*arguments, "--form", "fisher"]) == 0
    printed = capsys.readouterr()
    assert "for the form activation alone" in printed.err
    assert "percentile" not in printed.out
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config))  # the same in other words
    assert main(arguments) == 2
    assert "is of another bundle than the one beside it" in capsys.readouterr().err


def test_only_a_folder_can_be_calibrated(tmp_path: Path, capsys: Capture) -> None:
    save_image(tmp_path / "a.png")
    assert main(["calibrate", "tiny-imagenet-v8", "--data", str(tmp_path)]) == 2
    assert "a folder of a bundle was expected" in capsys.readouterr().err
