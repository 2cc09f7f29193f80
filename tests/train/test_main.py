import dataclasses
import json
import os
import stat

import numpy as np
import pytest
import torch
from conftest import TINY_BUNDLE
from PIL import Image

from afv_metric import AFVDistance, load_bundle
from afv_metric.train.__main__ import main
from afv_metric.train.checkpoint import latest_checkpoint, load_checkpoint
from afv_metric.train.recipes import RECIPES

SMALL = [
    "width=4", "generator_width=4", "latent_size=8", "batch_size=8", "iterations=2", "precision=float32",
    "monitor_samples=8", "held_out=0.25",
]  # fmt: skip


def test_from_images_to_a_metric_by_the_command(images, tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "bundle"
    assert main(["imagenet", "--data", str(images), "--out", run, "--quiet", "--set", *SMALL]) == 0
    arguments = ["--samples", "30", "--form", "fisher", "--levels", "0.5", "0.5", "--licence", "CC0", "--quiet"]
    assert main(["export", run, "--out", str(out), *arguments]) == 0
    bundle = load_bundle(out, generator=True)
    assert (out / "samples.png").exists()
    assert (bundle.statistics.count, bundle.form, bundle.levels) == (30, "fisher", (0.5, 0.5))
    assert bundle.training["iterations"] == 2
    saved = load_checkpoint(latest_checkpoint(run))
    assert torch.equal(bundle.discriminator.head.weight, saved["averaged_discriminator"]["head.weight"])
    first, second = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert (AFVDistance(out)(first, second) > 0).all()

    again = str(tmp_path / "again")
    init = ["--init", str(out), "--set", *SMALL[4:]]  # its networks give their shapes
    assert main(["folder", "--data", str(images), "--out", again, "--quiet", *init]) == 0
    assert load_checkpoint(latest_checkpoint(again))["recipe"]["width"] == 4
    assert main(["folder", "--data", str(images), "--out", again, "--quiet", *init, "width=5"]) == 2
    assert "width was 4 and is now 5" in capsys.readouterr().err


def test_a_bundle_is_adapted_by_the_command(images, tmp_path, capsys):
    out = tmp_path / "mine"
    arguments = ["--data", str(images), "--init", str(TINY_BUNDLE), "--samples", "70", "--seed", "3", "--quiet"]
    assert main(["adapt", "--out", str(out), *arguments]) == 0
    adapted = load_bundle(out)
    assert (adapted.name, adapted.statistics.count, adapted.sampling["seed"]) == ("mine", 70, 3)
    command = "adapt --data IMAGES --out BUNDLE --init tiny-bundle --name mine --samples 70 --seed 3\n"
    assert "--out tiny-bundle --form activation" in adapted.card
    assert command in adapted.card
    assert main(["validate", str(out), "--quiet"]) == 0
    assert "the statistics are of 'images', not of the generator" in capsys.readouterr().out


def test_one_s_own_images_start_from_the_shipped_bundle(capsys):
    assert main(["folder", "--show"]) == 0
    shown = json.loads(capsys.readouterr().out)
    config = load_bundle("tiny-imagenet-v8").discriminator.config
    assert (shown["name"], tuple(shown["width"]), shown["slope"]) == ("folder", config.width, config.slope)


@pytest.mark.parametrize("name", RECIPES)
def test_showing_a_recipe(name, capsys):
    assert main([name, "--init", "none", "--show", "--set", "seed=5"]) == 0
    expected = dataclasses.asdict(dataclasses.replace(RECIPES[name], seed=5))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected))


def test_agreement_with_people_is_watched(images, tmp_path):
    judged = tmp_path / "judged"
    generator = np.random.default_rng(0)
    lines = ["reference,distorted,distance"]
    judged.mkdir()
    for index in range(6):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(judged / f"{index}.png")
        lines.append(f"0.png,{index}.png,{index}")
    (judged / "pairs.csv").write_text("\n".join(lines))
    arguments = ["--out", str(tmp_path / "run"), "--judged", str(judged / "pairs.csv"), "--quiet", "--set", *SMALL]
    assert main(["imagenet", "--data", str(images), *arguments]) == 0
    last = json.loads((tmp_path / "run" / "monitors.jsonl").read_text().splitlines()[-1])
    assert -1 <= last["agreement/activation/mean"] <= 1
    assert -1 <= last["random_agreement/activation/mean"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet"], "training needs --data"),
        (["imagenet", "--data", "{tmp}/none", "--out", "{tmp}/run"], "none"),
        (["imagenet", "--data", "{tmp}", "--out", "{tmp}/run", "--set", "width=x"], "width must be a number"),
        (["export", "{tmp}", "--out", "{tmp}/bundle"], "no checkpoint in"),
        (["folder", "--init", "no-such-bundle", "--data", "{tmp}", "--out", "{tmp}/run"], "no-such-bundle"),
        (["imagenet", "--data", "{tmp}", "--out", "{tmp}/new/run"], "holds no image"),
        (["adapt", "--data", "{tmp}", "--init", str(TINY_BUNDLE), "--out", "{tmp}/new/bundle"], "holds no image"),
        (["adapt", "--data", "{tmp}", "--init", "no-such-bundle", "--out", "{tmp}/new/bundle"], "no-such-bundle"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["adapt", "export"])
def test_a_place_that_holds_something_else_is_refused_before_the_work(images, command, tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text('{"my": "settings"}')
    work = {"adapt": "adapt_bundle", "export": "export_run"}[command]
    monkeypatch.setattr(f"afv_metric.train.{command}.{work}", None)
    given = {"adapt": ["--data", str(images), "--init", str(TINY_BUNDLE)], "export": [str(images)]}
    assert main([command, *given[command], "--out", str(tmp_path)]) == 2
    assert "is not a bundle and not empty: it holds config.json" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == '{"my": "settings"}'


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_reported(images, tmp_path, capsys):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert main(["imagenet", "--data", str(images), "--out", str(tmp_path / "run"), "--set", *SMALL]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_file_where_the_run_should_be_is_reported(images, tmp_path, capsys):
    (tmp_path / "run").write_text("not a folder")
    assert main(["imagenet", "--data", str(images), "--out", str(tmp_path / "run"), "--set", *SMALL]) == 2
    assert "run is no folder" in capsys.readouterr().err


def test_a_report_is_drawn(images, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    assert main(["imagenet", "--data", str(images), "--out", str(run), "--quiet", "--set", *SMALL]) == 0
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().lower().startswith("<!doctype html>")
    assert str(run / "report.html") in capsys.readouterr().out
