"""Agreement over a run: the table's numbers are those of the metric, and the extrapolations are what they say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged_sets import save_pairs
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.images import read_image
from afv_metric.train.checkpoint import save_checkpoint
from afv_metric.train.export import export_run
from afv_metric.train.recipes import Recipe
from afv_metric.train.state import State
from experiments import agreement

ROOT = Path(__file__).parents[2]
TINY_BUNDLE = ROOT / "tests" / "data" / "tiny-bundle"
RECIPE = Recipe(width=2, generator_width=2, latent_size=4, batch_size=2, precision="float32")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(asdict(RECIPE)))
    state = State(RECIPE, torch.device("cpu"))
    for iteration in (4, 16):
        state.iteration, state.seconds = iteration, 900.0 * iteration
        with torch.no_grad():
            state.averaged_discriminator.blocks[0].conv1.weight.mul_(1.5)
        save_checkpoint(run, state.to_checkpoint(RECIPE))
    return run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    levels, judged = [16 * step for step in range(1, 13)], [3, 1, 2, 6, 5, 4, 9, 8, 7, 12, 10, 11]
    path = save_pairs(tmp_path / "grey" / "scores.csv", levels, judged)
    for picture in path.parent.glob("*.png"):  # the metric takes images of 32 pixels at least
        Image.open(picture).resize((32, 32)).save(picture)
    return path


def test_table_and_numbers(run: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    results, picture = tmp_path / "results.json", tmp_path / "curve.png"
    options = [
        "--pairs",
        str(pairs),
        "--samples",
        "20",
        "--quiet",
        "--peers",
        "l2",
        "psnr",
        "--json",
        str(results),
        "--picture",
        str(picture),
    ]
    agreement.main([str(run), *options])
    text = capsys.readouterr().out
    found = json.loads(results.read_text())
    names = ["run-4", "run-16", "l2", "psnr", "random initialisation"]
    assert [row["name"] for row in found["rows"]] == names
    metric = AFVDistance(export_run(run, "x", checkpoint=4, samples=20, quiet=True))
    rows = [line.split(",") for line in pairs.read_text().splitlines()[1:]]
    images = [[read_image(pairs.parent / name) for name in row[:2]] for row in rows]
    distances = [float(metric(*pair)) for pair in images]
    ranks = np.argsort(np.argsort(distances))
    expected = np.corrcoef(ranks, [float(row[2]) for row in rows])[0, 1]
    assert found["rows"][0]["mean"] == pytest.approx(expected, abs=1e-6)
    assert found["rows"][-1]["difference"] == 0
    assert re.search(r"\| run-16 +\| activation \| 4.00 +\| ", text)
    assert "200000 hours at the speed of this run" in text  # a quarter of an hour an iteration
    operations = agreement.count_operations(RECIPE)
    assert f"run: {operations / 1e9:.1f} GFLOP per iteration" in text
    assert f"{operations * 8e5 / 1e13 / 3600:.1f} GPU hours at 10 TFLOP/s (assumed)" in text
    assert picture.stat().st_size > 1000


def test_bundles_in_several_forms_and_at_each_level(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agreement.main(
        [
            str(TINY_BUNDLE),
            "--pairs",
            str(pairs),
            "--forms",
            "local",
            "fisher",
            "--by-level",
            "--peers",
            "l2",
            "--quiet",
        ]
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    bundle = ["tiny-bundle", *(f"tiny-bundle, level {level} alone" for level in range(3))]
    names = [(name, "local") for name in bundle] + [("l2", ""), ("random initialisation", "local")]
    names += [(name, "fisher") for name in (*bundle, "random initialisation")]
    assert [tuple(row[1:3]) for row in rows[2:]] == names
    assert len({tuple(row[4:6]) for row in rows[2:6]}) > 1


def test_growth_continues_a_straight_line_over_the_logarithm() -> None:
    def row(iterations: int | None, mean: float) -> Any:
        return agreement.Row("", "", iterations, iterations, [mean], mean, (0, 1))

    slope, end = agreement.growth([row(1_000, 0.5), row(2_000, 0.52), row(8_000, 0.56), row(None, 0.9)])
    assert slope == pytest.approx(0.02)
    assert end == pytest.approx(0.5 + 0.02 * math.log2(800))
    with pytest.raises(ValueError, match="two checkpoints"):
        agreement.growth([row(1_000, 0.5), row(None, 0.9)])


def test_operations_grow_with_the_batch_and_count_a_known_layer() -> None:
    one, two = (agreement.count_operations(replace(RECIPE, batch_size=size, negatives=0.0)) for size in (2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)  # but for what is done once, such as spectral normalisation


def test_wrong_requests_end_with_one_line(run: Path, pairs: Path, capsys: Any) -> None:
    for arguments, message in (
        ([str(run), "--pairs", str(pairs), "--checkpoints", "5"], "keeps the checkpoints 4, 16"),
        ([str(run.parent), "--pairs", str(pairs)], "keeps the checkpoints of no iteration"),
        ([str(run)], "give sets with --root"),
    ):
        with pytest.raises(SystemExit):
            agreement.main(arguments)
        assert message in capsys.readouterr().err
