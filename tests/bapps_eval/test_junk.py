"""Whatever lies in the folders, the command ends with a sentence and the right status, and touches nothing."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from damage import damage_some
from judged_sets import save_pairs, save_root

from bapps_eval.__main__ import main


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("seed", range(60))
def test_junk_ends_with_a_sentence(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    root = save_root(tmp_path / "data/bapps")
    pairs = save_pairs(tmp_path / "data/noise.csv", [10, 20, 30], [1, 3, 2])
    damage_some(tmp_path / "data", chance.randint(1, 3), chance)
    before = _hashes(tmp_path / "data")
    given = ["--root", str(root), "--pairs", str(pairs), "--metric", "l2", "psnr", "--quiet", "--workers", "0"]
    status = main([*given, "--json", str(tmp_path / "out.json"), "--results", str(tmp_path / "run.jsonl")])
    printed = capsys.readouterr()
    assert status in (0, 1, 2)
    assert status < 2 or printed.out == ""
    assert status > 0 or printed.out
    errors = [line for line in printed.err.splitlines() if "foreign files or folders passed over" not in line]
    assert bool(errors) == bool(status)
    assert all(line.startswith("error: ") for line in errors)
    assert " at 0x" not in printed.err
    assert _hashes(tmp_path / "data") == before
