"""Nearest neighbours against brute force, votes, the check for copies, and the command end to end."""

from __future__ import annotations

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY_BUNDLE
from PIL import Image

from afv_metric.fisher.vectors import ScoreFeatures
from experiments import neighbours
from experiments.features import PixelFeatures
from experiments.neighbours import (
    compare_nearness,
    draw_grid,
    extract_all,
    generate_images,
    nearest,
    nearest_among,
    vote,
)


def _images(count, seed=0, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def _save(images, folder):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png", compress_level=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A gallery and queries of two classes that brightness tells apart; one query is an image of the gallery."""
    folder = tmp_path_factory.mktemp("images")
    _save(_images(40, 0, 0, 90), folder / "train" / "dark")
    _save(_images(40, 1, 160, 256), folder / "train" / "light")
    _save(_images(34, 2, 0, 90), folder / "test" / "dark")
    _save(_images(34, 3, 160, 256), folder / "test" / "light")
    shutil.copy(folder / "train" / "dark" / "007.png", folder / "test" / "dark" / "000.png")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("batch_size", [3, 100])
def test_neighbours_are_those_of_the_whole_table(bundle, batch_size):
    features, queries, gallery = ScoreFeatures(bundle), _images(4), _images(20, 1)
    found = nearest(features, queries, gallery, 5, batch_size=batch_size)
    of_queries, of_gallery = (extract_all(features, images).double() for images in (queries, gallery))
    expected, rows = (of_queries[:, None] - of_gallery).square().sum(2).sort(1)
    torch.testing.assert_close(found.distances.double(), expected[:, :5], rtol=1e-4, atol=1e-6)
    assert torch.equal(found.rows, rows[:, :5])


def test_of_equally_near_ones_the_first_are_kept():
    line = torch.tensor([[1.0], [3.0], [1.0], [3.0], [2.0]])
    found = nearest_among(torch.tensor([[2.0]]), line.split(2), 4)
    assert found.rows.tolist() == [[4, 0, 1, 2]]
    assert found.distances.tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_images_are_refused(k):
    with pytest.raises(ValueError, match=f"{k} neighbours were asked for; there are 5 images"):
        nearest(PixelFeatures(32), _images(1), _images(5), k)


def test_ties_of_votes_go_to_the_nearest():
    assert vote(torch.tensor([[2, 1, 1, 2, 3], [4, 0, 0, 3, 4], [1, 2, 2, 2, 1]])).tolist() == [2, 4, 2]


def test_shares_are_those_of_all_pairs():
    generated, held_out = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 4.0, 4.5, 3.0])
    found = compare_nearness(generated, held_out)
    pairs = (generated[:, None] < held_out).double() + 0.5 * (generated[:, None] == held_out)
    assert found.nearer == pytest.approx(float(pairs.mean()))
    assert found.medians == (2, 3.5)
    assert found.tail == pytest.approx(2 / 3)  # the 5 % quantile is at 2.15
    with pytest.raises(ValueError, match="got 0 and 4"):
        compare_nearness(generated[:0], held_out)


def test_copies_are_told_from_chance():
    generator = torch.Generator().manual_seed(0)
    held_out, fair = torch.rand(300, generator=generator) + 1, torch.rand(300, generator=generator) + 1
    found = compare_nearness(fair, held_out)
    assert found.nearer_interval[0] < 0.5 < found.nearer_interval[1]
    assert found.tail_interval[0] < 0.05 < found.tail_interval[1]
    assert found.statement() == (
        "generated images are as near to the training images as held-out images are; "
        "no more of them than by chance are among the very near: no sign of copies"
    )
    part = found.statement(whole_gallery=False)
    assert "no sign of copies" not in part
    assert part.endswith("need not hold what the generator was trained on: copies are not ruled out")
    some_copied = torch.cat([fair[:240], 0.1 * fair[240:]])
    copies = compare_nearness(some_copied, held_out)
    assert copies.tail_interval[0] > 0.05
    assert "nearer to" in copies.statement()
    assert "look whether these are copies" in copies.statement()
    assert "farther from" in compare_nearness(fair + 1, held_out).statement()


def test_generated_images_follow_the_seed(bundle):
    one, same, other = (generate_images(bundle.generator, 3, seed) for seed in (0, 0, 1))
    assert one.dtype == torch.uint8
    assert one.shape == (3, 3, 32, 32)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_grid_has_every_picture_in_its_place(tmp_path):
    levels = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)
    left, right = levels[:, :1], levels[:, 1:].expand(2, 3)
    groups = {
        name: part[:, :, None, None, None].expand(-1, -1, 3, 32, 32) for name, part in (("a", left), ("b", right))
    }
    draw_grid(groups, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.array(image)
    assert pixels.shape == (20 + 2 * 66, 4 * 66 + 16, 3)
    for row in range(2):
        assert pixels[20 + 66 * row + 30, 30].tolist() == [levels[row, 0]] * 3
        for column in range(3):
            assert pixels[20 + 66 * row + 30, 66 + 16 + 66 * column + 30].tolist() == [levels[row, 1]] * 3


def _run(*arguments):
    parser = argparse.ArgumentParser()
    neighbours.add_arguments(parser)
    options = parser.parse_args(["--weights", str(TINY_BUNDLE), *map(str, arguments)])
    for name, value in {"device": "cpu", "quiet": True, "seed": 0}.items():
        setattr(options, name, value)
    return options


def test_the_command_measures_classes_and_copies_and_draws(folders, tmp_path):
    options = _run("--gallery", folders / "train", "--queries", folders / "test", "--count", 4, "--neighbours", 3)
    options.generated, options.evaluate, options.out = 5, 80, tmp_path
    record = neighbours.run(options)
    json.dumps(record, allow_nan=False)
    for name in ("afv", "pixels"):
        found = record["features"][name]
        assert found["classes"]["one"]["share"] == 1
        assert found["classes"]["one"]["interval"][0] == pytest.approx(0.9465, abs=1e-3)  # Wilson, 68 of 68
        assert found["classes"]["same_class"]["share"] == 1
        assert found["identical"] == {"held_out": 1, "generated": 0}
        assert found["neighbours"]["held_out"][0]["query"] == "test/dark/000.png"
        assert found["neighbours"]["held_out"][0]["neighbours"][0] == "train/dark/007.png"
        assert [len(rows) for rows in found["neighbours"].values()] == [4, 5]
    assert record["features"]["afv"]["memorisation"]["medians"][0] > 0
    assert "part of the gallery" not in record["features"]["afv"]["memorisation"]["statement"]
    assert [row[0] for row in record["table"]] == ["features", "afv", "pixels"]
    assert record["table"][1][-3:] == ["1.000 [.947, 1.000]"] * 2 + ["1.000 [1.000, 1.000]"]
    for name, rows in {"test": 4, "generated": 5, "closest": 5}.items():
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (7 * 66 + 2 * 16, 20 + rows * 66)


def test_without_classes_in_common_there_are_no_votes(folders, tmp_path):
    shutil.copytree(folders / "test", tmp_path / "other")
    (tmp_path / "other" / "light").rename(tmp_path / "other" / "unknown")
    options = _run("--gallery", folders / "train", "--queries", tmp_path / "other", "--evaluate", 10, "--limit", 70)
    options.out = tmp_path / "out"
    record = neighbours.run(options)
    assert record["gallery"]["images"] == 70
    for found in record["features"].values():
        assert "no sign of copies" not in found["memorisation"]["statement"]
    assert record["features"]["afv"]["classes"] is None
    assert len(record["table"][0]) == 5


def test_a_gallery_is_not_searched_with_itself(folders, tmp_path):
    options = _run("--gallery", folders / "train", "--queries", folders / "train")
    options.out = tmp_path
    with pytest.raises(ValueError, match="its own neighbour"):
        neighbours.run(options)
    options.evaluate = 0
    with pytest.raises(ValueError, match="--evaluate must be at least 1, got 0"):
        neighbours.run(options)
