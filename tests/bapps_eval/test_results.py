"""Results come back from their file as they were, whatever kills the writer; only the same run goes on from them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bapps_eval.data import JudgedSet
from bapps_eval.results import Measured, MetricRecord, Results, load_results, plan_results, recording

FOLDER = Path("/data/val")


def make_plan() -> Results:
    """Two metrics on a set of every kind, nothing measured."""
    triplets = [tuple(Path(f"bapps/{folder}/{row}.png") for folder in ("ref", "p0", "p1")) for row in range(3)]
    pairs = [(FOLDER / f"p0/{row}.png", FOLDER / f"p1/{row}.png") for row in range(2)]
    lists = [(Path("/a/0.png"), Path(f"/a/{row}.png")) for row in range(4)]
    sets = [
        JudgedSet("triplets", "2afc/cnn", Path("bapps"), triplets, np.array([0.2, 0.4, 1]), None, "3 of 9 items", 64),
        JudgedSet("same", "jnd/cnn", FOLDER / "jnd/val/cnn", pairs, np.array([0, 1.0])),
        JudgedSet("pairs", "Größen", Path("/a/scores.csv"), lists, np.array([0.1, 2, 3, 4]), np.array([0, 0, 1, 1])),
    ]
    metrics = [MetricRecord("l2"), MetricRecord("afv/tiny/local", "tiny", "0123abcd", "local")]
    return plan_results(sets, metrics, {"limit": None, "metric": ["l2", "afv"]}, {"torch": "2.15"})


ITEMS = [
    (0, Measured(2, [[0.1, 1 / 3], [5.0, 6.0]])),
    (0, Measured(0, [[1.0, 2.0], [3.0, 4.0]])),
    (0, Measured(1, [], "it is broken")),
    (1, Measured(0, [[1e-12], [2.0]])),
]


def write(file: Path, *, resume: bool = False) -> Results:
    with recording(file, make_plan(), resume=resume) as results:
        for index, item in ITEMS:
            results.write(index, [item])
    return results


def test_results_come_back(tmp_path: Path) -> None:
    plan = make_plan()
    written = write(tmp_path / "new/run.jsonl")
    loaded = load_results(tmp_path / "new/run.jsonl")
    for was, now in zip(plan.sets, loaded.sets, strict=True):
        attributes = ("kind", "name", "measure", "partial", "side")
        assert [getattr(now, name) for name in attributes] == [getattr(was, name) for name in attributes]
        np.testing.assert_array_equal(now.judged, was.judged)
        np.testing.assert_equal(now.strata, was.strata)
    assert loaded.sets[0].images[2][1] == Path("bapps/p0/2.png").absolute()
    assert loaded.sets[2].source == Path("/a/scores.csv")
    for results in (written, loaded):
        np.testing.assert_equal(results.distances[0][:, [0, 2]], [[[1, 2], [0.1, 1 / 3]], [[3, 4], [5, 6]]])
        assert results.failures == [{1: "it is broken"}, {}, {}]
        assert results.unfinished == ["jnd/cnn", "Größen"]
    assert loaded.metrics == plan.metrics
    assert (loaded.settings, loaded.versions) == (plan.settings, plan.versions)


def test_finished_sets_are_scored_without_what_failed(tmp_path: Path) -> None:
    scored = write(tmp_path / "run.jsonl").scored()
    (judged,), (distances,) = scored.sets, scored.distances
    assert (len(judged), judged.judged.tolist(), judged.partial) == (2, [0.2, 1], "2 of 9 items")
    assert distances.tolist() == [[[1, 2], [0.1, 1 / 3]], [[3, 4], [5, 6]]]


def test_a_set_of_which_all_failed_is_not_scored() -> None:
    plan = make_plan()
    for row in range(2):
        plan.add(1, Measured(row, [], "broken"))
    assert plan.scored().sets == []
    assert plan.unfinished == ["2afc/cnn", "Größen"]


def test_every_cut_leaves_all_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    write(file)
    content = file.read_bytes()
    head = content.index(b"\n") + 1
    for end in range(head, len(content) + 1):
        file.write_bytes(content[:end])
        lines = content[head:end].count(b"\n")
        loaded = load_results(file)
        kept = sum(np.isfinite(of).all((0, 2)).sum() for of in loaded.distances) + len(loaded.failures[0])
        assert kept == lines
    for end in (head, head + 5, len(content) - 1):
        file.write_bytes(content[:end])
        write(file, resume=True)
        assert all(json.loads(line) for line in file.read_bytes().splitlines())
        np.testing.assert_equal(load_results(file).distances[0][0, 2], [0.1, 1 / 3])
    file.write_bytes(content[: head - 1])  # not even the first line: begun anew
    write(file, resume=True)
    assert file.read_bytes() == content


def test_a_killed_writer_leaves_what_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
from pathlib import Path
from test_results import ITEMS, make_plan
from bapps_eval.results import recording
with recording(Path({str(file)!r}), make_plan()) as results:
    for index, item in ITEMS[:3]:
        results.write(index, [item])
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        with pytest.raises(BlockingIOError, match=r"run\.jsonl is being written by another process"):
            write(file, resume=True)
        writer.kill()
    assert load_results(file).unfinished == ["jnd/cnn", "Größen"]
    write(file, resume=True)
    assert load_results(file).missing(0).tolist() == [1]


def test_without_resume_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("old")
    write(file)
    assert len(file.read_text().splitlines()) == 1 + len(ITEMS)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_results(tmp_path / "lost.jsonl")
    write(tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines(keepends=True)
    files = {
        "empty": (b"", "line 1"),
        "text": (b"nothing of the kind", "line 1, does not hold results of bapps_eval: it is not as eval writes it"),
        "other": (b'{"a": 1}\n', "line 1"),
        "binary": (b"PK\x03\x04\xff\n", "line 1.*it is not as eval writes it"),
        "newer": (b'{"bapps_eval": 9}\n', "line 1.*format 9"),
        "spoilt": (b"".join([*lines[:2], b"{}\n", *lines[2:]]), "line 3"),
        "foreign": (b"".join([lines[0], b'{"set": 0, "row": 99, "distances": [[1, 2], [3, 4]]}\n']), "line 2"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}, {message}"):
            load_results(tmp_path / name)


def _changed(results: Results, index: int, **changes: object) -> Results:
    sets = list(results.sets)
    sets[index] = replace(sets[index], **changes)  # type: ignore[arg-type]
    return replace(results, sets=sets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, settings={**r.settings, "limit": 60}), "limit was not there, now 60"),
        (lambda r: replace(r, settings={"limit": None}), r"metric was \['l2', 'afv'\], now not there"),
        (lambda r: replace(r, versions={"torch": "2.16"}), "torch was 2.15, now 2.16"),
        (lambda r: replace(r, metrics=r.metrics[:1]), r"metric 2 was afv/tiny/local 0123abcd, now not there"),
        (lambda r: replace(r, metrics=r.metrics[::-1]), "metric 1 was l2, now afv/tiny/local"),
        (
            lambda r: replace(r, metrics=[r.metrics[0], replace(r.metrics[1], bundle_hash="ffff")]),
            "metric 2 was .* 0123abcd, now .* ffff",
        ),
        (lambda r: replace(r, sets=r.sets[1:]), "set 2afc/cnn was there, now not there"),
        (lambda r: replace(r, sets=[*r.sets, replace(r.sets[0], name="more")]), "set more was not there, now there"),
        (lambda r: _changed(r, 2, judged=np.arange(4.0)), "set Größen has other items or judgements"),
        (lambda r: _changed(r, 2, groups=np.array([0, 1, 1, 0])), "set Größen has other items"),
        (lambda r: _changed(r, 0, side=None), "set 2afc/cnn has other items"),
        (lambda r: _changed(r, 0, images=[(Path("elsewhere"),) * 3] * 3), "set 2afc/cnn has other items"),
        (
            lambda r: replace(r, settings={}, versions={}, sets=[r.sets[0], r.sets[2]]),
            "metric was .*; torch was .*; set jnd/cnn was",
        ),
    ],
)
def test_another_run_is_refused_with_every_difference(change, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    write(file)
    before = file.read_bytes()
    with (
        pytest.raises(ValueError, match=rf"run\.jsonl is of another run: .*{message}"),
        recording(file, change(make_plan()), resume=True),
    ):
        pass
    assert file.read_bytes() == before
