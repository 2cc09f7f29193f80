"""A bundle is written whole or not at all, whenever the process that writes it is killed."""

from __future__ import annotations

import logging
import shutil
from collections import Counter

import pytest
from conftest import TINY_BUNDLE
from kills import kill_at_random, kill_before_each, run

from afv_metric.bundles.bundle import load_bundle
from afv_metric.train.loop import train

pytestmark = pytest.mark.slow
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def trained(recipe, images, tmp_path_factory):
    return train(recipe, images, tmp_path_factory.mktemp("trained") / "run", quiet=True)


@pytest.fixture(params=["adapt", "export"])
def command(request, trained, images):
    """Arguments of a command, up to its ``--out``."""
    made = {"adapt": ["--data", images, "--init", TINY_BUNDLE], "export": [trained]}
    return [request.param, *made[request.param], "--samples", "10", "--quiet", "--name", "new", "--out"]


def _state(out):
    """What lies there, which is checked file by file."""
    if not out.exists():
        return "absent"
    bundle = load_bundle(out, generator=True)
    assert f"# {bundle.name}\n" in bundle.card
    assert bundle.name != "new" or (len(bundle.card) > 500 and (out / "samples.png").is_file())
    return bundle.name


def _old(out):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(TINY_BUNDLE, out)
    return _state(out)


def test_a_killed_command_leaves_nothing_the_old_or_the_new(command, tmp_path):
    out, states = tmp_path / "bundle", []
    for status in kill_before_each("pathlib:Path.rename", [*command, out]):
        states.append((status, _state(out)))
        shutil.rmtree(out, ignore_errors=True)
    assert states == [*[(-9, "absent")] * (len(states) - 1), (0, "new")]
    assert len(states) > 1

    old, states = _old(out), []
    for status in kill_before_each("pathlib:Path.replace", [*command, out]):
        states.append((status, _state(out)))
        _old(out)
    assert states == [*sorted(states[:-1], key=lambda state: state[1] == "new"), (0, "new")]
    assert {state for _, state in states[:-1]} == {old, "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("standing", [False, True])
def test_kills_at_random_moments(command, standing, tmp_path):
    out, states = tmp_path / "bundle", Counter()
    before = _old(out) if standing else "absent"
    for status in kill_at_random([*command, out]):
        state = _state(out)
        states[state] += 1
        assert state in ((before, "new") if status else ("new",))
        _old(out) if standing else shutil.rmtree(out, ignore_errors=True)
    _log.warning("what kills left: %s", dict(states))
    assert run([*command, out]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
