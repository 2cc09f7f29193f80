"""The plug-in of pyiqa, against the two tables of it that the plug-in writes to: pyiqa needs a dozen large packages."""

import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import TINY_BUNDLE, make_images

from afv_metric import AFVDistance, read_image
from afv_metric.pyiqa import register

PICTURES = Path(__file__).parents[1] / "examples" / "images"


@pytest.fixture
def tables(monkeypatch):
    """``DEFAULT_CONFIGS`` and the architectures of pyiqa 0.1.16, by name."""
    architectures, configs = {}, {}

    def keep(obj, name, override=False):
        assert override or name not in architectures
        architectures[name] = obj

    modules = {
        "pyiqa": {},
        "pyiqa.utils": {},
        "pyiqa.utils.registry": {"ARCH_REGISTRY": SimpleNamespace(register=keep)},
        "pyiqa.default_model_configs": {"DEFAULT_CONFIGS": configs},
    }
    for name, values in modules.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return architectures, configs


def test_pyiqa_makes_the_distance_of_images_in_0_to_1(tables):
    architectures, configs = tables
    for _ in range(2):  # by the entry point, and by hand
        register()
    assert (configs["afv"]["metric_mode"], configs["afv"]["lower_better"]) == ("FR", True)
    options = {**configs["afv"]["metric_opts"], "weights": TINY_BUNDLE, "form": "local"}
    network = architectures[options.pop("type")](**options)
    first, second = (make_images(2, seed=seed) for seed in (1, 2))
    expected = AFVDistance(TINY_BUNDLE, form="local")(first, second)
    torch.testing.assert_close(network(first / 2 + 0.5, second / 2 + 0.5), expected)


def test_its_entry_point_is_the_function():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((PICTURES.parents[1] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["pyiqa.archs"]
    assert [EntryPoint(name, value, "pyiqa.archs").load() for name, value in points.items()] == [register]


def test_the_example_runs(tables, monkeypatch, capsys):
    architectures, configs = tables

    def create_metric(name, device):
        options = dict(configs[name]["metric_opts"])
        network = architectures[options.pop("type")](**options)
        return lambda *paths: network(*(read_image(path) / 255 for path in paths))

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", create_metric, raising=False)
    example = runpy.run_path(str(PICTURES.parent / "with_pyiqa.py"))
    example["main"]([str(PICTURES / f"{name}.png") for name in ("reference", "reference", "blurred")])
    same, blurred = capsys.readouterr().out.split()[::2]
    assert float(same) == 0
    assert float(blurred) == pytest.approx(1.29918, abs=1e-4)
