"""The command from its arguments to its exit status, tables and files."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged_sets import save_pairs, save_root

import bapps_eval.__main__ as command
from bapps_eval.__main__ import main
from bapps_eval.results import load_results


@pytest.fixture(autouse=True)
def _no_bapps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BAPPS_ROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """See :func:`save_root`."""
    return save_root(tmp_path / "bapps")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list on which ``l2`` has rank correlation 0.5."""
    return save_pairs(tmp_path / "noise.csv", [10, 20, 30], [1, 3, 2])


def run(*arguments: object, metrics: Sequence[str] = ("l2",)) -> int:
    """The command without progress bar and worker processes."""
    return main([*map(str, arguments), "--metric", *metrics, "--quiet", "--workers", "0"])


def test_scores_by_hand(root: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "markdown", "html", "npz")}
    outputs = [text for name, file in files.items() for text in (f"--{name.replace('npz', 'results')}", file)]
    assert run("--root", root, "--pairs", pairs, *outputs, metrics=["l2", "ssim"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[1].split() == ["traditional*", "cnn*", "distortion*"]
    record = json.loads(files["json"].read_text())
    scores = {name: score["value"] for name, score in record["metrics"][0]["scores"].items()}
    expected = {"2afc/traditional": 1, "2afc/cnn": 0.625, "jnd/cnn": 5 / 6, "noise": 0.5}
    assert scores == pytest.approx(expected)
    assert record["metrics"][0]["means"]["mean of all"]["value"] == pytest.approx(np.mean(list(expected.values())))
    assert [metric["name"] for metric in record["metrics"]] == ["l2", "ssim"]
    assert record["settings"]["root"] == [str(root)]
    assert record["settings"]["batch_size"] == 64
    assert record["versions"]["torch"] == torch.__version__
    with files["csv"].open(newline="") as file:
        lines = {(line["metric"], line["set"], line["measure"]): line for line in csv.DictReader(file)}
    assert float(lines["l2", "2afc/cnn", "2AFC"]["score"]) == 0.625
    assert float(lines["l2", "noise", "SROCC"]["score"]) == pytest.approx(0.5)
    assert "| l2 | 1.000 [1.000, 1.000]" in files["markdown"].read_text()
    assert "<title>" in files["html"].read_text()
    assert load_results(files["npz"]).distances[0][0].shape == (1, 2)


def test_the_report_is_made_again_without_images(
    root: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outputs(folder: str) -> list[str]:
        files = {"--json": "a.json", "--csv": "a.csv", "--markdown": "a.md"}
        return [text for option, name in files.items() for text in (option, str(tmp_path / folder / name))]

    assert run("--root", root, "--pairs", pairs, "--results", tmp_path / "a.npz", *outputs("one")) == 0
    first = capsys.readouterr().out
    for image in [*root.rglob("*.png"), *tmp_path.glob("*.png")]:
        image.unlink()
    html = tmp_path / "two/a.html"
    assert main(["report", str(tmp_path / "a.npz"), *outputs("two"), "--html", str(html)]) == 0
    assert capsys.readouterr().out == first
    for name in ("a.json", "a.csv", "a.md"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert "There is no gallery" in html.read_text()


def test_runs_are_reproducible(root: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run("--root", root, "--csv", tmp_path / name) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_progress_is_on_stderr(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pairs", str(pairs), "--metric", "l2", "--workers", "0"]) == 0
    printed = capsys.readouterr()
    assert "3/3" in printed.err
    assert re.search(r"\d+ items a second, \d+% of the time waiting for images", printed.err)
    assert "3/3" not in printed.out


def test_default_root_is_bapps_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAPPS_ROOT", str(root))
    assert run("--results", tmp_path / "a.npz") == 0
    assert "traditional*" in capsys.readouterr().out
    assert load_results(tmp_path / "a.npz").settings["root"] == [str(root)]


def test_pairs_alone_leave_bapps_out(
    root: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAPPS_ROOT", str(root))
    assert run("--pairs", pairs) == 0
    assert "traditional" not in capsys.readouterr().out


def test_parts_of_bapps(root: Path, tmp_path: Path) -> None:
    assert run("--root", root, "--task", "2afc", "--families", "cnn", "--results", tmp_path / "a.npz") == 0
    assert [judged.name for judged in load_results(tmp_path / "a.npz").sets] == ["2afc/cnn"]


def test_limited_sets_are_marked(root: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--root", root, "--pairs", pairs, "--limit", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "* partial: jnd/cnn: 2 of 4,800 items" in lines
    assert "* partial: noise: 2 of 3 items" in lines


def test_without_data_three_lines_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--split", "val"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 3
    assert str(tmp_path / "cache") in lines[0]
    for line, option in zip(lines, ("--download", "--root DIR", "--pairs FILE.csv"), strict=True):
        assert option in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "list.csv", "--batch-size", "0"], "must be at least 1, got 0"),
        (["--pairs", "list.csv", "--workers", "-1"], "must be at least 0, got -1"),
        (["--pairs", "list.csv", "--device", "abacus"], "abacus"),
        (["--task", "3afc"], "invalid choice: '3afc'"),
        (["report"], "RESULTS.npz"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_metrics_list_the_known(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pairs", pairs, metrics=["l2", "l3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no metric 'l3'; there are ")
    for name in ("afv:fisher", "ms-ssim", "lpips-alex-baseline", "MODULE:CALLABLE"):
        assert name in error


def test_errors_name_the_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pairs", tmp_path / "lost.csv") == 1
    assert "lost.csv" in capsys.readouterr().err
    (root / "2afc/val/cnn/p1/000001.png").write_text("not an image")
    assert run("--root", root, "--csv", tmp_path / "out.csv") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: cannot read the image ")
    assert "2afc/val/cnn/p1/000001.png" in printed.err
    assert printed.out == ""
    assert not (tmp_path / "out.csv").exists()
    assert main(["report", str(tmp_path / "lost.npz")]) == 1
    assert "lost.npz" in capsys.readouterr().err


def test_unknown_bundle(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pairs", pairs, "--weights", "no such bundle", metrics=["afv"]) == 2
    assert "no such bundle" in capsys.readouterr().err


def stop_after(monkeypatch: pytest.MonkeyPatch, sets: int, error: BaseException) -> list[str]:
    """Let the command fail when so many sets are saved; gives the names of the sets that it has measured since."""
    save, measured = command.save_results, []

    def save_and_stop(path: Path, results: Any) -> None:
        save(path, results)
        measured.append(results.sets[-1].name)
        if len(results.sets) == sets:
            raise error

    monkeypatch.setattr(command, "save_results", save_and_stop)
    return measured


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("the power went")])
def test_an_interrupted_run_goes_on(
    root: Path,
    pairs: Path,
    tmp_path: Path,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--root", root, "--pairs", pairs]

    def kept(name: str) -> list[object]:
        return ["--results", tmp_path / f"{name}.npz", "--csv", tmp_path / f"{name}.csv"]

    assert run(*given, *kept("whole"), metrics=["l2", "ssim"]) == 0
    whole = capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 1, error)
        status = run(*given, *kept("parts"), metrics=["l2", "ssim"])
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "--resume" in message or isinstance(error, ValueError)
    assert main(["report", str(tmp_path / "parts.npz")]) == 0
    assert "unfinished; still to measure: 2afc/cnn, jnd/cnn, noise." in capsys.readouterr().out
    measured = stop_after(monkeypatch, -1, error)
    assert run(*given, *kept("parts"), "--resume", metrics=["l2", "ssim"]) == 0
    assert measured == ["2afc/cnn", "jnd/cnn", "noise"]
    assert capsys.readouterr().out == whole
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    one, other = (load_results(tmp_path / f"{name}.npz") for name in ("whole", "parts"))
    np.testing.assert_equal(one.distances, other.distances)
    assert other.unfinished == []
    assert run(*given, *kept("parts"), "--resume", metrics=["l2", "ssim"]) == 0
    assert len(measured) == 3
    assert capsys.readouterr().out == whole


def test_another_run_is_not_resumed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.npz"
    assert run("--root", root, "--results", file) == 0
    before = file.read_bytes()
    assert run("--root", root, "--results", file, "--resume", "--limit", 1, metrics=["ssim"]) == 1
    error = capsys.readouterr().err
    for difference in ("metric 1 was l2, now ssim", "limit was None, now 1", "2afc/cnn has other items"):
        assert difference in error
    assert file.read_bytes() == before
    assert run("--root", root, "--resume") == 2
    assert "--results FILE.npz" in capsys.readouterr().err


def test_interrupted_without_results(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupt)
    assert run("--pairs", pairs) == 130
    assert capsys.readouterr().err.startswith("interrupted; with --results FILE.npz finished sets are kept")


def test_download_fetches_what_was_asked_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(command, "download", lambda *given, **settings: asked.append((given, settings)))
    assert run("--root", root, "--download", "--url", "http://127.0.0.1/data", "--task", "2afc") == 0
    ((given, settings),) = asked
    assert root in given
    assert settings["url"] == "http://127.0.0.1/data"
    assert "traditional*" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("--root", root, "--download") == 2
    assert "without torchrun" in capsys.readouterr().err


def test_interrupted_download(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "download", interrupt)
    assert run("--root", root, "--download") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with the download\n"


def test_two_processes_find_what_one_finds(
    root: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", root, "--pairs", pairs, "--results", tmp_path / "two.npz", "--resume"]
    assert run("--root", root, "--pairs", pairs, "--csv", tmp_path / "one.csv") == 0
    one = capsys.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    second = subprocess.Popen(
        [sys.executable, "-m", "bapps_eval", *map(str, given), "--metric", "l2", "--workers", "0"],
        env=os.environ | place | {"RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for name, value in (place | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    status = run(*given, "--csv", tmp_path / "two.csv")
    said, _ = second.communicate(timeout=120)
    # The second process says nothing, unless something went wrong.
    assert (status, second.returncode, said) == (0, 0, "")
    assert capsys.readouterr().out == one
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(load_results(tmp_path / "two.npz").sets) == 4
