"""Whatever lies in the folders, the command ends with a sentence and the right status, and touches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from judged_sets import save_pairs, save_root

from bapps_eval.__main__ import main


def _cut(path: Path, chance: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.integers(len(content) + 1)])


def _flip(path: Path, chance: np.random.Generator) -> None:
    content = bytearray(path.read_bytes() or b"x")
    for place in chance.integers(len(content), size=5):
        content[place] = chance.integers(256)
    path.write_bytes(content)


def _loop(path: Path, chance: np.random.Generator) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: list[Callable[[Path, np.random.Generator], object]] = [
    _cut,
    _flip,
    _loop,
    lambda path, chance: path.unlink(),
    lambda path, chance: path.rename(path.with_name("Thumbs.db")),
    lambda path, chance: path.rename(path.with_suffix(".zzz")),
    lambda path, chance: path.with_name(f"{path.stem} 2{path.suffix}").write_bytes(path.read_bytes()),
    lambda path, chance: path.write_bytes(chance.bytes(64)),
    lambda path, chance: (path.unlink(), path.mkdir()),
    lambda path, chance: path.write_text("reference,distorted,distance\n\udcff", errors="surrogateescape"),
]


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("seed", range(60))
def test_junk_ends_with_a_sentence(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = np.random.default_rng(seed)
    root = save_root(tmp_path / "data/bapps")
    pairs = save_pairs(tmp_path / "data/noise.csv", [10, 20, 30], [1, 3, 2])
    for _ in range(chance.integers(1, 4)):
        files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file() and not path.is_symlink())
        damage = DAMAGES[chance.integers(len(DAMAGES))]
        damage(files[chance.integers(len(files))], chance)
    before = _hashes(tmp_path / "data")
    given = ["--root", str(root), "--pairs", str(pairs), "--metric", "l2", "psnr", "--quiet", "--workers", "0"]
    status = main([*given, "--json", str(tmp_path / "out.json"), "--results", str(tmp_path / "run.jsonl")])
    printed = capsys.readouterr()
    assert status in (0, 1, 2)
    assert (status == 2) == (printed.out == "")
    errors = [line for line in printed.err.splitlines() if "foreign files or folders passed over" not in line]
    assert bool(errors) == bool(status)
    assert all(line.startswith("error: ") for line in errors)
    assert " at 0x" not in printed.err
    assert _hashes(tmp_path / "data") == before
