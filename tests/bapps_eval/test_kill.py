"""A file of results is whole up to its last item and can be resumed, whenever the process that writes it is killed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from judged_sets import save_pairs, save_root
from kills import kill_at_random, kill_before_each, run

pytestmark = pytest.mark.slow
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of ``eval``, up to the file of its ``--results``."""
    folder = tmp_path_factory.mktemp("judged")
    pairs = save_pairs(folder / "noise.csv", range(1, 61), range(60))
    data = ["--root", str(save_root(folder / "root")), "--pairs", str(pairs)]
    return ["eval", *data, "--metric", "l2", "psnr", "--batch-size", "12", "--workers", "0", "--quiet", "--results"]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a command that is not killed."""
    file = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    assert run([*command, file]) == 0
    return file.read_bytes().splitlines()


def _kept_and_completed(file: Path, command: list[str], whole: list[bytes]) -> int:
    """The number of whole lines that a kill has left; then the file is completed, and so are its tables."""
    found = file.read_bytes() if file.exists() else b""
    lines = found.splitlines()[: found.count(b"\n")]
    assert lines == whole[: len(lines)]
    table = file.with_suffix(".json")
    assert run([*command, file, "--resume", "--json", table]) == 0
    assert file.read_bytes().splitlines() == whole
    scores = {name: score["value"] for name, score in json.loads(table.read_text())["metrics"][0]["scores"].items()}
    assert scores == pytest.approx({"2afc/traditional": 1, "2afc/cnn": 0.625, "jnd/cnn": 5 / 6, "noise": 1})
    file.unlink()
    return len(lines)


def test_killed_results_are_completed(command: list[str], whole: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    before = kill_before_each("bapps_eval.results:Results.write", [*command, file])
    kept = [_kept_and_completed(file, command, whole) for _ in before]
    assert kept == [1, 2, 4, *range(8, 69, 12)]  # the head; one, two and four items; sixty by twelve


def test_kills_at_random_moments(command: list[str], whole: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    kept = [_kept_and_completed(file, command, whole) for _ in kill_at_random([*command, file])]
    _log.warning("lines that were kept: %s", kept)
