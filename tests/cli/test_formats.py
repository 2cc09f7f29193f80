"""Files of other fields, as they are: each kind is compared, adapted to and trained on."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_images import TINY_BUNDLE
from numpy.typing import NDArray
from PIL import Image

from afv_metric.bundles.bundle import load_bundle
from afv_metric.cli import main

HOUNSFIELD = ["--range", "-1024", "3071"]


def scan() -> NDArray[np.int16]:
    """Pixels of pydicom's sample: a slice of a CT scan of 128x128 pixels."""
    pydicom = pytest.importorskip("pydicom")
    return np.asarray(pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm")).pixel_array)


def save_dicom(folder: Path, count: int) -> None:
    pydicom = pytest.importorskip("pydicom")
    for index in range(count):
        data = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
        data.PixelData = np.roll(data.pixel_array, 5 * index, 0).tobytes()
        data.save_as(folder / f"{index:02d}.dcm")


def save_nifti(folder: Path, count: int) -> None:
    """Nibabel's sample, two volumes of 24 slices in each file, plain and compressed."""
    nibabel = pytest.importorskip("nibabel")
    sample = Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz"
    shutil.copy(sample, folder / "00.nii.gz")
    volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(sample.read_bytes()))
    moved = np.roll(np.asarray(volume.dataobj), 5, 0)
    nibabel.save(nibabel.Nifti1Image(moved, volume.affine), folder / "01.nii")


def save_geotiff(folder: Path, count: int) -> None:
    """16 bits in tiles, with the tags that place it on the Earth."""
    tifffile = pytest.importorskip("tifffile")
    for index in range(count):
        land = np.random.default_rng(index).integers(0, 65536, (32, 32, 3), np.uint16).repeat(5, 0).repeat(5, 1)
        scale, origin = (33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0, 0, 0, 4e5, 5e6, 0), True)
        keys = (34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True)
        options = {"photometric": "rgb", "compression": "zlib", "tile": (64, 64), "extratags": [scale, origin, keys]}
        tifffile.imwrite(folder / f"{index:02d}.tif", land, **options)


def save_float_tiff(folder: Path, count: int) -> None:
    for index in range(count):
        Image.fromarray(np.roll(scan(), 5 * index, 0).astype(np.float32)).save(folder / f"{index:02d}.tif")


def save_arrays(folder: Path, count: int) -> None:
    for index in range(count):
        np.save(folder / f"{index:02d}.npy", np.roll(scan(), 5 * index, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "declared"),
    [
        (save_dicom, HOUNSFIELD),
        (save_nifti, ["--range", "0", "1000"]),
        (save_geotiff, []),
        (save_float_tiff, ["--range", "-128", "2200"]),
        (save_arrays, ["--percentiles", "0.1", "99.9"]),
    ],
)
def test_from_the_file_to_a_metric_of_its_own(
    save: Callable[[Path, int], None],
    declared: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    save(images, 13)  # five tiles of 64 pixels each
    pair = [str(path) for path in sorted(images.iterdir())[:2]]
    common = ["--data", str(images), "--init", TINY_BUNDLE, "--quiet", *declared]
    small = ["iterations=1", "batch_size=4", "monitor_samples=4", "precision=float32"]
    assert main(["compare", *pair, "--weights", TINY_BUNDLE, *declared, "--quiet"]) == 0
    assert main(["adapt", *common, "--out", str(tmp_path / "adapted"), "--samples", "8"]) == 0
    assert main(["train", "folder", *common, "--out", str(tmp_path / "run"), "--set", *small]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "new"), "--samples", "4", "--quiet"]) == 0
    printed = [float(capsys.readouterr().out.split()[2])]
    for name in ("adapted", "new"):
        assert (load_bundle(tmp_path / name).data_range is None) == (not declared)
        assert main(["compare", *pair, "--weights", str(tmp_path / name), "--quiet"]) == 0  # the range is the bundle's
        printed.append(float(capsys.readouterr().out.split()[2]))
    assert min(printed) > 0
    assert len(set(printed)) == 3
