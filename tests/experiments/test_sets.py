"""Distances of classes and their bias, against comparisons of one pair at a time."""

from __future__ import annotations

import argparse
import csv
import json

import numpy as np
import pytest
import torch
from conftest import TINY_BUNDLE
from PIL import Image

from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import SetComparison, block_scores, compare_sets
from afv_metric.images.cache import ImageSet, ImageView
from afv_metric.images.tensors import to_network_range
from experiments import sets
from experiments.sets import compare_all, compare_halves, score_classes, score_sets

CLASSES = ("dark", "dim", "light")


def _pixels(count, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def images():
    """Noise of three brightnesses, of which the first two are close; one class is small."""
    parts = [_pixels(40, 0, 100, 0), _pixels(40, 10, 110, 1), _pixels(12, 120, 256, 2)]
    labels = torch.arange(3).repeat_interleave(torch.tensor([40, 40, 12]))
    return ImageSet(ImageView(torch.cat(parts)), labels, CLASSES, [""] * 92, "")


def test_all_pairs_are_compared_the_closest_first(bundle, images):
    scores = score_classes(bundle, images, 30)
    assert [sum(of_class.counts) for of_class in scores] == [30, 30, 12]
    assert [len(of_class.counts) for of_class in scores] == [30, 30, 12]  # 32 blocks, or one per image
    found = compare_all(scores, bundle, seed=3)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    assert next(iter(found)) == (0, 1)
    assert found[0, 2] == compare_sets(scores[0], scores[2], bundle.statistics, bundle.epsilon, seed=3)
    distances = [pair.corrected for pair in found.values()]
    assert distances == sorted(distances)


def test_sets_are_scored_in_order_and_as_by_hand(bundle, images):
    rows = [[torch.tensor([3, 1]), torch.tensor([50])], [torch.tensor([90])]]
    scored = list(score_sets(bundle, images.images, rows))
    assert [scores.counts for scores in scored] == [[2, 1], [1]]
    engine = FisherEngine(bundle.discriminator.baked(), bundle.output)
    for blocks, scores in zip(rows, scored, strict=True):
        pictures = [to_network_range(images.images[of], normalize=False, dtype=torch.float32) for of in blocks]
        expected = block_scores(engine, [[picture] for picture in pictures])
        for ours, theirs in zip(scores.means, expected.means, strict=True):
            for (weight, bias), (of_weight, of_bias) in zip(ours, theirs, strict=True):
                assert weight.dtype == torch.float32
                torch.testing.assert_close(weight, of_weight.float())
                torch.testing.assert_close(bias, of_bias.float())


def test_the_seed_chooses_the_images_of_a_class(bundle, images):
    one, same, other = (
        compare_all(score_classes(bundle, images, 10, seed=seed), bundle)[0, 1].distance for seed in (0, 0, 1)
    )
    assert one == same
    assert one != pytest.approx(other)


def test_memory_is_bounded_by_fewer_blocks_and_at_last_refused(monkeypatch):
    assert sets._block_count(10, 210_577) == 32
    assert sets._block_count(100, 210_577) == 17
    assert sets._block_count(222, 210_577) == 8
    with pytest.raises(ValueError, match=r"223 classes are too many.* 222 classes at most"):
        sets._block_count(223, 210_577)


def test_classes_that_cannot_be_compared_are_named(bundle, images):
    with pytest.raises(ValueError, match="have no classes"):
        score_classes(bundle, images._replace(labels=None, classes=()), 10)
    labels = images.labels.clone()
    labels[labels == 2] = 0
    labels[-1] = 2
    with pytest.raises(ValueError, match="'light'.* got 1"):
        score_classes(bundle, images._replace(labels=labels), 10)


def test_halves_are_disjoint_samples_whose_sizes_are_nested(bundle, images, monkeypatch):
    seen = []

    def remember(bundle, images, rows, **settings):
        rows = list(rows)
        seen.extend(rows)
        return score_sets(bundle, images, rows, **settings)

    monkeypatch.setattr(sets, "score_sets", remember)
    found = compare_halves(bundle, images.images, [40, 20], draws=3)
    assert list(found) == [20, 40]
    assert [[one.counts for one in draws] for draws in found.values()] == [[(20, 20)] * 3, [(40, 40)] * 3]
    samples = [torch.cat(list(blocks)) for blocks in seen]
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert len(set(torch.cat([first, second]).tolist())) == 80
    assert not torch.equal(samples[0], samples[2])
    # The smaller samples are the first blocks of the larger ones.
    engine = FisherEngine(bundle.discriminator.baked(), bundle.output)
    parts = [
        block_scores(engine, [[to_network_range(images.images[rows], normalize=False, dtype=torch.float32)]
                              for rows in sample[:20].split(1)])
        for sample in samples[:2]
    ]  # fmt: skip
    expected = compare_sets(*parts, bundle.statistics, bundle.epsilon, resamples=2)
    assert found[20][0].distance == pytest.approx(expected.distance, rel=1e-4)


def test_samples_of_one_set_differ_by_a_bias_that_falls_as_one_over_n(bundle):
    images = ImageView(_pixels(240, 0, 256, 3))
    found = compare_halves(bundle, images, [10, 80], draws=8)
    plain, corrected, biases = (
        {size: np.array([read(one) for one in draws]) for size, draws in found.items()}
        for read in (lambda one: one.distance, lambda one: one.corrected, lambda one: sum(one.biases))
    )
    assert plain[10].mean() / plain[80].mean() == pytest.approx(8, rel=0.5)
    assert 10 * biases[10].mean() == pytest.approx(80 * biases[80].mean(), rel=0.3)
    for values in corrected.values():
        assert abs(values.mean()) < 4 * values.std(ddof=1) / 8**0.5
    held = [one.interval[0] <= 0 <= one.interval[1] for draws in found.values() for one in draws]
    assert sum(held) >= 13


@pytest.mark.parametrize("sizes", [[1, 10], [10, 47]])
def test_sizes_that_do_not_fit_are_refused(bundle, images, sizes):
    with pytest.raises(ValueError, match=f"{sizes[0]} to {sizes[1]} images.* 46 at most, half of the 92"):
        compare_halves(bundle, images.images, sizes)


@pytest.fixture
def folder(tmp_path, images, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    for row in range(92):
        path = tmp_path / "data" / CLASSES[int(images.labels[row])] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[torch.tensor([row])][0].permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "data"


def _options(*arguments, out):
    parser = argparse.ArgumentParser()
    sets.add_arguments(parser)
    options = parser.parse_args([*map(str, arguments), "--weights", str(TINY_BUNDLE)])
    return argparse.Namespace(**vars(options), out=out, seed=0, device="cpu", quiet=True)


def test_the_command(folder, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    record = sets.run(_options(folder, "--sizes", 20, 10, "--draws", 2, out=out))
    json.dumps(record, allow_nan=False)
    classes = record["classes"]
    assert classes["names"] == list(CLASSES)
    assert classes["images"] == [40, 40, 12]
    assert set(classes["order"][:2]) == {"dark", "dim"} or set(classes["order"][1:]) == {"dark", "dim"}
    assert classes["closest"][0]["classes"] == ["dark", "dim"]
    assert len(classes["closest"]) == 3
    for entry in classes["closest"]:
        one, other = (CLASSES.index(name) for name in entry["classes"])
        assert entry["distance"]["corrected"] == pytest.approx(classes["corrected"][one][other], rel=1e-6)
        low, high = entry["distance"]["interval"]
        assert low < entry["distance"]["corrected"] < high
    assert list(record["bias"]["sizes"]) == ["10", "20"]
    assert [len(draws) for draws in record["bias"]["sizes"].values()] == [2, 2]
    needed = record["bias"]["images_for_similarity"]
    bias = record["bias"]["bias_times_images"]
    assert np.exp(-10 * bias / needed["0.9"]) >= 0.9 > np.exp(-10 * bias / (needed["0.9"] - 1))

    head, *rows = record["table"]
    assert [row[:2] for row in rows] == [
        ["dark, dim", "40"], ["dim, light", "12 and 40"], ["dark, light", "12 and 40"],
        ["chance alone, 2 draws", "10"], ["chance alone, 2 draws", "20"],
    ]  # fmt: skip
    assert all(len(row) == len(head) for row in rows)
    shown = [row[head.index("95 % interval")] for row in rows]
    low, high = classes["closest"][0]["distance"]["interval"]
    assert shown[0] == f"{low:.5f} to {high:.5f}"
    for text, draws in zip(shown[3:], record["bias"]["sizes"].values(), strict=True):
        intervals = [draw["distance"]["interval"] for draw in draws]
        assert text == f"{sum(low <= 0 <= high for low, high in intervals)} of 2 hold 0"
    assert rows[0][head.index("images needed")] == str(classes["closest"][0]["needed"] or "")
    with (out / "classes.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["", *CLASSES]
    assert float(lines[1][3]) == pytest.approx(classes["corrected"][0][2], rel=1e-5)
    for name in ("classes.png", "bias.png"):
        with Image.open(out / name) as picture:
            assert np.asarray(picture).std() > 0


def test_rows_of_the_picture_are_beside_their_branches(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: pictures.append(self))
    distances = np.array([[0, 9, 1.0], [9, 0, 8], [1, 8, 0]])  # the first and the last are close
    sets._draw_classes(["a", "b", "c"], distances, linkage(squareform(distances), "average"), tmp_path / "x.png")
    branches, matrix = pictures[0].axes[:2]
    labels = [text.get_text() for text in matrix.get_yticklabels()]
    first, last = sorted((labels.index("a"), labels.index("c")))
    assert last == first + 1
    inner = next(line for line in branches.get_lines() if max(line.get_xdata()) == 1)
    assert sorted(set(inner.get_ydata())) == [first, last]
    assert branches.get_ylim() == matrix.get_ylim()
    shown = matrix.get_images()[0].get_array()
    assert shown[first, last] == 1
    assert shown.mask.diagonal().all()


def test_classes_that_nothing_tells_apart_are_drawn_too(tmp_path):
    pytest.importorskip("matplotlib")
    joined = np.array([[0.0, 1.0, 0.0, 2.0], [2.0, 3.0, 0.0, 3.0]])
    sets._draw_classes(("a", "b", "c"), -0.1 * (1 - np.eye(3)), joined, tmp_path / "classes.png")
    assert (tmp_path / "classes.png").stat().st_size > 0


def test_images_without_classes_have_the_bias_alone(folder, tmp_path):
    pytest.importorskip("matplotlib")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        path.rename(flat / path.name)
    record = sets.run(_options(flat, "--draws", 1, out=tmp_path / "out"))
    assert "classes" not in record
    assert list(record["bias"]["sizes"]) == ["46"]  # half of what there is, as no default size fits
    assert (tmp_path / "out" / "bias.png").is_file()
    assert not (tmp_path / "out" / "classes.png").exists()


def test_intervals_that_hold_0_are_counted():
    ends = [(-0.1, 0.1), (0.1, 0.2), (-0.3, 0.0), (-0.2, -0.1)]
    assert sets._count_zeros([SetComparison((2, 2), 0.1, (0, 0), interval) for interval in ends]) == "2 of 4 hold 0"


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'^the figures are drawn by matplotlib: pip install "afv-metric\[plots\]"$'):
        sets.run(_options(tmp_path, out=tmp_path))


def test_numbers_out_of_range_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="--images-per-class must be at least 1, got 0"):
        sets.run(_options(tmp_path, "--images-per-class", 0, out=tmp_path))
