import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from typing import get_origin

import pytest

import afv_metric
import bapps_eval


def test_importing_opens_no_socket_and_nothing_heavy():
    program = """
import sys, socket
def refuse(*arguments, **settings):
    raise AssertionError("a socket was opened")
socket.socket.connect = refuse
socket.create_connection = refuse
import afv_metric
heavy = {"matplotlib", "torchvision", "huggingface_hub", "scipy", "lpips", "sklearn"}
print(sorted((heavy | {"torch", "numpy", "PIL"}) & set(sys.modules)))
afv_metric.AFVDistance
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
    assert done.stderr == ""


def test_every_name_of_the_package_is_found_and_listed():
    assert {name: getattr(afv_metric, name) for name in afv_metric.__all__}.keys() <= set(dir(afv_metric))
    with pytest.raises(AttributeError, match="no attribute 'AFVDistanse'"):
        afv_metric.AFVDistanse  # noqa: B018


def test_the_place_of_the_distance_in_0_1_works_and_warns():
    with pytest.warns(DeprecationWarning, match=r"is now afv_metric\.AFVDistance") as caught:
        from afv_metric.distance import AFVDistance
    assert AFVDistance is afv_metric.AFVDistance
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(ImportError):
        from afv_metric.distance import Comparison  # noqa: F401


def public_objects():
    """Classes and functions in every ``__all__`` of the packages."""
    modules = [
        importlib.import_module(found.name)
        for package in (afv_metric, bapps_eval)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.endswith("__main__")
    ]
    everything = [getattr(module, name) for module in modules for name in getattr(module, "__all__", ())]
    return [
        thing for thing in everything if (inspect.isroutine(thing) or inspect.isclass(thing)) and not get_origin(thing)
    ]


def without_a_docstring(objects):
    """Names of those that nobody documented: Python itself writes ``Name(field: type)`` under a dataclass."""
    return [thing.__name__ for thing in objects if not thing.__doc__ or thing.__doc__.startswith(f"{thing.__name__}(")]


def test_everything_public_is_documented():
    objects = public_objects()
    assert len(objects) > 50
    assert without_a_docstring(objects) == []


def test_a_missing_docstring_is_found():
    @dataclasses.dataclass
    class Record:
        size: int

    def function():
        pass

    assert without_a_docstring([Record, function, dataclasses.dataclass]) == ["Record", "function"]
