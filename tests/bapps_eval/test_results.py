"""Results come back from their file as they were, and only the same run goes on from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bapps_eval.data import PairSet, SameSet, TripletSet
from bapps_eval.results import MetricRecord, Results, load_results, measured_before, save_results

FOLDER = Path("/data/val")


def make_results() -> Results:
    """A set of every kind, under two metrics; no image exists."""
    random = np.random.default_rng(0)
    triplets = [tuple(Path(f"bapps/{name}/{row}.png") for name in ("ref", "p0", "p1")) for row in range(3)]
    members = [(FOLDER / f"p0/{row}.png", FOLDER / f"p1/{row}.png") for row in (0, 1)]
    pairs = [(Path("/a/white.png"), Path(f"/a/grey{row}.png")) for row in range(4)]
    sets = [
        TripletSet("2afc/cnn", Path("bapps"), triplets, np.array([0.2, 0.5, 1]), partial="3 of 4,720 items", side=64),
        SameSet("jnd/cnn", FOLDER / "jnd/val/cnn", members, np.array([0, 1.0])),
        PairSet("Größen", Path("/a/scores.csv"), pairs, np.array([3.0, -1, 2, 5]), np.array([0, 0, 1, 1])),
    ]
    distances = [[random.random((len(judged), len(judged.images[0]) - 1)) for judged in sets] for _ in range(2)]
    metrics = [MetricRecord("l2"), MetricRecord("afv/tiny/local", "tiny", "0123abcd", "local")]
    return Results(sets, metrics, distances, {"limit": None, "metric": ["l2", "afv"]}, {"torch": "2.15"}, ["jnd/own"])


def test_results_come_back(tmp_path: Path) -> None:
    results = make_results()
    save_results(tmp_path / "new/results.npz", results)
    loaded = load_results(tmp_path / "new/results.npz")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["results.npz"]
    for was, now in zip(results.sets, loaded.sets, strict=True):
        assert (type(now), now.name, now.measure, now.partial, now.side) == (
            type(was),
            was.name,
            was.measure,
            was.partial,
            was.side,
        )
        np.testing.assert_array_equal(now.judged, was.judged)
        np.testing.assert_equal(now.strata, was.strata)
    assert loaded.sets[0].images[2][1] == Path("bapps/p0/2.png").absolute()
    assert loaded.sets[1].images == results.sets[1].images
    assert loaded.sets[2].source == Path("/a/scores.csv")
    np.testing.assert_equal(loaded.distances, results.distances)
    assert loaded.metrics == results.metrics
    assert (loaded.settings, loaded.versions) == (results.settings, results.versions)
    assert loaded.unfinished == ["jnd/own"]


def test_the_file_needs_no_pickle(tmp_path: Path) -> None:
    save_results(tmp_path / "results.npz", make_results())
    with np.load(tmp_path / "results.npz", allow_pickle=False) as arrays:
        record = json.loads(arrays["metadata"].tobytes())
        assert {name: arrays[name].shape for name in arrays if name.startswith("distances")} == {
            "distances_0": (2, 3, 2),
            "distances_1": (2, 2, 1),
            "distances_2": (2, 4, 1),
        }
    assert record["sets"][2]["name"] == "Größen"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "results.npz"
    file.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        save_results(file, replace(make_results(), settings={"limit": float("nan")}))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_results(tmp_path / "lost.npz")
    (tmp_path / "text.npz").write_text("nothing of the kind")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    save_results(tmp_path / "cut.npz", make_results())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-200])
    metadata = np.frombuffer(b'{"format": 9}', np.uint8)
    np.savez(tmp_path / "newer.npz", metadata=metadata)
    for name, message in {"text": "", "other": "metadata", "cut": "", "newer": "format 9"}.items():
        with pytest.raises(ValueError, match=rf"{name}.npz does not hold results of bapps_eval: .*{message}"):
            load_results(tmp_path / f"{name}.npz")


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    results = make_results()
    started = replace(
        results,
        sets=results.sets[:2],
        distances=[of_metric[:2] for of_metric in results.distances],
        unfinished=["Größen"],
    )
    save_results(tmp_path / "results.npz", started)
    done = measured_before(load_results(tmp_path / "results.npz"), replace(results, unfinished=[]))
    assert list(done) == ["2afc/cnn", "jnd/cnn"]
    np.testing.assert_equal(done["jnd/cnn"], [of_metric[1] for of_metric in results.distances])


def test_nothing_done_yet_is_fine() -> None:
    results = make_results()
    started = Results([], results.metrics, [[], []], results.settings, results.versions, ["2afc/cnn"])
    planned = replace(results, sets=results.sets[:1], unfinished=[])
    assert measured_before(started, planned) == {}


def _other_images(results: Results) -> Results:
    first, *rest = results.sets
    images = [*first.images[:-1], tuple(Path("elsewhere") for _ in first.images[-1])]
    return replace(results, sets=[replace(first, images=images), *rest])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, settings={**r.settings, "limit": 60}), "limit was None, now 60"),
        (lambda r: replace(r, settings={"limit": None}), r"metric was \['l2', 'afv'\], now not there"),
        (lambda r: replace(r, versions={"torch": "2.16"}), "torch was 2.15, now 2.16"),
        (lambda r: replace(r, metrics=r.metrics[:1]), r"metric 2 was afv/tiny/local of bundle tiny 0123abcd, now not"),
        (lambda r: replace(r, metrics=r.metrics[::-1]), "metric 1 was l2, now afv/tiny/local"),
        (
            lambda r: replace(r, metrics=[r.metrics[0], replace(r.metrics[1], bundle_hash="ffff")]),
            "metric 2 was .* 0123abcd, now .* ffff",
        ),
        (lambda r: replace(r, sets=r.sets[1:]), "set 2afc/cnn was there, now not there"),
        (lambda r: replace(r, sets=[*r.sets, replace(r.sets[0], name="more")]), "set more was not there, now there"),
        (
            lambda r: replace(r, sets=[*r.sets[:2], replace(r.sets[2], judged=np.arange(4.0))]),
            r"Größen has other items \(or judgements\) at /a/scores.csv",
        ),
        (
            lambda r: replace(r, sets=[*r.sets[:2], replace(r.sets[2], groups=np.array([0, 1, 1, 0]))]),
            "Größen has other items",
        ),
        (lambda r: replace(r, sets=[replace(r.sets[0], side=None), *r.sets[1:]]), "2afc/cnn has other items"),
        (_other_images, "2afc/cnn has other items"),
    ],
)
def test_another_run_is_refused(change, message: str) -> None:
    results = replace(make_results(), unfinished=[])
    with pytest.raises(ValueError, match=f"this is another run: .*{message}"):
        measured_before(results, change(results))


def test_every_difference_is_named() -> None:
    results = replace(make_results(), unfinished=[])
    with pytest.raises(ValueError, match="limit was .*; torch was .*; set jnd/cnn was"):
        measured_before(results, replace(results, settings={}, versions={}, sets=[results.sets[0], results.sets[2]]))
