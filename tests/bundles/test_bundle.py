import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
from conftest import TINY_BUNDLE

from afv_metric.bundles.bundle import Bundle, BundleError, load_bundle, reserve_folder, save_bundle
from afv_metric.files import sha256_of


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY_BUNDLE, tmp_path / "copy")


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _edit_model(folder, edit):
    """Change the tensors and record the new size and hash, as a careless exporter would."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    path = folder / "model.safetensors"
    files = config["files"] | {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}}
    _edit_config(folder, files=files)


def test_saving_and_loading_keeps_everything(bundle, tmp_path):
    changed = dataclasses.replace(
        bundle,
        name="again",
        form="local",
        output="sigmoid",
        levels=(0.5, 0.5),
        blocks=(2,),
        pooling=1.5,
        epsilon=0.1,
        sampling={"source": "data", "seed": 3},
        training={"hours": 1.5},
        licence={"weights": "CC0"},
        golden={"pairs": "mine", "distances": {"local": [0.25]}},
        card="# again\n",
    )
    again = load_bundle(save_bundle(changed, tmp_path / "again"), generator=True)
    tensors = {"discriminator", "generator", "statistics", "hash"}
    for name in {field.name for field in dataclasses.fields(changed)} - tensors:
        assert getattr(again, name) == getattr(changed, name)
    assert again.statistics.count == bundle.statistics.count
    for one, other in zip(again.statistics.layers, bundle.statistics.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for name, value in bundle.discriminator.state_dict().items():
        assert torch.equal(again.discriminator.state_dict()[name], value)
    latents = torch.randn(2, 8)
    assert torch.equal(again.generator(latents), bundle.generator(latents))
    assert len(again.hash) == 64
    assert again.hash != bundle.hash


def test_golden_distances_may_be_missing(bundle, tmp_path):
    assert bundle.golden == {}
    save_bundle(bundle, tmp_path / "again")
    assert "golden" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_the_hash_is_that_of_the_config(bundle):
    assert bundle.hash == sha256_of(TINY_BUNDLE / "config.json")


def test_saved_files_are_ordinary_and_nothing_is_left_over(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "new")
    save_bundle(dataclasses.replace(bundle, name="newer"), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert load_bundle(tmp_path / "new").name == "newer"
    assert {oct(path.stat().st_mode & 0o444) for path in (tmp_path / "new").iterdir()} == {"0o444"}


def test_a_failed_save_leaves_the_old_bundle(bundle, tmp_path, monkeypatch):
    save_bundle(bundle, tmp_path / "kept")
    monkeypatch.setattr(
        "afv_metric.bundles.tensors.sha256_of", lambda path: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        save_bundle(dataclasses.replace(bundle, name="lost"), tmp_path / "kept")
    monkeypatch.undo()
    assert load_bundle(tmp_path / "kept").name == "tiny-bundle"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "config",
    [
        '{"my": "settings"}',
        '{"schema_version": 2, "name": "mine"}',
        '{"schema_version": 2, "discriminator": {}, "generator": {}, "statistics": {}, "files": {}}',
        "[3]",
        "{",
        "[" * 10_000,
        None,
    ],
)
def test_other_folders_are_not_touched(bundle, tmp_path, config):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_text("dear")
    (tmp_path / "thesis.tex").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = _contents(tmp_path)
    with pytest.raises(BundleError, match=r"not a bundle and not empty: it holds .*choose another place"):
        save_bundle(bundle, tmp_path)
    assert _contents(tmp_path) == before


def test_what_lies_beside_a_bundle_stays(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "mine")
    (tmp_path / "mine" / ".git").mkdir()
    (tmp_path / "mine" / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (tmp_path / "mine" / "notes.txt").write_text("dear")
    before = _contents(tmp_path / "mine")
    save_bundle(dataclasses.replace(bundle, name="newer", card="# newer"), tmp_path / "mine")
    after = _contents(tmp_path / "mine")
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"config.json", "README.md"}
    assert load_bundle(tmp_path / "mine").card == "# newer"


def test_tensors_that_are_not_the_bundle_s_are_not_replaced(bundle, tmp_path):
    save_bundle(bundle, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another model, months of work")
    before = _contents(tmp_path)
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that config\.json beside it names"):
        save_bundle(bundle, tmp_path)
    assert _contents(tmp_path) == before


def test_a_file_is_no_place_for_a_bundle(bundle, tmp_path):
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(BundleError, match=r"mine is a file; choose another place"):
        save_bundle(bundle, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "dear"


def test_a_place_is_reserved_before_the_work(bundle, tmp_path):
    with reserve_folder(tmp_path / "mine"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(BlockingIOError, match="being written by another process"):
            pool.submit(save_bundle, bundle, tmp_path / "mine").result()
        save_bundle(bundle, tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_bundle_comes_with_its_card_or_not_at_all(bundle, tmp_path):
    def decorate(folder):
        assert load_bundle(folder).name == bundle.name
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_bundle(bundle, tmp_path / "mine", decorate)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_a_kill_left_staged_is_read(bundle, tmp_path):
    """As it is after the new config, which decides, and before the other files have moved."""
    save_bundle(dataclasses.replace(bundle, epsilon=0.2), tmp_path / "old")
    newer = dataclasses.replace(bundle, name="newer", epsilon=0.3, card="# newer")
    new = save_bundle(newer, tmp_path / "new")
    staged = tmp_path / "old" / f".staged-{load_bundle(new).hash[:16]}"
    staged.mkdir()
    for name in ("model.safetensors", "generator.safetensors", "README.md"):
        shutil.copy(new / name, staged)
    assert load_bundle(tmp_path / "old").name == bundle.name  # not decided yet
    shutil.copy(new / "config.json", tmp_path / "old")
    assert load_bundle(tmp_path / "old", generator=True).card == "# newer"
    assert _contents(tmp_path / "old") == _contents(new)


def test_the_folder_of_a_run_is_no_bundle(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(BundleError, match=r"a training run, not of a bundle; make one of it: .* export"):
        load_bundle(tmp_path)


def test_without_a_generator_nothing_is_saved(tmp_path):
    with pytest.raises(BundleError, match="saved with its generator"):
        save_bundle(load_bundle(TINY_BUNDLE), tmp_path / "new")


def test_values_that_are_not_finite_are_not_saved(bundle, tmp_path):
    layer = bundle.statistics.layers[0]
    broken = layer._replace(weight_mean=layer.weight_mean * torch.nan)
    statistics = dataclasses.replace(bundle.statistics, layers=(broken, *bundle.statistics.layers[1:]))
    with pytest.raises(BundleError, match=r"blocks\.0\.conv1\.weight_mean has values that are not finite"):
        save_bundle(dataclasses.replace(bundle, statistics=statistics), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def _contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _drop(tensors):
    del tensors["discriminator.head.weight"]


def _add(tensors):
    tensors["discriminator.tail.weight"] = torch.zeros(1)


def _reshape(tensors):
    tensors["statistics.head.weight_mean"] = torch.zeros(1, 5, 1, 1)


def _poison(tensors):
    tensors["discriminator.head.bias"] = torch.tensor([torch.inf])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop, r"lacks 1 tensors, the first of them discriminator\.head\.weight"),
        (_add, r"1 unexpected tensors, the first of them discriminator\.tail\.weight"),
        (_reshape, r"head\.weight_mean has shape \(1, 5, 1, 1\), expected \(1, 4, 1, 1\)"),
        (_poison, r"discriminator\.head\.bias has values that are not finite"),
    ],
)
def test_wrong_tensors_are_refused(folder, edit, message):
    _edit_model(folder, edit)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut short"):
        load_bundle(folder)


def test_a_changed_file_is_refused(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="damaged or was changed: sha256"):
        load_bundle(folder)


def test_a_damaged_generator_is_refused_when_it_is_read(folder):
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert load_bundle(folder).generator is None
    with pytest.raises(BundleError, match="cut short"):
        load_bundle(folder, generator=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 4}, "schema version 4, this release reads 1 to 3"),
        ({"form": "l2"}, r"config\.json: the default form must be one of"),
        ({"energy": "entropy"}, "output must be"),
        ({"levels": []}, "levels must be"),
        ({"blocks": []}, "blocks must be some of 0, 1, 2, 3, or None"),
        ({"blocks": [1, 4]}, "blocks must be some of 0, 1, 2, 3, or None"),
        ({"pooling": 0.5}, "pooling must be a finite exponent of at least 1, got 0.5"),
        ({"pooling": float("inf")}, "pooling must be a finite exponent"),
        ({"epsilon": 0}, "epsilon must be positive"),
        ({"discriminator": {"depth": 3}}, "does not describe a bundle"),
        ({"files": {}}, "does not describe a bundle of this release: there is no 'model.safetensors'"),
        ({"files": 3}, "does not describe a bundle"),
        ({"discriminator": {"width": -4}}, "does not describe a bundle"),
        ({"golden": 3}, "does not describe a bundle"),
    ],
)
def test_a_wrong_config_is_refused(folder, changes, message):
    _edit_config(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_bundle_of_the_first_schema_counts_all_layers_and_pools_by_the_root_mean_square(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["blocks"], config["pooling"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="blocks"):
        load_bundle(folder)
    (folder / "config.json").write_text(json.dumps(config | {"schema_version": 1}))
    bundle = load_bundle(folder)
    assert (bundle.blocks, bundle.pooling) == (None, 2)


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 10_000])
def test_a_config_that_is_not_one_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(BundleError, match="not valid JSON|schema version"):
        load_bundle(folder)


def test_files_that_cannot_be_read_are_named(folder):
    (folder / "README.md").write_bytes(b"# caf\xe9")
    assert load_bundle(folder).card.startswith("# caf")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(BundleError, match=r"has no file 'config\.json'"):
        load_bundle(folder)


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        load_bundle(folder)


def test_every_shipped_bundle_is_whole():
    from afv_metric import DEFAULT_BUNDLE, list_bundles

    assert DEFAULT_BUNDLE in list_bundles()
    for name in list_bundles():
        bundle = load_bundle(name, generator=True)
        assert isinstance(bundle, Bundle)
        assert bundle.name == name
        assert bundle.statistics.count >= 10_000
        assert bundle.training["iterations"] > 0
        assert bundle.licence["weights"]
        assert len(bundle.card) > 500
