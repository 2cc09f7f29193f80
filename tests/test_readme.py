import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.train.__main__ import main

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_python_in_the_readme_runs(code):
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["scores"].shape == (4,)
    assert names["img1"].grad.isfinite().all()
    assert names["maps"].shape == (4, 1, 96, 128)
    assert names["table"].shape == (4, 4)
    assert names["vectors"].shape[0] == 4


def test_ci_runs_the_two_commands_of_the_readme():
    """With other words before and behind them, and pip's ``--quiet``."""
    run = (README.parent / ".ci" / "run").read_text().replace(" --quiet", "")
    install, test = re.findall(r"^    (pip install .*)$", README.read_text(), re.MULTILINE)
    steps = [*install.split(" && "), *test.split(" && ")]
    assert len(steps) == 4
    places = [re.search(rf"(?<!\S){re.escape(step)}(?!\S)", run) for step in steps]
    assert all(places)
    assert [place.start() for place in places] == sorted(place.start() for place in places)


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_training_on_one_s_own_images_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    (tmp_path / "IMAGES").mkdir()
    for index in range(70):
        height, width = generator.integers(40, 90, 2)
        pixels = generator.integers(0, 256, (height, width, 3) if index % 2 else (height, width), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "IMAGES" / f"{index}.png")
    commands = re.findall(
        r"^    python -m afv_metric.train ((?:adapt|folder|export).*)$", README.read_text(), re.MULTILINE
    )
    assert [command.split()[0] for command in commands] == ["adapt", "folder", "export"]
    smaller = {"iterations=5000": "iterations=2 monitor_samples=8 batch_size=8", "--samples 10000": "--samples 20"}
    smaller["adapt "] = "adapt --samples 20 "
    for command in commands:
        for text, small in smaller.items():
            command = command.replace(text, small)
        assert main([*shlex.split(command), "--quiet"]) == 0
    images = torch.rand(2, 3, 48, 64)
    distance = AFVDistance(weights="BUNDLE")
    assert (distance(images, images.flip(3), normalize=True) > 0).all()
    assert "BUNDLE" in distance.extra_repr()
