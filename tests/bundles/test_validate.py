"""Tests of afv_metric.bundles.validate: a good bundle passes, each way to break one fails its check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from afv_metric import AFVDistance
from afv_metric.bundles import validate
from afv_metric.bundles.bundle import Bundle, load_bundle, save_bundle
from afv_metric.bundles.golden import GOLDEN_NAME, golden_distances
from afv_metric.bundles.validate import Check, Report, validate_bundle
from afv_metric.files import sha256_of
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.fisher.statistics import FisherStatistics

SAMPLES = 150
WHITENED = {"whitened scores", "whitened inputs", "whitened deltas"}
GOLDEN = {"golden fisher", "golden local", "golden activation"}
DISTANCES = {"distance fisher", "distance local", "distance activation"}
ALL = {"files", "card", "generator", *GOLDEN, *WHITENED, *DISTANCES}


@pytest.fixture(scope="module")
def good(bundle: Bundle) -> Bundle:
    """The tiny bundle, with statistics of more samples and with golden distances."""
    statistics = sample_statistics(bundle.discriminator, bundle.generator, bundle.output, 300, 0)
    good = dataclasses.replace(bundle, statistics=statistics)
    return dataclasses.replace(good, golden={"pairs": GOLDEN_NAME, "distances": golden_distances(good)})


def failed(bundle: Bundle, folder: Path, edit: Callable[[Path], object] = lambda folder: None) -> set[str]:
    """Save a bundle, edit its files, and give the checks that fail."""
    save_bundle(bundle, folder)
    edit(folder)
    report = validate_bundle(folder, samples=SAMPLES)
    bad = {check.name for check in report.checks if check.passed is False}
    assert report.passed == (not bad)
    return bad


def change(good: Bundle, key: str, factor: float) -> Bundle:
    """The bundle with one of the statistics of its third layer off by a factor."""
    layers = list(good.statistics.layers)
    layers[2] = layers[2]._replace(**{key: getattr(layers[2], key) * factor})
    return dataclasses.replace(good, statistics=FisherStatistics(good.statistics.count, tuple(layers)))


def test_a_good_bundle_passes(good: Bundle, tmp_path: Path) -> None:
    save_bundle(good, tmp_path / "good")
    report = validate_bundle(tmp_path / "good", samples=SAMPLES)
    assert report.passed
    assert {check.name for check in report.checks} == ALL
    assert all(check.passed for check in report.checks)
    assert report.hash == sha256_of(tmp_path / "good" / "config.json")
    lines = str(report).splitlines()
    assert lines[0] == f"tiny-bundle {report.hash[:12]}: passed"
    assert len(lines) == 1 + len(ALL)


def test_a_card_may_name_what_the_bundle_was_made_from(good: Bundle, tmp_path: Path) -> None:
    hashes = [digit * 64 for digit in "abc"]
    training = {"init": f"v1 {hashes[0]}", "before": {"data_fingerprint": hashes[1]}}
    made = dataclasses.replace(good, training=training, sampling={"bundle": f"v2 {hashes[2]}"}, card=" ".join(hashes))
    assert "card" not in failed(made, tmp_path / "made")
    assert "card" in failed(dataclasses.replace(made, card="d" * 64), tmp_path / "other")


def test_what_cannot_be_checked_is_left_out(good: Bundle, tmp_path: Path) -> None:
    def left_out(name: str, samples: int, **changes: object) -> set[str]:
        save_bundle(dataclasses.replace(good, **changes), tmp_path / name)
        report = validate_bundle(tmp_path / name, samples=samples)
        assert report.passed
        return {check.name for check in report.checks if check.passed is None}

    assert left_out("bare", 100, golden={}, sampling={"source": "photographs"}) == GOLDEN | WHITENED
    assert left_out("other", 99, golden={"pairs": "of another release"}) == GOLDEN | WHITENED


def _cut(folder: Path) -> None:
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _forget_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _remove_generator(folder: Path) -> None:
    (folder / "generator.safetensors").unlink()


@pytest.mark.parametrize("edit", [_cut, _flip, _forget_json, _remove_generator])
def test_damaged_files(good: Bundle, tmp_path: Path, edit: Callable[[Path], object]) -> None:
    assert failed(good, tmp_path / "bundle", edit) == {"files"}
    (check,) = validate_bundle(tmp_path / "bundle").checks
    assert str(tmp_path / "bundle") in check.detail


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert not validate_bundle(tmp_path / "nothing").passed
    with pytest.raises(ValueError, match="cannot find a bundle"):
        validate_bundle("nothing")
    with pytest.raises(ValueError, match="at least one sample"):
        validate_bundle("tiny-imagenet-v8", samples=0)


def test_cards(good: Bundle, tmp_path: Path) -> None:
    folder = save_bundle(good, tmp_path / "bundle")
    loaded = load_bundle(folder)

    def check(card: str) -> Check:
        return Check("card", *validate._check_card(dataclasses.replace(loaded, card=card), folder))

    assert check(f"[link](missing.pdf), ![badge](https://example.org/badge.png), sha256 {loaded.hash}").passed
    assert check(f"of the model: `{sha256_of(folder / 'model.safetensors')}`").passed
    of_data = dataclasses.replace(loaded, training={"data_fingerprint": "1" * 64}, card=f"Data: {'1' * 64}")
    assert validate._check_card(of_data, folder)[0]
    assert "there is no README.md" in check(" ").detail
    assert "names a sha256 that is not of this bundle, 000" in check(f"sha256 {'0' * 64}").detail
    assert "shows samples.png, which the folder does not hold" in check("![samples](samples.png)").detail


def test_a_card_of_another_bundle(good: Bundle, tmp_path: Path) -> None:
    bare = dataclasses.replace(good, golden={}, sampling={"source": "photographs"})  # quickly checked
    assert failed(dataclasses.replace(bare, card="0" * 64), tmp_path / "bundle") == {"card"}


def test_other_weights_than_were_exported(good: Bundle, tmp_path: Path) -> None:
    """As after a conversion by a careless script, which records its hashes."""
    discriminator = good.discriminator.baked()
    with torch.no_grad():
        discriminator.blocks[1].conv1.weight.mul_(2)
    bad = failed(dataclasses.replace(good, discriminator=discriminator), tmp_path / "bundle")
    assert bad >= GOLDEN | WHITENED
    assert not bad & {"files", "card", "generator"}


def test_golden_distances_of_another_bundle(good: Bundle, tmp_path: Path) -> None:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["golden"]["distances"]["local"][1] *= 1.0001
        (folder / "config.json").write_text(json.dumps(config))

    assert failed(good, tmp_path / "bundle", edit) == {"golden local"}


@pytest.mark.parametrize(
    ("key", "check", "factor"),
    [
        ("weight_variance", "whitened scores", 0.25),
        ("bias_variance", "whitened scores", 4.0),
        ("input_factor", "whitened inputs", 0.25),
        ("input_factor", "whitened inputs", 4.0),
        ("delta_factor", "whitened deltas", 4.0),
    ],
)
def test_whitening_by_wrong_statistics(good: Bundle, tmp_path: Path, key: str, check: str, factor: float) -> None:
    broken = dataclasses.replace(change(good, key, factor), golden={})
    assert failed(broken, tmp_path / "bundle") == {check}


def test_a_mean_that_is_off(good: Bundle, tmp_path: Path) -> None:
    layers = [
        layer._replace(weight_mean=layer.weight_mean + 3 * layer.weight_variance.sqrt())
        for layer in good.statistics.layers
    ]
    broken = dataclasses.replace(good, statistics=FisherStatistics(300, tuple(layers)))
    assert failed(broken, tmp_path / "bundle") == {"whitened scores"}  # no distance depends on the mean


def test_a_collapsed_generator(good: Bundle, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in good.generator.state_dict().items()}
    state["to_image.weight"].zero_()
    generator = type(good.generator)(good.generator.config).eval()
    generator.load_state_dict(state)
    bad = failed(dataclasses.replace(good, generator=generator), tmp_path / "bundle")
    assert "generator" in bad
    assert "whitened scores" in bad
    assert not bad & {"files", "card", *GOLDEN}


def test_distances_that_overflow(good: Bundle, tmp_path: Path) -> None:
    discriminator = good.discriminator.baked()
    with torch.no_grad():
        discriminator.blocks[0].conv1.weight.mul_(1e30)
    bad = failed(dataclasses.replace(good, discriminator=discriminator, golden={}), tmp_path / "bundle")
    assert bad & DISTANCES


def test_a_network_that_ignores_the_images(good: Bundle, tmp_path: Path) -> None:
    discriminator = good.discriminator.baked()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
    bad = failed(dataclasses.replace(good, discriminator=discriminator, golden={}), tmp_path / "bundle")
    assert bad & DISTANCES == DISTANCES


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda table: table + 0.5, "that of an image to itself is 0.5, not 0"),
        (lambda table: table * 2, "embeddings of"),
    ],
)
def test_the_check_of_identity_compares(
    good: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., object], message: str
) -> None:
    right = AFVDistance.distance_between
    monkeypatch.setattr(AFVDistance, "distance_between", lambda self, *embeddings: wrong(right(self, *embeddings)))
    save_bundle(good, tmp_path / "bundle")
    checks = validate_bundle(tmp_path / "bundle", samples=10).checks
    assert {check.name for check in checks if check.passed is False} == DISTANCES
    assert all(message in check.detail for check in checks if check.passed is False)


def test_reports() -> None:
    good, bad, left = Check("files", True, "a"), Check("card", False, "b"), Check("golden local", None, "c")
    assert Report("x", "", (good, left)).passed
    assert not Report("x", "", (good, bad)).passed
    assert str(Report("x", "0" * 64, (good, bad, left))).splitlines() == [
        "x 000000000000: FAILED 1 of 3 checks",
        "  files         passed    a",
        "  card          FAILED    b",
        "  golden local  left out  c",
    ]
