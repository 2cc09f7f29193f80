"""Every command over junk and random arguments: no traceback, a right status, and nothing of the user's touched."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_images import TINY_BUNDLE, save_image

from afv_metric.cli import main
from afv_metric.cli.parser import COMMANDS, make_parser

# What a name promises and what a file holds are drawn by themselves.
_NAMES = [
    "a.png", "b.JPG", "c.jpeg", "d.tif", "e.gif", "f.webp", "g", "h.txt", "Thumbs.db", ".hidden.png", "config.json",
    "model.safetensors", "pairs.csv", "results.jsonl", "settings.json", "state-000002.pt", "recipe.json", "x.tar",
    "y.zip", "-dash.png", "two words.png", "new\nline.png", "comma, quote\".png", "ümläut.png", "judge.npy",
    "%s{0}.png",
]  # fmt: skip
_FOLDERS = [".", "sub", "sub/deep", "@eaDir", "__MACOSX", "2afc/val/cnn/ref", "2afc/val/cnn/p0", "2afc/val/cnn/judge"]
_VALUES = [
    "-1",
    "0",
    "1",
    "2",
    "3.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    "x",
    "none",
    "auto",
    "lpips",
    "alex",
    "l2",
    "afv",
]
_OUTPUTS = ("--out", "--csv", "--map", "--json", "--html", "--markdown", "--results", "--cache")
_FOLDER_LIKE = ("data", "root", "runs", "run", "bundle")
_LEFT_OUT = ("--help", "--debug", "--download", "--dry-run", "--workers", "--samples", "--set")
_SMALL = "width=4 generator_width=4 latent_size=8 batch_size=8 iterations=1 monitor_samples=8 held_out=0.25"
_ALWAYS = {
    "card": ["--dry-run"],  # or else the bundle is what it writes to
    "push": ["--dry-run", "--samples", "9"],
    "validate": ["--samples", "9"],
    "export": ["--samples", "9"],
    "adapt": ["--samples", "9"],
    "train": ["--set", *_SMALL.split()],
    "eval": ["--workers", "0"],
}
# A bomb: the head of a PNG of 60,000 x 60,000 pixels.
_ENORMOUS = bytes.fromhex("89504e470d0a1a0a0000000d494844520000ea600000ea60080200000000000000")


def make_junk(folder: Path, number: int, chance: random.Random) -> list[Path]:
    """Fill a folder with some good images and many files that are damaged, foreign or linked; returns all paths."""
    whole = save_image(folder / "whole.png", seed=1, noise=9).read_bytes()
    bundle = [path.read_bytes() for path in sorted(Path(TINY_BUNDLE).iterdir())]
    contents: list[Callable[[], bytes]] = [
        lambda: whole,
        lambda: whole[: chance.randrange(len(whole))],
        lambda: b"",
        lambda: chance.randbytes(chance.randrange(1, 300)),
        lambda: b"reference,distorted,distance\na.png,b.JPG,1\n",
        lambda: b'{"schema": 2, "name": [], "width": "x"}\n',
        lambda: b"[1, null",
        lambda: chance.choice(bundle)[: chance.choice([100, 5000, None])],
        lambda: _ENORMOUS,
    ]
    for index in range(66):
        save_image(folder / "good" / f"{index}.png", seed=index, noise=20, size=(40, 40))
    for index in range(number):
        place = folder / chance.choice(_FOLDERS)
        place.mkdir(parents=True, exist_ok=True)
        path = place / (chance.choice(_NAMES) if index < 100 else f"{index}-{chance.choice(_NAMES).lstrip('-')}")
        if path.exists() or path.is_symlink():
            continue
        if chance.random() < 0.1:
            path.symlink_to(chance.choice([folder, folder / "whole.png", folder / "nowhere", path]))
        else:
            path.write_bytes(chance.choice(contents)())
            if chance.random() < 0.1:
                path.chmod(0)
    return sorted(folder.rglob("*"))


def fingerprint(*folders: Path) -> dict[str, object]:
    """What would change if anything in the folders did."""
    found: dict[str, object] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file() and os.access(path, os.R_OK):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_size, content)
    return found


def draw_value(action: argparse.Action, paths: list[Path], chance: random.Random) -> str:
    """A value that an argument may take, or any other."""
    if chance.random() < 0.25:
        return chance.choice([*_VALUES, str(chance.choice(paths))])
    if action.choices:
        return str(chance.choice(list(action.choices)))
    if action.dest in ("weights", "init", "bundle") and chance.random() < 0.7:
        return TINY_BUNDLE
    if action.dest == "recipe":
        return chance.choice(["imagenet", "folder", "cifar10"])
    if action.dest == "metric":
        return chance.choice(["l2", "ssim", "afv"])
    if action.type not in (None, Path):
        return "cpu" if action.dest == "device" else chance.choice(["1", "2", "8", "30"])
    folders = [path for path in paths if path.is_dir()]
    return str(chance.choice(folders if "folder" in action.dest or action.dest in _FOLDER_LIKE else paths))


def draw_arguments(command: str, paths: list[Path], out: Path, chance: random.Random) -> list[str]:
    """Arguments that a hurried or mistaken user might give; what is written goes to a folder of its own."""
    (commands,) = (action for action in make_parser(command)._actions if action.choices)
    arguments = [command]
    for action in commands.choices[command]._actions:  # type: ignore[index]
        name = max(action.option_strings, key=len, default="")
        needed = action.required or name in ("--data", "--out")
        if name in _LEFT_OUT or chance.random() < (0.05 if needed else 0.7):
            continue
        count = 0 if action.nargs == 0 else chance.choice([1, 1, 2]) if action.nargs in ("+", "*") else 1
        values = [draw_value(action, paths, chance) for _ in range(count)]
        if count and name in _OUTPUTS:
            values = [
                str(
                    chance.choice([out / "new", out / "deep" / "new.csv", out, paths[0].parent / "whole.png" / "below"])
                )
            ]
        arguments += [*([name] if name else []), *values]
    arguments += _ALWAYS.get(command, [])
    if chance.random() < 0.1:
        arguments[chance.randrange(len(arguments))] = chance.choice(_VALUES)
    return arguments


def fuzz(folder: Path, files: int, lines: int, seed: int, capfd: pytest.CaptureFixture[str]) -> dict[int, int]:
    """Run commands over junk; returns how often each status came."""
    chance = random.Random(seed)
    out, junk = folder / "out", folder / "junk"
    paths = make_junk(junk, files, chance)
    before = fingerprint(junk, Path(TINY_BUNDLE))
    statuses: dict[int, int] = {}
    for line in range(lines):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        arguments = draw_arguments(chance.choice(list(COMMANDS)), paths, out, chance)
        try:
            status = main(arguments)
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        printed = capfd.readouterr()
        place = f"line {line}: {arguments}\n{printed.err[-2000:]}"
        assert status in (0, 1, 2), place
        for word in ("Traceback", "[Errno", "unexpected ", "Error:", "invalid whole", "site-packages"):
            assert word not in printed.err.replace("unexpected argument", ""), place
        assert status in (0, 1) or "error: " in printed.err, place
        assert fingerprint(junk, Path(TINY_BUNDLE)) == before, place
        statuses[status] = statuses.get(status, 0) + 1
    return statuses


@pytest.fixture(autouse=True)
def _own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AFV_METRIC_CACHE", "XDG_CACHE_HOME", "BAPPS_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_commands_over_junk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    statuses = fuzz(tmp_path, 60, 60, 0, capfd)
    assert statuses.keys() == {0, 1, 2}


@pytest.mark.slow
def test_commands_over_much_junk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The long form: 10,000 files and 1,000 lines of arguments, in ten folders."""
    for seed in range(10):
        fuzz(tmp_path / str(seed), 1000, 100, 1 + seed, capfd)
