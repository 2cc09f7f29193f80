"""A table of ``dirs`` is whole up to its last row and can be resumed, whenever the process that writes it is killed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cli_images import QUIET, save_image
from kills import kill_at_random, kill_before_each, run

pytestmark = pytest.mark.slow
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of ``dirs`` over pairs of two sizes, one of them damaged, up to the file of its ``--csv``."""
    folder = tmp_path_factory.mktemp("images")
    for side in (0, 1):
        for index in range(12):
            size = (48, 40) if index % 7 < 3 else (64, 64)
            save_image(folder / f"{side}" / f"{index:02}.png", index, 9 * side * (index % 4), size)
    (folder / "1" / "05.png").write_text("no image")
    return ["dirs", str(folder / "0"), str(folder / "1"), "--batch-size", "2", *QUIET, "--csv"]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a command that is not killed."""
    file = tmp_path_factory.mktemp("whole") / "whole.csv"
    assert run([*command, file]) == 1
    return file.read_bytes()


def _kept_and_completed(file: Path, command: list[str], whole: bytes) -> int:
    """The number of lines that a kill has left, which are those of the whole table; then it is completed."""
    found = file.read_bytes() if file.exists() else b""
    assert whole.startswith(found)
    assert not found or found.endswith(b"\n")
    assert run([*command, file, "--resume"]) == 1
    assert file.read_bytes() == whole
    file.unlink()
    return found.count(b"\n")


def test_a_killed_table_is_completed(command: list[str], whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    before = kill_before_each("csv.writer", [*command, file])
    kept = [_kept_and_completed(file, command, whole) for _ in before]
    assert kept[:3] == [0, 1, 3]
    assert kept == sorted(kept)
    assert kept[-1] == whole.count(b"\n") == 12


def test_kills_at_random_moments(command: list[str], whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    kept = [_kept_and_completed(file, command, whole) for _ in kill_at_random([*command, file])]
    _log.warning("lines that were kept: %s", kept)
