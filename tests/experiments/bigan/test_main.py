"""The command, from images to a metric."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bapps_eval.metrics import Choice, make_metrics
from experiments.bigan.__main__ import main
from experiments.bigan.encoder import load_encoder

SMALL = [
    "--quiet", "--set", "width=4", "generator_width=4", "latent_size=8", "hidden=16", "batch_size=8", "iterations=2",
    "held_out=0.25",
]  # fmt: skip


def test_from_images_to_a_metric(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = str(tmp_path / "run"), tmp_path / "encoder"
    assert main(["train", str(images), "--out", run, *SMALL]) == 0
    assert main(["export", run, "--out", str(folder), "--quiet"]) == 0
    trained = load_encoder(folder)
    assert (trained.name, trained.training["iterations"]) == ("encoder", 2)
    assert main(["export", run, "--out", str(folder), "--name", "mine", "--quiet"]) == 0
    monkeypatch.setenv("BIGAN_ENCODER", str(folder))
    (metric,) = make_metrics(["experiments.bigan.encoder:distance"], Choice())
    assert (metric.distances([torch.zeros(2, 3, 32, 32), torch.rand(2, 3, 32, 32)]) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{tmp}/none", "--out", "{tmp}/run"], "none"),
        (["train", "{tmp}", "--out", "{tmp}/run", "--set", "depth=5"], "expected NAME=VALUE"),
        (["export", "{tmp}", "--out", "{tmp}/encoder"], "there is no checkpoint in"),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(tmp=tmp_path) for argument in [*arguments, "--quiet"]]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_an_interruption_says_how_to_go_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.bigan.__main__.train", interrupt)
    assert main(["train", str(images), "--out", str(tmp_path), *SMALL]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


def test_settings_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "latent_size (64)" in " ".join(capsys.readouterr().out.split())
