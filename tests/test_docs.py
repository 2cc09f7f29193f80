"""The code of the pages in docs: Python as it stands, commands at tiny size; and what the pages say of the package."""

import re
import shlex
from glob import glob
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from judged_sets import save_grey, save_pairs, save_root
from PIL import Image

import afv_metric as package
from afv_metric.cli import main as afv_metric
from afv_metric.cli.parser import make_parser

DOCS = Path(__file__).parents[1] / "docs"

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


@pytest.mark.parametrize(
    "page", [page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_python_on_the_page_runs(page, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_files_that_the_page_links_to_exist(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["index", "numbers"])
def test_commands_of_the_page_print_what_it_says(name, tmp_path, monkeypatch, capsys):
    chance = np.random.default_rng(0)
    for folder in ("FOLDER0", "FOLDER1"):
        (tmp_path / folder).mkdir()
        for index in range(12):
            Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "examples").symlink_to(DOCS.parent / "examples")
    monkeypatch.chdir(tmp_path)
    found = re.findall(
        r"^ {4}afv-metric (.*)\n(?:\n((?: {4}(?!afv-metric).*\n)+))?", (DOCS / f"{name}.md").read_text(), re.MULTILINE
    )
    assert found
    for command, output in found:
        arguments = [path for word in shlex.split(command) for path in (sorted(glob(word)) if "*" in word else [word])]
        assert afv_metric(arguments) == 0
        printed = capsys.readouterr().out
        assert printed
        if output:
            assert printed == dedent(output)


def test_training_on_one_s_own_images_is_as_in_the_readme():
    """Whose commands test_readme.py runs."""
    readme = (DOCS.parent / "README.md").read_text()
    training = [line for line in commands((DOCS / "own-images.md").read_text()) if "afv_metric.train" in line]
    assert len(training) == 3
    assert [line for line in training if line not in commands(readme)] == []


def test_commands_for_clusters_are_known():
    text = (DOCS / "clusters.md").read_text().replace("\\\n", " ").replace("\n              --", " --")
    found = re.findall(r"afv[-_]metric (dirs .*)", text)
    assert len(found) == 3
    for command in found:
        assert make_parser("dirs").parse(shlex.split(command)).csv


def test_every_requirement_has_its_reason():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    names = {re.split(r"[\[<>=]", name)[0] for name in [*project["dependencies"], *extras]}
    names = {name for name in names if name != "afv-metric" and "stubs" not in name and not name.startswith("types-")}
    page = (DOCS / "requirements.md").read_text()
    assert [name for name in sorted(names) if not re.search(rf"`{name}[`\[]", page)] == []


def test_the_version_to_cite_is_that_of_the_package():
    assert f"version: {package.__version__}" in (DOCS.parent / "CITATION.cff").read_text().splitlines()


def test_everything_public_is_in_the_reference():
    page = (DOCS / "api.md").read_text()
    assert [name for name in package.__all__ if f"afv_metric.{name}" not in page] == []


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


def test_judged_sets_are_given_as_the_evaluation_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_root(tmp_path / "DIR")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_pairs(tmp_path / name / "scores.csv", [10, 20, 30], [1, 3, 2])
    (command,) = [line for line in commands((DOCS / "evaluation.md").read_text()) if "--pairs" in line]
    assert command[:3] == ["python", "-m", "bapps_eval"]
    assert import_module("bapps_eval.__main__").main([*command[3:], "--metric", "l2", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +a +b +all$", printed, re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_representation_runs(data, monkeypatch):
    for needed in ("faiss", "matplotlib"):
        pytest.importorskip(needed)
    save_root(data / "material-2afc")
    for name in ("superres", "recolour", "blur"):
        for level in (0, 10, 20, 40):
            save_grey(data / name / f"{level}.png", level, 32, 32)
        lines = [f"0.png,{level}.png,{level}" for level in (10, 20, 40)]
        (data / name / "scores.csv").write_text("\n".join(["reference,distorted,distance", *lines]))
    monkeypatch.chdir(data)
    monkeypatch.setenv("AFV_METRIC_CACHE", str(data / "cache"))
    monkeypatch.setenv("BIGAN_ENCODER", "ENCODER")
    text = (DOCS / "representation.md").read_text()
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
