"""The folder of a trained encoder: what is written is read, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from afv_metric.bundles.bundle import BundleError
from experiments.bigan.encoder import BiGANDistance, TrainedEncoder, distance, load_encoder, save_encoder
from experiments.bigan.networks import Encoder, EncoderConfig


def make_trained(seed: int = 0) -> TrainedEncoder:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(4, 8))
    encoder(torch.rand(8, 3, 32, 32))  # running statistics that are not those of a new one
    return TrainedEncoder("small", encoder.eval(), {"iterations": 5})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_encoder(make_trained(), tmp_path / "small")


def test_what_is_written_is_read(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "encoder.safetensors"]
    trained, images = load_encoder(folder), torch.rand(2, 3, 32, 32)
    assert torch.equal(trained.encoder(images), make_trained().encoder(images))
    assert (trained.name, trained.training) == ("small", {"iterations": 5})
    assert trained.hash == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert not trained.encoder.training
    assert not any(weight.requires_grad for weight in trained.encoder.parameters())


def test_one_that_stands_there_is_replaced_whole(folder: Path) -> None:
    save_encoder(make_trained(seed=1), folder)
    expected = make_trained(seed=1).encoder.head.weight
    assert torch.equal(load_encoder(folder).encoder.head.weight, expected)
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_nothing_changes_if_writing_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("afv_metric.files.fsync_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_encoder(make_trained(seed=1), folder)
    assert torch.equal(load_encoder(folder).encoder.head.weight, make_trained().encoder.head.weight)
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="not empty; choose another place"):
        save_encoder(make_trained(), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    trained = make_trained()
    trained.encoder.head.weight.data[0] = torch.nan
    with pytest.raises(BundleError, match=r"head\.weight has values that are not finite"):
        save_encoder(trained, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors, and the hash with them."""

    def edit(folder: Path) -> None:
        path = folder / "encoder.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)
        entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        edit_config(lambda config: config.update(files={path.name: entry}))(folder)

    return edit


def flip_a_bit(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no BiGAN encoder in .* make one with"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read .* export the run again"),
        (lambda folder: (folder / "config.json").write_text("[]"), "it is no BiGAN encoder"),
        (edit_config(lambda config: config.update(schema_version=9)), r"describes \('bigan-encoder', 9\), expected"),
        (edit_config(lambda config: config.pop("encoder")), "does not describe an encoder: KeyError"),
        (edit_config(lambda config: config["encoder"].update(width=5)), "has shape .*, expected"),
        (edit_config(lambda config: config["encoder"].update(depth=5)), "does not describe an encoder: TypeError"),
        (flip_a_bit, "is damaged or was changed: sha256"),
        (lambda folder: (folder / "encoder.safetensors").write_bytes(b"half"), "has 4 bytes, expected"),
        (edit_weights(lambda tensors: tensors.pop("head.bias")), r"lacks 1 tensors, the first of them head\.bias"),
        (edit_weights(lambda tensors: tensors.update(more=torch.ones(1))), "1 unexpected tensors.* more"),
        (edit_weights(lambda tensors: tensors["head.bias"].fill_(torch.inf)), "head.bias has values that are not fin"),
    ],
)
def test_anything_else_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=message):
        load_encoder(folder)


def test_missing_weights_are_told(folder: Path) -> None:
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(BundleError, match="not complete.*export the run again"):
        load_encoder(folder)


def test_the_distance_compares_directions_of_the_maps_of_all_blocks(folder: Path) -> None:
    first, second = torch.rand(2, 2, 3, 64, 40) * 2 - 1
    encoder = make_trained().encoder
    with torch.no_grad():
        maps = zip(encoder.maps(first), encoder.maps(second), strict=True)
        # Of two vectors of length 1: twice one minus their cosine.
        expected = sum((2 - 2 * F.cosine_similarity(one, other)).mean((1, 2)) for one, other in maps)
        found = BiGANDistance(load_encoder(folder).encoder)(first, second)
    assert torch.allclose(found, torch.as_tensor(expected), rtol=1e-3)


def test_the_distance_takes_any_size_from_32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGAN_ENCODER", str(folder))
    compare = distance()
    odd = torch.rand(2, 2, 3, 33, 39) * 2 - 1
    even = F.pad(odd.flatten(0, 1), (0, 1, 0, 7), mode="replicate").unflatten(0, (2, 2))
    assert torch.equal(compare(*odd), compare(*even))
    assert compare(odd[0], odd[0]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="smallest side"):
        compare(*odd[..., :31, :])


def test_the_distance_without_an_encoder_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIGAN_ENCODER", raising=False)
    with pytest.raises(ValueError, match="set BIGAN_ENCODER to the folder"):
        distance()
