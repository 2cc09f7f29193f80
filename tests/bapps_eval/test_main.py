"""The command from its arguments to its exit status, table and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judged_sets import save_pairs, save_root

from bapps_eval.__main__ import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """See :func:`save_root`."""
    return save_root(tmp_path / "bapps")


@pytest.fixture(autouse=True)
def _no_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPPS_ROOT", raising=False)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list on which ``l2`` has rank correlation 0.5."""
    return save_pairs(tmp_path / "noise.csv", [10, 20, 30], [1, 3, 2])


def test_scores_by_hand(root: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]
    arguments = ["--root", str(root), "--pairs", str(pairs), "--metric", "l2", "ssim", "--quiet", *files]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[0].split()[:5] == [
        "2afc/cnn",
        "2afc/traditional",
        "jnd/cnn",
        "noise",
        "mean",
    ]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["metrics"][0]["scores"] == pytest.approx(
        {"2afc/cnn": 0.625, "2afc/traditional": 1, "jnd/cnn": 5 / 6, "noise": 0.5}
    )
    assert record["metrics"][0]["mean"] == pytest.approx((0.625 + 1 + 5 / 6 + 0.5) / 4)
    assert [metric["name"] for metric in record["metrics"]] == ["l2", "ssim"]
    assert record["settings"]["root"] == [str(root)]
    assert [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()] == [
        "metric",
        "l2",
        "ssim",
    ]


def test_runs_are_reproducible(root: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert main(["--root", str(root), "--metric", "l2", "--quiet", "--csv", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_progress_is_on_stderr(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pairs", str(pairs), "--metric", "l2"]) == 0
    printed = capsys.readouterr()
    assert "3/3" in printed.err
    assert "3/3" not in printed.out


def test_default_root_is_bapps_root(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAPPS_ROOT", str(root))
    assert main(["--metric", "l2", "--quiet"]) == 0
    assert "2afc/cnn" in capsys.readouterr().out


def test_limit(root: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--pairs", str(pairs), "--metric", "l2", "--quiet", "--limit", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["2", "1", "2", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --root or --pairs, or set BAPPS_ROOT"),
        (["--pairs", "list.csv", "--metric", "psnr"], "invalid choice: 'psnr'"),
        (["--pairs", "list.csv", "--forms", "deep"], "invalid choice: 'deep'"),
        (["--pairs", "list.csv", "--batch-size", "0"], "must be at least 1, got 0"),
        (["--pairs", "list.csv", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_name_the_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pairs", str(tmp_path / "lost.csv"), "--metric", "l2", "--quiet"]) == 1
    assert "lost.csv" in capsys.readouterr().err
    (root / "2afc/val/cnn/p1/000001.png").write_text("not an image")
    assert main(["--root", str(root), "--metric", "l2", "--quiet", "--csv", str(tmp_path / "out.csv")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: cannot read the image ")
    assert "2afc/val/cnn/p1/000001.png" in printed.err
    assert printed.out == ""
    assert not (tmp_path / "out.csv").exists()


def test_unknown_bundle(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pairs", str(pairs), "--weights", "no such bundle", "--quiet"]) == 1
    assert "no such bundle" in capsys.readouterr().err
