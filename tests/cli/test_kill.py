"""A table of ``dirs`` is whole up to its last row and can be resumed, whenever the process that writes it is killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from cli_images import QUIET, save_image

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["afv_metric.metric", "afv_metric.cli.score"])  # imported once, not by every process


def _run(arguments: list[str], kill_after: float | None = None) -> tuple[int | None, float]:
    """Run a command, or kill it after some seconds; returns its status and the seconds that it took."""
    program = f"from afv_metric.cli import main\nraise SystemExit(main({arguments!r}))"
    process = _server.Process(target=exec, args=(program,))
    began = time.monotonic()
    process.start()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    return process.exitcode, time.monotonic() - began


@pytest.mark.slow
def test_a_killed_table_is_completed(tmp_path: Path) -> None:
    for side in (0, 1):
        for index in range(60):
            size = (48, 40) if index % 7 < 3 else (64, 64)
            save_image(tmp_path / f"{side}" / f"{index:02}.png", index, 9 * side * (index % 4), size)
    (tmp_path / "1" / "05.png").write_text("no image")
    command = ["dirs", str(tmp_path / "0"), str(tmp_path / "1"), "--batch-size", "4", *QUIET]
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    seconds = min(_run([*command, "--csv", str(whole)])[1] for _ in range(2))  # the first starts the server as well
    chance, kept = random.Random(0), set()
    for _ in range(50):
        out.unlink(missing_ok=True)
        _run([*command, "--csv", str(out)], kill_after=chance.random() * seconds)
        found = out.read_bytes() if out.exists() else b""
        assert whole.read_bytes().startswith(found)
        assert not found or found.endswith(b"\n")
        kept.add(found.count(b"\n"))
        assert _run([*command, "--csv", str(out), "--resume"])[0] == 1
        assert out.read_bytes() == whole.read_bytes()
    assert len(kept) > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "out.csv", "whole.csv"]
