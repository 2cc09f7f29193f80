"""Every command over junk and random arguments: no traceback, a right status, and nothing of the user's touched.

The long form, of 10,000 files and 1,000 lines of arguments: ``AFV_METRIC_FUZZ=10 pytest tests/cli/test_fuzz.py``
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_images import TINY_BUNDLE, save_image
from damage import DAMAGES, ENORMOUS, damage_some
from judged_sets import save_pairs, save_root

from afv_metric.cli import main
from afv_metric.cli.parser import COMMANDS, make_parser

# What a name promises and what a file holds are drawn by themselves.
_NAMES = [
    "a.png", "b.JPG", "c.jpeg", "d.tif", "e.gif", "f.webp", "g", "h.txt", "i.npy", "j.dcm", "k.nii.gz", "l.heic",
    "Thumbs.db", ".hidden.png", "config.json", "model.safetensors", "pairs.csv", "results.jsonl", "stats.jsonl",
    "recipe.json", "checkpoint-0000001.pt", "x.tar", "y.zip", "-dash.png", "two words.png", "new\nline.png",
    "comma, quote\".png", "ümläut.png", "judge.npy", "%s{0}.png",
]  # fmt: skip
_FOLDERS = [".", "sub", "sub/deep", "@eaDir", "__MACOSX", "2afc/val/cnn/ref", "2afc/val/cnn/p0", "2afc/val/cnn/judge"]
_VALUES = [
    "-1", "0", "1", "2", "3.5", "nan", "inf", "-inf", "1e400", "", "x", "none", "auto", "lpips", "alex", "l2", "afv",
    "\udcff",
]  # fmt: skip
_OUTPUTS = ("--out", "--csv", "--map", "--maps", "--junit", "--json", "--html", "--markdown", "--results", "--cache")
_PLACES = ["new", "deep/new", "mine", "mine/new", "mine/config.json/new", "to-nowhere", "to-nowhere/new", "circle"]
_LEFT_OUT = ("--help", "--debug", "--download", "--dry-run", "--workers", "--samples", "--set", "--onnx")
_SMALL = ["width=4", "generator_width=4", "latent_size=8", "batch_size=8", "iterations=1", "monitor_samples=8"]
_ALWAYS = {
    "card": ["--dry-run"],  # or else the bundle is what it writes to
    "push": ["--dry-run", "--samples", "9"],
    "validate": ["--samples", "9"],
    "export": ["--samples", "9"],
    "adapt": ["--samples", "9"],
    "train": ["--set", *_SMALL, "held_out=0.25"],
    "eval": ["--workers", "0"],
}
# Which material an argument is meant for.
_MEANT = {
    "run": "run", "runs": "run", "bundle": "bundle", "weights": "bundle", "init": "bundle", "file": "results.jsonl",
    "root": "root", "pairs": "list/pairs.csv", "judged": "list/pairs.csv", "agreement": "agreement.json",
    "folder0": "pairs/0", "folder1": "pairs/1", "folder": "pairs", "data": "many", "held_out": "many",
    "reference": "pairs/0/a.png", "images": "pairs/1/a.png", "golden": "pairs/0", "new": "pairs/1", "first": "pairs/0",
    "second": "pairs/1",
}  # fmt: skip
_SENSIBLE = {
    "range": ["0", "255"], "frame": ["0", "1"], "most_pixels": ["9", "100000"], "device": ["cpu"], "levels": ["0", "1"],
    "recipe": ["imagenet", "folder", "cifar10"], "metric": ["l2", "ssim", "afv"], "families": ["cnn", "traditional"],
    "repository": ["somebody/something"], "blocks": ["0", "1"], "terms": ["direction:0:3:1", "texture:0:2:1"],
    "url": ["http://127.0.0.1:9"], "checkpoint": ["latest", "best", "1"],
    "count": ["2", "9"], "percentiles": ["0", "100"], "at_most": ["0.1", "99"],
}  # fmt: skip
_COPIES = 6


@pytest.fixture(scope="module", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AFV_METRIC_CACHE", "XDG_CACHE_HOME", "BAPPS_ROOT"):
            patch.setenv(name, str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that a command reads, whole."""
    folder = tmp_path_factory.mktemp("material")
    for index in range(66):
        save_image(folder / "many" / f"{index}.png", seed=index, noise=20, size=(40, 40))
    for side in (0, 1):
        for index, name in enumerate(["a.png", "b.png", "deep/c.png", "d.jpg"]):
            save_image(folder / f"pairs/{side}/{name}", seed=index, noise=9 * side, size=(40 + 8 * (index % 2), 40))
    save_pairs(folder / "list" / "pairs.csv", [10, 20, 30], [1, 3, 2], side=32)
    save_root(folder / "root")
    shutil.copytree(TINY_BUNDLE, folder / "bundle")
    judged = ["--root", str(folder / "root"), "--metric", "l2", "--quiet", "--workers", "0"]
    outputs = ["--results", str(folder / "results.jsonl"), "--json", str(folder / "agreement.json")]
    assert main(["eval", *judged, *outputs]) == 0
    run = ["imagenet", "--data", str(folder / "many"), "--out", str(folder / "run"), "--quiet"]
    assert main(["train", *run, *_ALWAYS["train"]]) == 0
    return folder


def make_junk(folder: Path, material: Path, number: int, chance: random.Random) -> list[Path]:
    """Fill a folder with damaged copies of the material and with files of any name and content; returns all paths."""
    for copy in range(_COPIES):
        shutil.copytree(material, folder / f"copy{copy}", ignore=shutil.ignore_patterns("many") if copy > 1 else None)
        for part in sorted((folder / f"copy{copy}").iterdir()) if copy else ():
            if part.is_dir():
                damage_some(part, chance.choice([0, 1, 1, 2, 3]), chance)
            elif chance.random() < 0.5:
                DAMAGES[chance.choice(list(DAMAGES))](part, chance)
    whole = (material / "pairs/0/a.png").read_bytes()
    known = [path.read_bytes() for path in sorted(material.rglob("*")) if path.is_file() and path.suffix != ".png"]
    contents: list[Callable[[], bytes]] = [
        lambda: whole,
        lambda: whole[: chance.randrange(len(whole))],
        lambda: b"",
        lambda: chance.randbytes(chance.randrange(1, 300)),
        lambda: b"reference,distorted,distance\na.png,b.JPG,1\n",
        lambda: b"[1, null",
        lambda: chance.choice(known)[: chance.choice([100, 5000, None])],
        lambda: ENORMOUS,
    ]
    any_junk = folder / "any"
    os.mkfifo(folder / "pipe.png")  # whoever opens it waits for ever
    paths = [folder / "nowhere"]
    for index in range(number - sum(1 for _ in folder.rglob("*"))):
        place = any_junk / chance.choice(_FOLDERS)
        place.mkdir(parents=True, exist_ok=True)
        path = place / (chance.choice(_NAMES) if index < 100 else f"{index}-{chance.choice(_NAMES).lstrip('-')}")
        if path.exists() or path.is_symlink():
            continue
        if chance.random() < 0.1:
            path.symlink_to(chance.choice([folder, folder / "copy0", folder / "nowhere", path]))
        else:
            path.write_bytes(chance.choice(contents)())
            if chance.random() < 0.1:
                path.chmod(0)
    return [*paths, *sorted(path for path in folder.rglob("*") if not path.is_fifo())]


def fingerprint(*folders: Path, contents: bool = False) -> dict[str, object]:
    """What would change if anything in the folders did."""
    found: dict[str, object] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        status = path.lstat()
        told: object = None  # of a folder, in which outputs may have been tried
        if path.is_symlink():
            told = os.readlink(path)
        elif path.is_file():
            told = status.st_size, status.st_mtime_ns
            if contents and os.access(path, os.R_OK):
                told = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (status.st_ino, status.st_mode, told)
    return found


def draw_value(action: argparse.Action, folder: Path, paths: list[Path], wrong: float, chance: random.Random) -> str:
    """A value that an argument is meant for, or any other."""
    if chance.random() < wrong:
        return chance.choice([*_VALUES, str(chance.choice(paths))])
    if action.choices:
        return str(chance.choice(list(action.choices)))
    if action.dest in _MEANT:
        return str(folder / f"copy{chance.randrange(_COPIES)}" / _MEANT[action.dest])
    if action.dest in _SENSIBLE:
        return chance.choice(_SENSIBLE[action.dest])
    return chance.choice(["1", "2", "8", "30"]) if action.type not in (None, Path) else str(chance.choice(paths))


def draw_arguments(command: str, folder: Path, paths: list[Path], out: Path, chance: random.Random) -> list[str]:
    """Arguments that a hurried or mistaken user might give; what is written goes to a folder of its own."""
    (commands,) = (action for action in make_parser(command)._actions if action.choices)
    arguments, wrong = [command], chance.choice([0, 0.05, 0.25])
    for action in commands.choices[command]._actions:  # type: ignore[index]
        name = max(action.option_strings, key=len, default="")
        needed = action.required or name in ("--data", "--out", "--pairs")
        if name in _LEFT_OUT or chance.random() < (wrong / 4 if needed else 0.8):
            continue
        many = chance.choice([1, 1, 2])
        count = action.nargs if isinstance(action.nargs, int) else many if action.nargs in ("+", "*") else 1
        values = [draw_value(action, folder, paths, wrong, chance) for _ in range(count)]
        if count and name in _OUTPUTS:
            values = [
                str(out / chance.choice(["new", "new", "deep/new.csv", "mine", "mine/x", "to-nowhere", "circle"]))
            ]
        arguments += [*([name] if name else []), *values]
    if command == "calibrate":  # the bundle is what it writes to
        arguments[1:2] = [str(out / "bundle")]
    if command == "report" and "--out" not in arguments:  # or else it is in the run
        arguments += ["--out", str(out / "new")]
    arguments += _ALWAYS.get(command, [])
    if chance.random() < wrong:
        arguments[chance.randrange(len(arguments))] = chance.choice(_VALUES)
    return arguments


def fuzz(
    folder: Path, material: Path, files: int, lines: int, seed: int, capfd: pytest.CaptureFixture[str]
) -> Counter[tuple[str, int]]:
    """Run commands over junk; returns how often each ended with each status."""
    chance = random.Random(seed)
    out, junk = folder / "out", folder / "junk"
    paths = make_junk(junk, material, files, chance)
    whole, before = fingerprint(junk, contents=True), fingerprint(junk, Path(TINY_BUNDLE))
    ends: Counter[tuple[str, int]] = Counter()
    for line in range(lines):
        shutil.rmtree(out, ignore_errors=True)
        (out / "mine").mkdir(parents=True)
        (out / "mine" / "config.json").write_text("{}")
        (out / "to-nowhere").symlink_to(out / "no" / "where")
        (out / "circle").symlink_to("circle")
        command = list(COMMANDS)[line % len(COMMANDS)]
        if command == "calibrate" and (junk / f"copy{line % _COPIES}" / "bundle").is_dir():
            shutil.copytree(junk / f"copy{line % _COPIES}" / "bundle", out / "bundle", symlinks=True)
        theirs = fingerprint(out)
        arguments = draw_arguments(command, junk, paths, out, chance)
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
        left = fingerprint(out)
        assert theirs.items() <= left.items() or status < 2, place
        if not {"--cache", "--results"} & set(arguments) and command != "train":
            assert status < 2 or left == theirs, place
        ends[command, status] += 1
    assert fingerprint(junk, contents=True) == whole
    return ends


def test_commands_over_junk(material: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ends = fuzz(tmp_path, material, 200, len(COMMANDS), 0, capfd)
    assert {status for _, status in ends} >= {0, 2}


@pytest.mark.slow
def test_commands_over_much_junk(material: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ends: Counter[tuple[str, int]] = Counter()
    for seed in range(int(os.environ.get("AFV_METRIC_FUZZ", "2"))):
        ends += fuzz(tmp_path / str(seed), material, 1000, 100, 1 + seed, capfd)
    print(sorted(ends.items()))
    assert {status for _, status in ends} == {0, 1, 2}
