"""Projections against geometry, indices against exact search, and the command end to end."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_BUNDLE
from PIL import Image

from afv_metric.fisher.vectors import ScoreFeatures
from experiments import compress
from experiments.compress import (
    Projection,
    build_index,
    fit_projection,
    group_dimensions,
    load_index,
    recall,
    save_index,
    search_index,
    sketch_vectors,
)
from experiments.features import store
from experiments.neighbours import extract_all, nearest, nearest_among

SKETCH, COUNT = 96, 300


def _pixels(count, seed):
    """Blots of random colours on random grounds: images that differ in more than noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return torch.from_numpy(coarse.repeat(8, 1).repeat(8, 2)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def gallery():
    return _pixels(COUNT, 0)


@pytest.fixture(scope="module")
def sketches(bundle, gallery):
    return store(ScoreFeatures(bundle, sketch=SKETCH), gallery)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, gallery):
    folder = tmp_path_factory.mktemp("images")
    for name, images in (("gallery", gallery), ("queries", _pixels(64, 1))):
        (folder / name).mkdir()
        for index, image in enumerate(images):
            path = folder / name / f"{index:03d}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, compress_level=0)
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def index(bundle, sketches):
    pytest.importorskip("faiss")
    return _build(bundle, sketches, 16)


def _build(bundle, sketches, count):
    names = [f"{number:03d}" for number in range(len(sketches))]
    return build_index(bundle, sketches, fit_projection(sketches, 64), count, names)


def test_sketches_of_vectors_are_those_of_the_features(bundle, gallery):
    features = ScoreFeatures(bundle, sketch=SKETCH, seed=3)
    vectors = extract_all(ScoreFeatures(bundle), gallery[:5])
    torch.testing.assert_close(sketch_vectors(features, vectors), extract_all(features, gallery[:5]))


def test_components_are_those_of_most_variance(sketches):
    found = fit_projection(sketches, 9)
    assert found.size == 9
    table = sketches.float()
    expected = torch.linalg.svdvals(table - table.mean(0))[:8]
    inside, left = found.split(sketches)
    torch.testing.assert_close(inside.square().sum(0).sqrt(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(found.components.T @ found.components, torch.eye(8), rtol=0, atol=1e-5)
    whole = (table - table.mean(0)).square().sum(1, keepdim=True)
    torch.testing.assert_close(inside.square().sum(1, keepdim=True) + left, whole)
    again = fit_projection(sketches, 9)
    assert torch.equal(again.components, found.components)
    assert fit_projection(sketches[:5], 9).size == 6


def test_what_is_outside_of_the_components_adds_its_length():
    # Every vector leaves the plane of the first two axes along an axis of its own.
    vectors = torch.cat([torch.randn(6, 2), torch.diag(torch.rand(6) + 1)], 1)
    projection = Projection(torch.zeros(8), torch.eye(8)[:, :2])
    queries, left = projection.of_queries(vectors[:2])
    found = torch.cdist(queries, projection.of_gallery(vectors[2:])).square() + left
    torch.testing.assert_close(found, torch.cdist(vectors[:2], vectors[2:]).square())
    assert projection.first(2).components.shape == (8, 1)


def test_groups_have_equal_products_of_variances():
    variances = [2.0**-power for power in range(12)]
    order = group_dimensions(variances, 3)
    assert sorted(order) == list(range(12))
    totals = np.log2(np.array(variances))[order].reshape(3, 4).sum(1)
    assert np.ptp(totals) <= 2  # 32 without an order
    assert sorted(group_dimensions([0.0, 1.0, 0.0, 0.0], 2)) == [0, 1, 2, 3]


def test_recall_counts_what_was_found_again():
    expected, found = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0, 9], [3, 8, 7]])
    assert recall(expected, found).tolist() == [1, 0.5]
    assert recall(expected, found[:, :1]).tolist() == [0.5, 0.5]


def test_more_bytes_find_more(bundle, gallery, sketches):
    pytest.importorskip("faiss")
    queries = _pixels(40, 1)
    exact = nearest(ScoreFeatures(bundle), queries, gallery, 10)
    recalls = {}
    for count in (1, 4, 32):
        index = _build(bundle, sketches, count)
        assert index.codes.sa_code_size() == count
        recalls[count] = float(recall(exact.rows, search_index(index, bundle, queries, 10).rows).mean())
    assert 10 / COUNT < recalls[1] < recalls[4] <= recalls[32]
    of_sketches = nearest_among(extract_all(ScoreFeatures(bundle, sketch=SKETCH), queries), [sketches.float()], 10)
    assert recalls[32] > 0.8 * float(recall(exact.rows, of_sketches.rows).mean())


def test_distances_are_near_to_exact_ones(bundle, gallery, index):
    queries = _pixels(10, 1)
    found = search_index(index, bundle, queries, COUNT)
    exact = nearest(ScoreFeatures(bundle), queries, gallery, COUNT)
    of_rows = torch.empty_like(exact.distances).scatter_(1, exact.rows, exact.distances)
    relative = found.distances / of_rows.gather(1, found.rows)
    assert 0.85 < float(relative.median()) < 1.15
    assert torch.equal(search_index(index, bundle, gallery[:20], 1).rows[:, 0], torch.arange(20))


def test_an_index_is_saved_and_read_again(bundle, gallery, index, tmp_path):
    save_index(index, tmp_path / "index", "abc")
    read = load_index(tmp_path / "index")
    assert read.names == index.names
    assert read.settings == index.settings | {"fingerprint": "abc"}
    for one, other in zip(*(search_index(of, bundle, gallery[:4], 5) for of in (index, read)), strict=True):
        assert torch.equal(one, other)
    assert {path.name for path in (tmp_path / "index").iterdir()} == {
        "index.faiss",
        "projection.safetensors",
        "config.json",
    }


def test_damaged_indices_are_refused(bundle, index, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        load_index(tmp_path)
    save_index(index, tmp_path)
    for name in ("index.faiss", "projection.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + b"?")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_index(tmp_path)
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(ValueError, match="format 2, this release reads 1"):
        load_index(tmp_path)
    for text in ("[]", "{", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="does not describe an index"):
            load_index(tmp_path)


def test_an_index_is_searched_with_its_own_bundle(bundle, gallery, index):
    with pytest.raises(ValueError, match="was built with the bundle"):
        search_index(index, replace(bundle, hash="0" * 64), gallery[:1], 1)
    with pytest.raises(ValueError, match="301 neighbours were asked for; the index holds 300"):
        search_index(index, bundle, gallery[:1], COUNT + 1)


def test_what_cannot_be_indexed_is_told(bundle, sketches):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="at least 256 images to train its codes on, got 255"):
        _build(bundle, sketches[:255], 4)
    with pytest.raises(ValueError, match="64 coordinates here.*got 65 bytes"):
        _build(bundle, sketches, 65)


def _options(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    compress.add_arguments(parser)
    options = parser.parse_args(["--weights", str(TINY_BUNDLE), "--sketch", str(SKETCH), *map(str, arguments)])
    for name, value in {"device": "cpu", "quiet": True, "seed": 0, "out": tmp_path}.items():
        setattr(options, name, value)
    return options


def test_the_command_measures_recall_and_keeps_an_index(bundle, gallery, folders, tmp_path):
    pytest.importorskip("faiss")
    pytest.importorskip("matplotlib")
    arguments = ["--gallery", folders / "gallery", "--queries", folders / "queries", "--evaluate", 20]
    record = compress.run(_options(tmp_path, *arguments, "--bytes", 2, 16, "--keep", 8))
    json.dumps(record, allow_nan=False)
    assert record["table"][0] == ["kept", "bytes per image", "shared by all, KB", "recall@10", "10@100"]
    assert [row[:2] for row in record["table"][1:4]] == [["RQ2x8", "2"], ["RQ8x8", "8"], ["PQ16x8", "16"]]
    assert record["table"][4][1:3] == [str(2 * SKETCH), "0"]
    reference = ["score vectors, float32 (the reference)", str(4 * ScoreFeatures(bundle).size), "0"]
    assert record["table"][5] == [*reference, *["1.000 [1.000, 1.000]"] * 2]
    for row, entry in zip(record["table"][1:4], record["index"].values(), strict=True):
        assert row[2] == f"{entry['shared_bytes'] / 1000:.0f}"
        # The projection, and 256 centroids a byte.
        least = 4 * (SKETCH * entry["coordinates"] + 256 * entry["coordinates"])
        assert entry["shared_bytes"] > least
        assert 10 / COUNT < entry["recall"] < entry["recall_among_100"] <= 1
    assert record["index"]["16"]["recall"] < record["references"]["sketch"]["recall"] + 0.05
    assert load_index(tmp_path / "index").settings["bytes"] == 8
    written = sum((tmp_path / "index" / name).stat().st_size for name in ("index.faiss", "projection.safetensors"))
    assert record["index"]["8"]["shared_bytes"] == written - 8 * COUNT
    with Image.open(tmp_path / record["picture"]) as picture:
        assert picture.size == (840, 504)


def test_the_command_looks_images_up_in_what_it_built(folders, tmp_path):
    pytest.importorskip("faiss")
    built = compress.run(_options(tmp_path, "--gallery", folders / "gallery", "--limit", 280, "--bytes", 2, 16))
    shared = built["index"]["16"]["shared_bytes"]
    assert built["table"][1] == ["PQ16x8", "16", f"{shared / 1000:.0f}", "280"]
    known = load_index(tmp_path / "index").names[5].rpartition("/")[2]
    arguments = ["--index", tmp_path / "index", "--query", folders / "gallery" / known]
    found = compress.run(_options(tmp_path / "elsewhere", *arguments))
    assert found["found"][0]["names"][0] == f"gallery/{known}"
    assert len(found["table"]) == 11
    assert found["table"][1][1:3] == ["1", f"gallery/{known}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --gallery to build an index, or --query"),
        (["--queries", "somewhere"], "give --gallery to build an index, or --query"),
        (["--queries", "somewhere", "--query", "a.png"], "give --gallery with --queries"),
        (["--gallery", "somewhere", "--keep", 0], "--keep must be at least 1, got 0"),
        (["--gallery", "somewhere", "--evaluate", 0], "--evaluate must be at least 1, got 0"),
    ],
)
def test_commands_that_make_no_sense_are_refused(arguments, message, tmp_path):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=message):
        compress.run(_options(tmp_path, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", 0, 4], "for 1 byte up to as many; got 0 bytes"),
        (["--bytes", 4, SKETCH + 2], f"{SKETCH + 1} coordinates here.*got {SKETCH + 2} bytes"),
        (["--limit", 255], "at least 256 images to train its codes on, got 255"),
    ],
)
def test_what_cannot_be_indexed_is_told_before_the_work(arguments, message, folders, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(compress, "ScoreFeatures", None)
    common = ["--gallery", folders / "gallery", "--queries", folders / "queries"]
    with pytest.raises(ValueError, match=message):
        compress.run(_options(tmp_path, *common, *arguments))


@pytest.mark.parametrize("arguments", [[], ["--limit", 280]])
def test_a_gallery_is_not_searched_with_itself(arguments, folders, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(compress, "ScoreFeatures", None)
    common = ["--gallery", folders / "gallery", "--queries", folders / "gallery", "--bytes", 4]
    with pytest.raises(ValueError, match="its own neighbour"):
        compress.run(_options(tmp_path, *common, *arguments))


def test_without_faiss_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"afv-metric\[index\]"):
        compress.run(_options(tmp_path, "--gallery", "somewhere"))


def test_without_matplotlib_there_is_no_picture(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="experiments")
    (tmp_path / "recall.png").write_bytes(b"of an earlier run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compress._draw_recall({}, tmp_path / "recall.png") is None
    assert not (tmp_path / "recall.png").exists()
    assert caplog.messages == ['the figures are drawn by matplotlib: pip install "afv-metric[plots]"']
