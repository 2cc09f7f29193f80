"""A bundle is written whole or not at all, whenever the process that writes it is killed."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
from conftest import TINY_BUNDLE

from afv_metric.bundles.bundle import load_bundle
from afv_metric.train.loop import train

# Renames and flushes are where a kill can do harm, so the process dawdles there.
_SLOWLY = """
import os, pathlib, time
def slowly(how, sleep=time.sleep):
    def slow(*arguments):
        sleep(0.03)
        result = how(*arguments)
        sleep(0.03)
        return result
    return slow
os.fsync, pathlib.Path.rename, pathlib.Path.replace = map(slowly, (os.fsync, pathlib.Path.rename, pathlib.Path.replace))
from afv_metric.train import __main__
raise SystemExit(__main__.main({arguments!r}))
"""
_server = multiprocessing.get_context("forkserver")
# Imported once, not by every process anew.
_server.set_forkserver_preload(["afv_metric.train.adapt", "afv_metric.train.card", "afv_metric.train.export"])


def _run(arguments, kill_after=None):
    """Run a command, or kill it after some seconds; returns the seconds that it took."""
    process = _server.Process(target=exec, args=(_SLOWLY.format(arguments=list(map(str, arguments))),))
    began = time.monotonic()
    process.start()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    assert kill_after is not None or process.exitcode == 0
    return time.monotonic() - began


def _commands(images, run, out):
    adapt = ["adapt", "--data", images, "--init", TINY_BUNDLE, "--out", out, "--samples", "10", "--quiet"]
    export = ["export", run, "--out", out, "--samples", "10", "--quiet"]
    return adapt, export


def _kill_at_random_moments(recipe, images, tmp_path, kills):
    run = train(recipe, images, tmp_path / "run", quiet=True)
    moments, states = random.Random(0), set()
    for out in (tmp_path / "adapt", tmp_path / "export"):
        out.mkdir()
    for command in range(2):
        seconds = 0.0
        for attempt in range(kills + 1):
            out = tmp_path / ("adapt", "export")[command] / str(attempt % 2)
            old = load_bundle(out) if out.exists() else None
            arguments = [*_commands(images, run, out)[command], "--name", f"number {attempt}"]
            if attempt == 0:
                seconds = _run(arguments)
                continue
            _run(arguments, kill_after=moments.random() * seconds)
            if not out.exists():
                states.add("absent")
                seconds *= 1.1
                continue
            bundle = load_bundle(out, generator=True)  # checks every file by its hash
            names = {f"number {attempt}", old.name if old else None}
            assert bundle.name in names
            done = bundle.name == f"number {attempt}"
            states.add("new" if done else "old")
            seconds *= 0.9 if done else 1.1  # kills gather round the end, however busy the machine
            assert len(bundle.card) > 500
            assert (out / "samples.png").is_file()
            assert f"# {bundle.name}\n" in bundle.card
        _run([*arguments[:-1], "last"])
        assert load_bundle(out, generator=True).name == "last"
        assert not [path for path in Path(out).parent.iterdir() if path.name.startswith(f".{out.name}")]
    return states


@pytest.mark.slow
def test_a_killed_command_leaves_nothing_the_old_or_the_new(recipe, images, tmp_path):
    _kill_at_random_moments(recipe, images, tmp_path, kills=1)


@pytest.mark.slow
def test_fifty_kills(recipe, images, tmp_path):
    assert _kill_at_random_moments(recipe, images, tmp_path, kills=25) == {"absent", "old", "new"}
