"""Every command of docs/representation.md, in its order, at tiny size."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from judged_sets import save_grey, save_root
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "representation.md"

# Where the page says this, the test says that.
SMALLER = {
    "iterations=10000": "iterations=2 monitor_samples=8 batch_size=8 width=4 generator_width=4",
    "iterations=2500 monitor_interval=250 checkpoint_interval=250": "iterations=2 monitor_samples=8 batch_size=8",
    "width=32 generator_width=16": "width=4 generator_width=4",
    "--samples 10000": "--samples 20",
    "--sketch 256 1024 4096 16384 --supervised-epochs 10": "--sketch 16 32 --epochs 1 --supervised-epochs 1",
    "sets cifar10/test": "sets cifar10/test --sizes 8 16 --draws 2",
    "--out compress": "--out compress --bytes 4 16",
    "--out neighbours": "--out neighbours --evaluate 20 --count 3 --generated 3 --neighbours 2",
    "iterations=1500": "iterations=2 width=4 generator_width=4 batch_size=8",
    "--epochs 50": "--epochs 1 --width 8",
}


def commands(text):
    """Lines of code of the page; a deeper one goes on with the line above it."""
    joined = re.sub(r"\n {8,}", " ", text)
    return [shlex.split(line) for line in re.findall(r"^ {4}(python .*)$", joined, re.MULTILINE)]


@pytest.fixture
def data(tmp_path):
    chance = np.random.default_rng(0)
    for part, count in (("train", 90), ("test", 25)):
        for name in ("cat", "dog", "ship"):
            folder = tmp_path / "cifar10" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
    digits = {"train": 130, "test": 20}
    images = {f"{part}_images": chance.integers(0, 256, (count, 6, 6), np.uint8) for part, count in digits.items()}
    labels = {f"{part}_labels": chance.integers(0, 10, count) for part, count in digits.items()}
    np.savez(tmp_path / "mnist.npz", **images, **labels)
    return tmp_path


def test_every_command_of_the_page_runs(data, monkeypatch):
    for package in ("faiss", "matplotlib"):
        pytest.importorskip(package)
    save_root(data / "material-2afc")
    for name in ("superres", "recolour", "blur"):
        for level in (0, 10, 20, 40):
            save_grey(data / name / f"{level}.png", level, 32, 32)
        lines = [f"0.png,{level}.png,{level}" for level in (10, 20, 40)]
        (data / name / "scores.csv").write_text("\n".join(["reference,distorted,distance", *lines]))
    monkeypatch.chdir(data)
    monkeypatch.setenv("AFV_METRIC_CACHE", str(data / "cache"))
    monkeypatch.setenv("BIGAN_ENCODER", "ENCODER")
    text = PAGE.read_text()
    for said, small in SMALLER.items():
        assert said in text
        text = text.replace(said, small)
    modules = []
    for _, _, module, *arguments in commands(text):
        modules.append(module)
        assert import_module(f"{module}.__main__").main([*arguments, "--quiet"]) == 0, arguments
    assert modules.count("experiments") == 6
    for name in ("classify", "sets", "neighbours", "compress", "mnist"):
        assert (data / name / f"{name}.json").is_file()
        assert list((data / name).glob("*.png"))


def test_files_that_the_page_shows_exist():
    links = re.findall(r"\]\((?!http)([^)]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
