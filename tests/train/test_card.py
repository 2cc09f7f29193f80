"""Tests of afv_metric.train.card: what the card says stands in the files that it was made from."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from afv_metric.bundles.bundle import Bundle, load_bundle, save_bundle
from afv_metric.files import sha256_of
from afv_metric.train import card
from afv_metric.train.card import make_card, write_card
from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.settings import override

RECIPE = Recipe(width=4, generator_width=4, latent_size=8, negatives=0.5, iterations=900, r1=0.5, gamma=0.25, seed=6)
MACHINE = {"processor": "Z80", "instructions": "8 bit", "threads": 1, "processes": 2, "torch": "2.15.0"}


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that says all it can about its training."""
    training = {
        "iterations": 700,
        "hours": 1.69,
        "recipe": dataclasses.asdict(RECIPE),
        "data": "Holiday pictures | of 2019",
        "data_fingerprint": "64 images, c0ffee",
        "machines": [MACHINE, {"processor": "Abacus", "threads": 3}],
        "rate_factor": 0.5,
        "init": "tiny-imagenet-v3 fe7e29c857d5",
    }
    full = dataclasses.replace(bundle, training=training, licence={"weights": "CC0-1.0, do as you like"})
    return save_bundle(full, tmp_path / "bundle")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Curves of a run that went on after the bundle's checkpoint, and was killed while it wrote a line."""
    run = tmp_path / "run"
    run.mkdir()
    stats = [
        {"iteration": step, "seconds": step / 10, "loss_d": step / 1000, "loss_g": 0.5, "real": 1.0, "fake": -1.0}
        for step in range(50, 901, 50)
    ]
    monitors = [
        {"iteration": step, "fisher_similarity/held_out": 0.111 + step / 1e5, "agreement/local/mean": 0.654}
        | {"agreement/local/blur": 0.987, "random_agreement/local/mean": 0.321}
        for step in (0, 300, 600, 900)
    ]
    for name, lines in (("stats", stats), ("monitors", monitors)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / f"{name}.jsonl").write_text(text + '{"iteration": 95')
    return run


def table(text: str, head: str) -> list[list[str]]:
    """Cells of the body of the table that begins with this cell."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_facts(folder: Path) -> None:
    text = make_card(folder, chosen="on nothing,\nby heart")
    facts = dict(table(text, ""))
    assert facts["Discriminator"].startswith("32x32, 4 channels, leaky ReLU (0.2), logit at every position; ")
    assert facts["Generator"].startswith("4 channels, 8 latents; ")
    assert facts["Data"] == r"Holiday pictures \| of 2019; 64 images, c0ffee"
    assert facts["Training"] == (
        "700 iterations of batch 64 in 1.69 hours, seed 6; the run was set to 900; after rolling back, at 0.5 of the "
        "learning rates; started from tiny-imagenet-v3 fe7e29c857d5"
    )
    assert facts["Machine"] == "Z80, 8 bit, 1 thread, 2 processes, torch 2.15.0; then Abacus, 3 threads"
    assert facts["Losses"] == (
        "hinge on the logit of each position; gain 8 on it; spectral normalisation; 0.5 of a batch of corrupted images "
        "as negatives; 0.3 times the tolerance of shifts and the order of JPEG qualities; "
        "proximal term of the generator 0.25 (noise 0.01); "
        "gradient penalty 0.5 on real images"
    )
    assert facts["Weights used"] == "Polyak averages: discriminator 0.9995, generator 0.995 per iteration"
    assert facts["Statistics"].startswith("50 samples, source: generator")
    assert facts["Default form"] == ("`activation`")
    assert facts["Form `activation`"].startswith(
        "0.2 times the direction of the inputs of layers 3, 4, 5, 6, 7, 8 at 1/1"
    )
    assert facts["Form `activation`"].endswith("; pooling exponent 8; epsilon 0.03")
    assert facts["Forms `local` and `fisher`"] == (
        "levels 0.2, 0.4, 0.4 at scales 1, 1/2, 1/4; `local`: the layers of blocks 1, 2 (of 0 to 3)"
    )
    assert facts["How that was chosen"] == "on nothing, by heart"
    assert facts["Licence"] == "CC0-1.0, do as you like"
    assert dict(table(text, "setting")) == {f"`{name}`": str(v) for name, v in dataclasses.asdict(RECIPE).items()}
    hashes = {row[0]: row[2].strip("`") for row in table(text, "file")}
    assert hashes == {name: sha256_of(folder / name) for name in hashes}
    assert len(hashes) == 3
    assert text.startswith("---\nlibrary_name: afv-metric\nlicense: cc0-1.0\n")


def test_the_command_makes_the_recipe_again(folder: Path, run: Path) -> None:
    text = make_card(folder, run, chosen="by 'heart'", notes="None.")
    (train, export, command) = re.search(r"```sh\n(.*)\n(.*)\n(.*)\n```", text).groups()
    assert train.startswith("python -m afv_metric.train imagenet --data DATA --out RUN --init tiny-imagenet-v3 --set ")
    assignments = train.partition(" --set ")[2].split()
    assert override(RECIPES["imagenet"], assignments) == dataclasses.replace(RECIPE, iterations=700)
    assert export == (
        "python -m afv_metric.train export RUN --out BUNDLE --name tiny-bundle --samples 50 --seed 0 --form activation "
        "--levels 0.2 0.4 0.4 --blocks 1 2 --terms direction:0:3,4,5,6,7,8:0.2 direction:1:3,4,5,6,7,8:0.4 "
        "direction:2:3,4,5,6,7,8:0.4 --pooling 8 --epsilon 0.03 --data-name 'Holiday pictures | of 2019' "
        "--licence 'CC0-1.0, do as you like'"
    )
    assert command == (
        "python -m afv_metric.train card BUNDLE --run RUN --chosen 'by '\"'\"'heart'\"'\"'' --notes NOTES.md"
    )


def test_a_chain_of_runs(bundle: Bundle, tmp_path: Path) -> None:
    first = {"iterations": 300, "hours": 3, "recipe": dataclasses.asdict(RECIPES["imagenet"]), "init": ""}
    first["machines"] = [MACHINE]
    recipe = dataclasses.replace(RECIPES["folder"], seed=7)
    second = {"iterations": 5_000, "hours": 0.5, "recipe": dataclasses.asdict(recipe), "init": "v1 abc"}
    training = {**second, "machines": [{"processor": "Abacus"}], "before": first}
    text = make_card(save_bundle(dataclasses.replace(bundle, training=training), tmp_path / "bundle"))
    facts = dict(table(text, ""))
    assert facts["Training"] == (
        "300 iterations of batch 64 in 3 hours, seed 0; the run was set to 30,000; then 5,000 iterations of batch 64 "
        "in 0.5 hours, seed 7; started from v1 abc"
    )
    assert facts["Machine"] == "Z80, 8 bit, 1 thread, 2 processes, torch 2.15.0; then Abacus"
    assert re.search(r"```sh\n(.*)\n(.*)\n(.*) --set seed=7\n", text).groups() == (
        "python -m afv_metric.train imagenet --data DATA --out RUN1 --init none --set iterations=300",
        "python -m afv_metric.train export RUN1 --out v1",
        "python -m afv_metric.train folder --data DATA --out RUN --init v1",
    )


@pytest.mark.parametrize(("recorded", "option"), [({"init": ""}, " --init none"), ({}, "")])
def test_a_run_from_scratch(bundle: Bundle, tmp_path: Path, recorded: dict[str, str], option: str) -> None:
    training = {"iterations": 5_000, "recipe": dataclasses.asdict(RECIPES["folder"]), **recorded}
    text = make_card(save_bundle(dataclasses.replace(bundle, training=training), tmp_path / "bundle"))
    assert f"\npython -m afv_metric.train folder --data DATA --out RUN{option}\n" in text


def test_curves_up_to_the_checkpoint(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(card, "draw", lambda panels, columns: drawn.extend(panels))
    monkeypatch.setattr(card, "save_figure", lambda figure, path: None)
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    (run / "checkpoint-0000700.pt").touch()
    path = write_card(folder, run / "checkpoint-0000700.pt")
    text = path.read_text()
    assert path == folder / "README.md"
    losses, logits, similarity, agreement = drawn
    assert losses.curves["loss_d"] == [(step, step / 1000) for step in range(50, 701, 50)]
    assert list(logits.curves) == ["real", "fake"]
    assert [round(y, 3) for _, y in similarity.curves["fisher_similarity/held_out"]] == [0.111, 0.114, 0.117]
    assert list(agreement.curves) == ["agreement/local/mean", "random_agreement/local/mean"]
    assert "![samples of the generator](samples.png)" in text
    assert load_bundle(folder).card == text


def test_curves_are_drawn(folder: Path, run: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "![curves of the run](curves.png)" in write_card(folder, run).read_text()
    with Image.open(folder / "curves.png") as drawn:
        colours = drawn.convert("RGB").getcolors(1 << 20)
    assert drawn.width == 1800  # losses, mean logits, Fisher Similarity, agreement
    assert len(colours) > 50
    before = (folder / "curves.png").read_bytes()
    write_card(folder, run)
    assert (folder / "curves.png").read_bytes() == before


def test_without_matplotlib_there_is_no_picture(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "curves.png").write_bytes(b"of another run")
    monkeypatch.setattr(card.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("INFO", "afv_metric.train.card"):
        text = write_card(folder, run).read_text()
    assert "curves.png" not in text
    assert not (folder / "curves.png").exists()
    assert 'pip install "afv-metric[plots]"' in caplog.text


def test_the_card_changes_no_hash(folder: Path, run: Path) -> None:
    before = load_bundle(folder).hash
    write_card(folder, run, notes="Not for *sale*.\n")
    after = load_bundle(folder)
    assert after.hash == before
    assert after.hash in after.card
    assert "## Notes\n\nNot for *sale*.\n\n## Files" in after.card


def test_bundles_that_say_little(bundle: Bundle, tmp_path: Path) -> None:
    bare = dataclasses.replace(bundle, training={}, licence={}, sampling={})
    text = make_card(save_bundle(bare, tmp_path / "bare"))
    assert "records no recipe" in text
    assert "license: other" in text
    assert (
        not {"Data", "Training", "Machine", "Losses", "Licence", "How that was chosen"} & dict(table(text, "")).keys()
    )
    assert not re.search(r"## (Curves|Agreement|Notes)", text)


def test_a_run_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run"):
        write_card(folder, tmp_path / "nothing")


# Agreement with people


def record(
    value: float | None, low: float | None, high: float | None, difference: float | None = 0.0
) -> dict[str, Any]:
    """A score as bapps_eval writes it."""
    ends = [difference - 0.1, difference + 0.2] if difference is not None else [None, None]
    return {"value": value, "interval": [low, high], "difference": difference, "difference_interval": ends}


def results(folder: Path, **changes: object) -> Path:
    """What bapps_eval writes."""
    metrics = [
        {
            "name": name,
            "bundle_hash": digest,
            "scores": {"blur": record(mean, mean - 0.1, mean + 0.1), "cnn": record(mean, mean - 0.2, mean + 0.2)},
            "means": {
                "2AFC all": record(0.9, 0.9, 0.9),
                "mean of all": record(mean, mean - 0.05, mean + 0.05, mean - 0.6),
            },
        }
        for name, digest, mean in (("afv", load_bundle(folder).hash, 0.6), ("l2", None, 0.5))
    ]
    written = {
        "versions": {"torch": "2.15.0"},
        "settings": {"limit": 500, "root": "/home/me/sets", "seed": 0},
        "sets": [{"name": "blur", "measure": "srocc", "items": 99}, {"name": "cnn", "measure": "2afc", "items": 500}],
        "metrics": metrics,
    }
    path = folder.parent / "results.json"
    path.write_text(json.dumps(written | changes))
    return path


def test_agreement(folder: Path) -> None:
    text = make_card(folder, agreement=results(folder)).partition("## Agreement with people")[2]
    assert "| afv | 0.600 [0.500, 0.700] | 0.600 [0.400, 0.800] | 0.600 [0.550, 0.650] ||" in text
    ends = "0.500 [0.450, 0.550] | -0.100 [-0.200, +0.100] |"
    assert f"| l2 | 0.500 [0.400, 0.600] | 0.500 [0.300, 0.700] | {ends}" in text
    assert "blur: srocc of 99 items, cnn: 2afc of 500 items" in text
    assert "with seed 0, limit 500, torch 2.15.0." in text
    assert "/home/me" not in text


def test_the_hub_reads_the_scores_of_the_bundle(folder: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(make_card(folder, agreement=results(folder))).data
    found = [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results]
    assert (data.model_name, data.license) == ("tiny-bundle", "cc0-1.0")
    assert found == [("blur", "srocc", 0.6), ("cnn", "2afc", 0.6)]


def test_undefined_scores_are_dashes(folder: Path) -> None:
    undefined = record(None, None, None, None)
    first = {"name": "afv", "bundle_hash": load_bundle(folder).hash}
    first |= {"scores": {"blur": undefined, "cnn": undefined | {"value": 0.7}}, "means": {"mean of all": undefined}}
    text = make_card(folder, agreement=results(folder, metrics=[first, first | {"name": "l2"}]))
    assert "| afv | - | 0.700 | - ||" in text
    assert "| l2 | - | 0.700 | - ||" in text
    assert re.findall(r"value: (.*)", text) == ["0.7"]


def test_agreement_of_another_bundle_is_refused(folder: Path) -> None:
    means = {"mean of all": record(0.9, 0.8, 1)}
    other = [{"name": "afv", "bundle_hash": "0" * 64, "scores": {"blur": record(0.9, 0.8, 1)}, "means": means}]
    with pytest.raises(
        ValueError, match=r"not measured on the bundle tiny-bundle \([0-9a-f]{12}\), but on 000000000000"
    ):
        make_card(folder, agreement=results(folder, metrics=other))


@pytest.mark.parametrize("changes", [{"metrics": []}, {"metrics": [{"name": "afv"}]}, {"sets": 3}])
def test_agreement_that_cannot_be_read(folder: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not what python -m bapps_eval --json writes"):
        make_card(folder, agreement=results(folder, **changes))
