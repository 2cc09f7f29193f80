"""Measuring: distances where they belong, every item kept as it comes, failures apart, alone and in two processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_sets import save_grey, save_pairs, save_root
from torch import Tensor, distributed

from bapps_eval.data import JudgedSet, read_pairs, read_root
from bapps_eval.metrics import Choice, Metric, l2, make_metrics, psnr
from bapps_eval.results import Results, load_results
from bapps_eval.run import evaluate, measure

TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny-bundle"


@pytest.fixture
def sets(tmp_path: Path) -> list[JudgedSet]:
    """See :func:`save_root`, and seven pairs."""
    return [*read_root(save_root(tmp_path)), read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))]


def test_distances_by_hand(sets: list[JudgedSet]) -> None:
    found = evaluate([Metric("l2", l2), Metric("psnr", psnr)], sets, batch_size=3)
    assert [of_set.shape for of_set in found.distances] == [(2, 1, 2), (2, 2, 2), (2, 4, 1), (2, 7, 1)]
    assert [of_set.dtype for of_set in found.distances] == [np.float64] * 4
    assert found.distances[1][0] == pytest.approx((np.array([[50, 20], [10, 10]]) / 127.5) ** 2)
    assert found.distances[2][0, :, 0] == pytest.approx((np.arange(1, 5) * 10 / 127.5) ** 2)
    assert found.distances[3][0, :, 0] == pytest.approx((np.arange(7) / 127.5) ** 2)
    assert (found.distances[2][1] < 0).all()
    assert (found.unfinished, [*found.failures]) == ([], [{}] * 4)


def test_rows_of_different_sizes_stay_apart(tmp_path: Path) -> None:
    images = []
    for index in range(6):
        side = (8, 12, 16)[index % 3]
        pair = (tmp_path / f"{index}a.png", tmp_path / f"{index}b.png")
        images.append((save_grey(pair[0], 0, side, side), save_grey(pair[1], 10 * index, side, side)))
    judged = JudgedSet("pairs", "sizes", tmp_path, images, np.arange(6.0), np.zeros(6, int))
    for batch_size in (1, 2, 64):
        (distances,) = evaluate([Metric("l2", l2)], [judged], batch_size=batch_size).distances
        assert distances[0, :, 0] == pytest.approx((np.arange(6) * 10 / 127.5) ** 2)


def test_neither_batch_size_nor_workers_matter(sets: list[JudgedSet]) -> None:
    large = evaluate([Metric("l2", l2)], sets, workers=0).distances
    for settings in ({"batch_size": 1, "workers": 2}, {"batch_size": 3, "workers": 1}):
        small = evaluate([Metric("l2", l2)], sets, **settings).distances  # type: ignore[arg-type]
        for first, second in zip(large, small, strict=True):
            assert np.allclose(first, second, rtol=0, atol=1e-7)


def test_progress_is_on_stderr_unless_quiet(sets: list[JudgedSet], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([Metric("l2", l2)], sets)
    assert capsys.readouterr() == ("", "")
    evaluate([Metric("l2", l2)], sets, quiet=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "14/14" in printed.err


def test_an_item_that_fails_is_named_and_the_others_go_on(sets: list[JudgedSet], tmp_path: Path) -> None:
    (tmp_path / "2afc/val/cnn/p1/000001.png").write_text("not an image")
    save_grey(tmp_path / "grey3.png", 3, 9, 9)
    found = evaluate([Metric("l2", l2)], sets)
    errors = [error for failed in found.failures for error in failed.values()]
    assert len(errors) == 2
    assert errors[0].startswith("cannot read the image ")
    assert "2afc/val/cnn/p1/000001.png" in errors[0]
    assert errors[1].startswith("these images should have one size: ")
    assert np.isnan(found.distances[1][0]).all(1).tolist() == [False, True]
    assert found.missing(3).tolist() == [3]
    assert found.unfinished == []


def test_an_item_that_cannot_be_compared_fails_alone(sets: list[JudgedSet]) -> None:
    def distance(first: Tensor, second: Tensor) -> Tensor:
        values = l2(first, second)
        if (second > 5 / 127.5 - 1).any():  # grey levels 5 and above
            raise RuntimeError("not enough memory: you tried to allocate 99 bytes")
        return values

    found = evaluate([Metric("l2", l2), Metric("small", distance)], sets[3:])
    assert found.missing(0).tolist() == [6]
    (error,) = found.failures[0].values()
    assert error.endswith("grey6.png: small failed on images of 8x8: not enough memory: you tried to allocate 99 bytes")
    assert "black.png" in error


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(tmp_path: Path, wrong: float) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    metric = Metric("broken", lambda first, second: torch.tensor([0.0, wrong]))
    (failed,) = evaluate([metric], [judged]).failures
    assert failed == {1: f"{tmp_path}/black.png, {tmp_path}/grey2.png: broken gave no finite number"}


def test_metrics_that_give_no_distance_per_pair_are_named(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    found = evaluate([Metric("summed", lambda first, second: (first - second).sum())], [judged])
    assert len(found.failures[0]) == 2
    assert "summed gave () for 1 pairs" in found.failures[0][0]


def test_bright_images_are_taken_for_what_they_are(tmp_path: Path) -> None:
    # Alone they look like [0, 1], and the library would warn of a range that is known here.
    images = [(save_grey(tmp_path / "a.png", 200, 32, 32), save_grey(tmp_path / "b.png", 210, 32, 32))] * 2
    judged = JudgedSet("pairs", "bright", tmp_path, images, np.arange(2.0), np.zeros(2, int))
    (distances,) = evaluate(make_metrics(["afv"], Choice([str(TINY_BUNDLE)])), [judged]).distances
    assert (distances > 0).all()


def test_metrics_run_in_inference_mode_and_see_every_image_once(sets: list[JudgedSet]) -> None:
    described: list[int] = []

    def describe(images: list[Tensor]) -> list[Tensor]:
        assert torch.is_inference_mode_enabled()
        described.append(sum(map(len, images)))
        return images

    items = [item for some in measure([Metric("counting", l2, describe=describe)], sets[1]) for item in some]
    assert sorted(item.row for item in items) == [0, 1]
    assert described == [6]


def test_items_are_in_the_file_as_they_come_and_a_run_goes_on(sets: list[JudgedSet], tmp_path: Path) -> None:
    file, seen = tmp_path / "run.jsonl", []

    def distance(first: Tensor, second: Tensor) -> Tensor:
        seen.append(len(first))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return l2(first, second)

    metrics = [Metric("l2", distance, one_at_a_time=True)]
    expected = evaluate([Metric("l2", l2)], sets).distances
    with pytest.raises(KeyboardInterrupt):
        evaluate(metrics, sets, batch_size=1, workers=0, file=file)
    kept = load_results(file)
    assert kept.unfinished
    done = sum(len(judged) - len(kept.missing(index)) for index, judged in enumerate(kept.sets))
    assert done >= 2
    seen.clear()
    seen += [0] * 6
    found = evaluate(metrics, sets, batch_size=1, workers=0, file=file, resume=True)
    # Two comparisons for a triplet; what was there is not measured again.
    assert len(seen) - 6 <= 17 - done
    for results in (found, load_results(file)):
        assert isinstance(results, Results)
        assert all(map(np.array_equal, results.distances, expected))


def test_items_that_failed_are_tried_again(sets: list[JudgedSet], tmp_path: Path) -> None:
    file, broken = tmp_path / "run.jsonl", tmp_path / "grey3.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    assert list(evaluate([Metric("l2", l2)], sets, file=file).failures[3]) == [3]
    broken.write_bytes(whole)
    assert evaluate([Metric("l2", l2)], sets, file=file, resume=True).failures[3] == {}
    assert load_results(file).failures[3] == {}


def _measure_as(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does; what it finds goes into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    measured: list[int] = []

    def distance(first: Tensor, second: Tensor) -> Tensor:
        measured.append(len(first))
        return l2(first, second)

    sets = [*read_root(folder), read_pairs(folder / "list.csv")]
    found = evaluate([Metric("l2", distance)], sets, batch_size=2, workers=0, file=folder / "run.jsonl")
    np.savez(folder / f"{rank}.npz", *found.distances, measured=sum(measured))
    distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_share_the_work_and_the_first_knows_all(tmp_path: Path) -> None:
    save_pairs(save_root(tmp_path) / "list.csv", range(7), range(7))
    expected = evaluate([Metric("l2", l2)], [*read_root(tmp_path), read_pairs(tmp_path / "list.csv")]).distances
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_measure_as, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    measured = []
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            measured.append(int(found["measured"]))
            if rank == 0:
                assert all(np.array_equal(found[f"arr_{index}"], values) for index, values in enumerate(expected))
    assert all(map(np.array_equal, load_results(tmp_path / "run.jsonl").distances, expected))
    # 3 triplets are two comparisons each, then there are 4 pairs and 7: 17 comparisons, none done twice.
    assert sum(measured) == 17
    assert min(measured) >= 6
