import json

import pytest
import torch

from afv_metric.train.checkpoint import (
    best_checkpoints,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    rewind,
    save_checkpoint,
)


def _save(run, *iterations):
    for iteration in iterations:
        save_checkpoint(run, {"iteration": iteration, "recipe": {}, "weights": torch.full((3,), float(iteration))})


def _monitor(run, similarities):
    lines = [{"iteration": at, "fisher_similarity/held_out": value} for at, value in similarities.items()]
    (run / "monitors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_is_saved_is_loaded(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    _save(tmp_path, 9, 10, 1_000)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert load_checkpoint(latest)["weights"].tolist() == [1000.0] * 3


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"iteration": print}, tmp_path / "checkpoint-0000001.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        load_checkpoint(tmp_path / "checkpoint-0000001.pt")


def test_the_last_two_the_best_and_the_milestones_are_kept(tmp_path):
    _save(tmp_path, 10, 20, 30, 40, 50, 60, 70)
    _monitor(tmp_path, {0: 0.99, 10: 0.1, 20: 0.8, 40: 0.7, 50: 0.9, 60: 0.2})
    prune_checkpoints(tmp_path, milestone_interval=30, best=2)
    assert list(checkpoints(tmp_path)) == [20, 30, 50, 60, 70]
    assert [path.stem for path in best_checkpoints(tmp_path, 2)] == ["checkpoint-0000050", "checkpoint-0000020"]


def test_rewinding_forgets_what_came_later(tmp_path):
    _save(tmp_path, 10, 20, 30)
    (tmp_path / "stats.jsonl").write_text('{"iteration": 10}\n{"iteration": 20}\n{"iteration": 30}\n{"iterat')
    for name in (".checkpoint-0000040-0123456789abcdef.pt", "samples-0000020.png", "samples-0000030.png"):
        (tmp_path / name).write_bytes(b"ours")
    foreign = {
        ".mine",
        ".stats-mine.jsonl",
        "notes.jsonl",
        "checkpoint-old.pt",
        "samples-mine.png",
        "samples-40.png.bak",
    }
    for name in foreign:
        (tmp_path / name).write_text("not ours")
    rewind(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == foreign | {
        "checkpoint-0000010.pt", "checkpoint-0000020.pt", "stats.jsonl", "samples-0000020.png",
    }  # fmt: skip
    assert all((tmp_path / name).read_text() == "not ours" for name in foreign)
    assert list(checkpoints(tmp_path)) == [10, 20]
    assert (tmp_path / "stats.jsonl").read_text() == '{"iteration": 10}\n{"iteration": 20}\n'


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights"])
def test_a_checkpoint_that_is_none_is_named(tmp_path, content):
    (tmp_path / "checkpoint-0000001.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint-0000001\.pt is cut short, damaged or no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint-0000001.pt")


def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path):
    for content in ([1, 2], {"iteration": 3, "model": torch.zeros(2)}):
        torch.save(content, tmp_path / "mine.pt")
        with pytest.raises(ValueError, match=r"mine\.pt is no checkpoint of a run"):
            load_checkpoint(tmp_path / "mine.pt")


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert load_newest(tmp_path) == (None, {})
    _save(tmp_path, 10, 20, 30)
    for name in ("checkpoint-mine.pt", "checkpoint-40.pt.bak", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"foreign")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "checkpoint-0000050.pt").mkdir()
    cut = tmp_path / "checkpoint-0000030.pt"
    cut.write_bytes(cut.read_bytes()[:-100])
    state, damaged = load_newest(tmp_path)
    assert state is not None
    assert state["iteration"] == 20
    assert list(damaged) == [cut]
    for path in checkpoints(tmp_path).values():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-0000010\.pt is cut short.*has no whole checkpoint"):
        load_newest(tmp_path)
