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

import numpy as np
import pytest
import torch
from judged_sets import save_pairs, save_root

from bapps_eval.__main__ import main
from bapps_eval.results import Measured, Results, load_results


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
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "markdown", "html", "jsonl")}
    outputs = [text for name, file in files.items() for text in (f"--{name.replace('jsonl', 'results')}", file)]
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
    assert re.search(r"\| l2 +\| +1.000 \[1.000, 1.000\]", files["markdown"].read_text())
    assert "<title>" in files["html"].read_text()
    assert load_results(files["jsonl"]).distances[0].shape == (2, 1, 2)


def test_the_report_is_made_again_without_images(
    root: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outputs(folder: str) -> list[str]:
        files = {"--json": "a.json", "--csv": "a.csv", "--markdown": "a.md"}
        return [text for option, name in files.items() for text in (option, str(tmp_path / folder / name))]

    assert run("--root", root, "--pairs", pairs, "--results", tmp_path / "a.jsonl", *outputs("one")) == 0
    first = capsys.readouterr().out
    for image in [*root.rglob("*.png"), *tmp_path.glob("*.png")]:
        image.unlink()
    html = tmp_path / "two/a.html"
    assert main(["report", str(tmp_path / "a.jsonl"), *outputs("two"), "--html", str(html)]) == 0
    assert capsys.readouterr().out == first
    for name in ("a.json", "a.csv", "a.md"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert "There is no gallery" in html.read_text()


def test_runs_are_reproducible(root: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run("--root", root, "--csv", tmp_path / name) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_default_root_is_bapps_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAPPS_ROOT", str(root))
    assert run("--results", tmp_path / "a.jsonl") == 0
    assert "traditional*" in capsys.readouterr().out
    assert load_results(tmp_path / "a.jsonl").settings["root"] == [str(root)]


def test_pairs_alone_leave_bapps_out(
    root: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAPPS_ROOT", str(root))
    assert run("--pairs", pairs) == 0
    assert "traditional" not in capsys.readouterr().out


def test_parts_of_bapps(root: Path, tmp_path: Path) -> None:
    assert run("--root", root, "--task", "2afc", "--families", "cnn", "--results", tmp_path / "a.jsonl") == 0
    assert [judged.name for judged in load_results(tmp_path / "a.jsonl").sets] == ["2afc/cnn"]


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
        (["report"], "RESULTS"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_metrics_are_checked_before_the_data_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pairs", tmp_path / "lost.csv", metrics=["l2", "lpips"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no metric 'lpips'; did you mean lpips-alex or ")


def test_outputs_are_tried_before_the_work(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", pairs / "out.csv"):
        for option in ("--csv", "--html", "--results"):
            assert run("--pairs", tmp_path / "lost.csv", option, path) == 2
            assert f"{option} {path} " in capsys.readouterr().err


def test_no_output_replaces_what_is_read_or_another(
    root: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, judgements, one = tmp_path / "run.jsonl", pairs.read_bytes(), tmp_path / "one"
    assert run("--root", root, "--results", results) == 0
    capsys.readouterr()
    measured = results.read_bytes()
    assert run("--pairs", pairs, "--csv", pairs) == 2
    assert run("--pairs", pairs, "--json", one, "--results", one) == 2
    assert main(["report", str(results), "--html", str(results)]) == 2
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["--csv", "--results", "--html"]
    assert (pairs.read_bytes(), results.read_bytes(), one.exists()) == (judgements, measured, False)


def test_wrong_input_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in (
        (["--pairs", tmp_path / "lost.csv"], "lost.csv"),
        (["--root", tmp_path / "nope"], "nope is not there"),
        (["--pairs", root], "is a folder, not a CSV list"),
        (["--root", root, "--resume"], "--results FILE"),
    ):
        assert run(*given) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert message in printed.err
        assert (len(printed.err.splitlines()), printed.out) == (1, "")
    assert main(["report", str(tmp_path / "lost.jsonl")]) == 2
    assert "lost.jsonl" in capsys.readouterr().err


def test_an_item_that_cannot_be_read_is_named_and_the_others_are_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "2afc/val/cnn/p1/000001.png").write_text("not an image")
    assert run("--root", root, "--csv", tmp_path / "out.csv", "--results", tmp_path / "a.jsonl") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: 2afc/cnn: cannot read the image ")
    assert "2afc/val/cnn/p1/000001.png" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert "* partial: 2afc/cnn: 1 of 4,720 items" in printed.out
    assert (tmp_path / "out.csv").exists()
    assert main(["report", str(tmp_path / "a.jsonl")]) == 1
    assert capsys.readouterr() == printed


def test_foreign_files_are_counted_in_one_line(root: Path) -> None:
    (root / "2afc/val/cnn/p1/Thumbs.db").touch()
    (root / "2afc/val/@eaDir").mkdir()
    command = [sys.executable, "-m", "bapps_eval", "--root", str(root), "--metric", "l2", "--quiet", "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"{root}: 2 foreign files or folders passed over, first ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_does_not_cost_the_files(root: Path, tmp_path: Path) -> None:
    given = ["--root", str(root), "--metric", "l2", "--quiet", "--workers", "0", "--json", str(tmp_path / "out.json")]
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bapps_eval", *given]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out.json").read_text())["metrics"]


def test_an_interrupted_run_goes_on(
    root: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", root, "--pairs", pairs, "--batch-size", 1]

    def kept(name: str) -> list[object]:
        return ["--results", tmp_path / f"{name}.jsonl", "--csv", tmp_path / f"{name}.csv"]

    assert run(*given, *kept("whole")) == 0
    whole = capsys.readouterr().out
    write, written = Results.write, []

    def stop(self: Results, index: int, items: Sequence[Measured]) -> None:
        write(self, index, items)
        written.append(index)
        if len(written) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "write", stop)
        assert run(*given, *kept("parts")) == 130
        message = capsys.readouterr().err
        assert (len(message.splitlines()), "--resume" in message, "parts.jsonl" in message) == (1, True, True)
        written.clear()
        assert run(*given) == 130
        assert capsys.readouterr().err.startswith("interrupted; with --results FILE what is measured is kept")
    assert len((tmp_path / "parts.jsonl").read_text().splitlines()) == 1 + 5
    assert main(["report", str(tmp_path / "parts.jsonl")]) == 0
    assert "unfinished; still to measure: jnd/cnn, noise." in capsys.readouterr().out
    for _ in range(2):
        assert run(*given, *kept("parts"), "--resume") == 0
        assert capsys.readouterr().out == whole
        assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert len((tmp_path / "parts.jsonl").read_text().splitlines()) == 1 + 10
    assert run(*given, *kept("parts"), "--resume", "--limit", 2) == 2
    assert "limit was not there, now 2; set jnd/cnn has other items" in capsys.readouterr().err


def test_unknown_bundle(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pairs", pairs, "--weights", "no such bundle", metrics=["afv"]) == 2
    assert "no such bundle" in capsys.readouterr().err


def test_download_fetches_what_was_asked_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr("bapps_eval.download.download", lambda *given, **settings: asked.append((given, settings)))
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

    monkeypatch.setattr("bapps_eval.download.download", interrupt)
    assert run("--root", root, "--download") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with the download\n"


def test_two_processes_find_what_one_finds(
    root: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", root, "--pairs", pairs, "--results", tmp_path / "two.jsonl", "--resume"]
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
    assert len(load_results(tmp_path / "two.jsonl").sets) == 4
