import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from afv_metric.fisher.vectors import ScoreFeatures, extract
from afv_metric.images.cache import ImageView
from afv_metric.train.divergence import DivergenceError
from experiments import classify
from experiments.classify import Settings, add_arguments, read_examples, run

TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny-bundle"


def write_images(root, names, count, seed):
    """Noise in folders, one a class, in the class's own colour."""
    drawn = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = drawn.integers(0, 156, (32, 32, 3), np.uint8)
            pixels[..., "abc".find(name)] += 80
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return write_images(root / "train", "abc", 30, 0), write_images(root / "test", "ca", 32, 1)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache-of-classify"))


def start(folders, out, *more):
    """Run the command as its parser would, with the options that all experiments have."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    train, test = map(str, folders)
    options = parser.parse_args(["--weights", str(TINY_BUNDLE), "--train", train, "--test", test, *more])
    vars(options).update(out=out, device="cpu", quiet=True, seed=0)
    return run(options)


class TestRun:
    def test_all_kinds(self, folders, tmp_path):
        record = start(folders, tmp_path, "--sketch", "96", "32", "--epochs", "4", "--supervised-epochs", "2")
        head, *lines = record["table"]
        assert [line[0] for line in lines] == [
            "afv", "afv, sketch", "afv, sketch", "d-pool", "d-pool-blocks", "pixels", "afv-random", "d-pool-random",
            "supervised",
        ]  # fmt: skip
        assert head[1] == "numbers"
        assert [line[1] for line in lines[1:6]] == ["96", "32", "4", "16", "3,072"]
        assert lines[-1][1] == f"{record['rows'][-1]['size']:,} weights"
        assert [row["epochs"] for row in record["rows"]] == [4] * 8 + [2]
        assert [row["rate"] for row in record["rows"]] == [2.0] * 8 + [None]
        written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert written == json.loads(json.dumps(record["rows"]))
        assert all(len(line) == len(head) and all(isinstance(cell, str) for cell in line) for line in lines)
        json.dumps(record, allow_nan=False)
        for row in record["rows"]:
            low, high = row["interval"]
            assert low <= row["test_accuracy"] <= high
            right = round(row["test_accuracy"] * 64)
            assert binomtest(right, 64).proportion_ci(method="wilson").low == pytest.approx(low)
        assert record["rows"][0]["test_accuracy"] > 0.9
        assert record["rows"][5]["test_accuracy"] > 0.9
        assert not list(tmp_path.glob(".features*"))

    def test_augmented(self, folders, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(classify, "crop_and_flip", lambda images, drawn: seen.append(len(images)) or images)
        record = start(folders, tmp_path, "--augment", "--features", "pixels", "--epochs", "3")
        assert seen == [90] * 3  # the comparison of penalties sees the images as they are
        assert len(record["rows"][0]["compared"]) == 10

    def test_figure(self, folders, tmp_path):
        pytest.importorskip("matplotlib")
        record = start(folders, tmp_path, "--features", "d-pool", "--epochs", "1")
        assert record["notes"] == []
        with Image.open(tmp_path / "accuracy.png") as picture:
            assert picture.width > 500

    def test_without_matplotlib(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        (tmp_path / "accuracy.png").write_bytes(b"an earlier run's")
        record = start(folders, tmp_path, "--features", "d-pool", "--epochs", "1")
        assert "afv-metric[plots]" in record["notes"][0]
        assert not (tmp_path / "accuracy.png").exists()

    def test_smaller_steps_after_divergence(self, folders, tmp_path, monkeypatch):
        rates, train = [], classify.train_svm

        def diverging(batches, classes, scaling, schedule, penalties, **more):
            rates.append(schedule.rate)
            if schedule.rate > 0.2:
                raise DivergenceError("too fast")
            return train(batches, classes, scaling, schedule, penalties, **more)

        monkeypatch.setattr(classify, "train_svm", diverging)
        known = ["--features", "d-pool", "--epochs", "1", "--penalty", "1e-3", "--dropout", "0"]
        record = start(folders, tmp_path, *known, "--rate", "2")
        assert rates == [2, 0.5, 0.125]
        assert record["rows"][0]["rate"] == 0.125
        with pytest.raises(DivergenceError, match="too fast"):
            start(folders, tmp_path, *known, "--rate", "2000")
        assert rates[3:] == [2000, 500, 125, 31.25]

    def test_rates_of_the_comparison_are_told(self, folders, tmp_path, monkeypatch):
        train = classify.train_svm

        def diverging(batches, classes, scaling, schedule, penalties, **more):
            if schedule.rate > 0.5 and not schedule.dropout and len(penalties) > 1:
                raise DivergenceError("too fast")
            return train(batches, classes, scaling, schedule, penalties, **more)

        monkeypatch.setattr(classify, "train_svm", diverging)
        (row,) = start(folders, tmp_path, "--features", "d-pool", "--epochs", "1")["rows"]
        assert [compared[3] for compared in row["compared"]] == [0.5] * 5 + [2.0] * 5
        assert row["rate"] == 2.0

    def test_a_later_failure_costs_no_row(self, folders, tmp_path, monkeypatch):
        (tmp_path / "rows.jsonl").write_text("an earlier run's\n")
        known = ["--features", "d-pool", "supervised", "--epochs", "1"]

        def fail(*_, **__):
            written.append((tmp_path / "rows.jsonl").read_text())
            raise RuntimeError("no memory")

        written = []
        monkeypatch.setattr(classify, "train_supervised", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            start(folders, tmp_path, *known)
        assert [json.loads(line)["features"] for line in written[0].splitlines()] == ["d-pool"]
        assert (tmp_path / "rows.jsonl").read_text() == written[0]
        monkeypatch.setattr(classify, "PooledFeatures", fail)
        with pytest.raises(FileNotFoundError):  # the rerun has removed the rows of the run before
            start(folders, tmp_path, *known)

    def test_features_of_a_killed_run_are_removed(self, folders, tmp_path):
        (tmp_path / ".features-a1b2c3d4").mkdir()
        (tmp_path / ".features-a1b2c3d4" / "features.f16").write_bytes(b"much")
        (tmp_path / ".features-of-my-own").mkdir()
        start(folders, tmp_path, "--features", "d-pool", "--epochs", "1")
        assert [path.name for path in tmp_path.glob(".features*")] == [".features-of-my-own"]

    @pytest.mark.parametrize(("kind", "needed"), [("d-pool", False), ("d-pool-random", True)])
    def test_generator_is_read_where_it_is_needed(self, folders, tmp_path, monkeypatch, kind, needed):
        load = classify.load_bundle

        def read(weights, generator):
            assert generator is needed
            assert (load(weights, generator=generator).generator is not None) is needed
            raise InterruptedError

        monkeypatch.setattr(classify, "load_bundle", read)
        with pytest.raises(InterruptedError):
            start(folders, tmp_path, "--features", "pixels", kind)

    def test_long_streamed_features_are_scaled_by_batches(self, folders, tmp_path, monkeypatch):
        given, measure = [], classify.measure_scaling
        monkeypatch.setattr(classify, "_LONG", 10)
        monkeypatch.setattr(
            classify, "measure_scaling", lambda sample, each: given.append(sample) or measure(sample, each=each)
        )
        monkeypatch.setattr(classify, "crop_and_flip", lambda images, drawn: images)
        record = start(folders, tmp_path, "--augment", "--features", "afv", "--epochs", "8", "--dropout", "0")
        assert not isinstance(given[0], torch.Tensor | list | tuple)
        assert record["rows"][0]["train_accuracy"] > 0.9

    @pytest.mark.parametrize("option", ["--epochs", "--supervised-epochs"])
    def test_no_epochs(self, folders, tmp_path, option):
        with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
            start(folders, tmp_path, "--features", "d-pool", option, "0")

    def test_limit(self, folders, tmp_path):
        record = start(folders, tmp_path, "--features", "d-pool", "--epochs", "1", "--limit", "70")
        assert record["images"] == {"train": 70, "test": 64}


class TestReadExamples:
    def test_labels_follow_the_names_of_classes(self, folders):
        train, test, classes = read_examples([folders[0]], [folders[1]], 32, quiet=True)
        assert classes == ("a", "b", "c")
        for examples in (train, test):
            assert torch.equal(examples.images[:].float().mean((2, 3)).argmax(1), examples.labels)
        assert set(test.labels.tolist()) == {0, 2}

    def test_order_is_random(self, folders):
        train, _, _ = read_examples([folders[0]], [folders[1]], 32, quiet=True)
        assert not torch.equal(train.labels, train.labels.sort().values)

    def test_unknown_class(self, folders, tmp_path):
        other = write_images(tmp_path / "other", "ad", 32, 2)
        with pytest.raises(ValueError, match="classes without training images: d"):
            read_examples([folders[0]], [other], 32, quiet=True)

    @pytest.mark.parametrize("limit", [0, 64])
    def test_training_images_are_no_test_images(self, folders, limit):
        with pytest.raises(ValueError, match="holds the images of"):
            read_examples([folders[0]], [folders[0]], 32, limit=limit, quiet=True)

    def test_no_classes(self, folders, tmp_path):
        flat = write_images(tmp_path, "a", 64, 2) / "a"
        with pytest.raises(ValueError, match="no classes"):
            read_examples([flat], [folders[1]], 32, quiet=True)


def test_sketch_keeps_what_vectors_tell(bundle):
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, sketched = (torch.cat(list(extract(ScoreFeatures(bundle, size), images))) for size in (None, 4096))
    products, kept = whole @ whole.T, sketched @ sketched.T
    assert (products - kept).abs().max() < 0.15 * products.diag().mean()


def test_augmented_slices_repeat():
    drawn = torch.Generator().manual_seed(0)
    rows = ImageView(torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8, generator=drawn))
    moved = classify._Augmented(rows, 3)
    assert torch.equal(moved[slice(8, 16)], moved[slice(8, 16)])
    assert not torch.equal(moved[slice(8, 16)], classify._Augmented(rows, 4)[slice(8, 16)])
    assert not torch.equal(moved[slice(8, 16)], rows[slice(8, 16)])


@pytest.mark.parametrize("wrong", [{"sketches": (16, 0)}, {"epochs": 0}])
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match="got"):
        Settings(**wrong)
