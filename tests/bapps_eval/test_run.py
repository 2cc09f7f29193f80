"""Measuring: distances where they belong, in one pass, told as sets are done, alone and in several processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_sets import save_family, save_grey, save_pairs, save_root
from torch import Tensor, distributed

from bapps_eval import run as measuring
from bapps_eval.data import PairSet, read_pairs, read_root
from bapps_eval.metrics import Choice, Metric, l2, make_metrics, ssim
from bapps_eval.run import Times, measure

TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny-bundle"


def test_triplets_by_hand(tmp_path: Path) -> None:
    ((_, distances, _),) = measure([Metric("l2", l2)], read_root(save_root(tmp_path)))
    assert distances == pytest.approx((np.array([[50, 20], [10, 10]]) / 127.5) ** 2)
    assert distances.dtype == np.float64


def test_pairs_and_triplets_of_many_sets(tmp_path: Path) -> None:
    sets = [*read_root(save_root(tmp_path)), read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))]
    found = measure([Metric("l2", l2), Metric("ssim", ssim)], sets, batch_size=3)
    assert [[distances.shape for distances in of_metric] for of_metric in found] == 2 * [
        [(1, 2), (2, 2), (4, 1), (7, 1)]
    ]
    assert found[0][2][:, 0] == pytest.approx((np.arange(1, 5) * 10 / 127.5) ** 2)
    assert found[0][3][:, 0] == pytest.approx((np.arange(7) / 127.5) ** 2)
    assert (found[1][2] > 0).all()


def test_rows_of_different_sizes_stay_apart(tmp_path: Path) -> None:
    images = []
    for index in range(6):
        side = (8, 12, 16)[index % 3]
        pair = (tmp_path / f"{index}a.png", tmp_path / f"{index}b.png")
        images.append((save_grey(pair[0], 0, side, side), save_grey(pair[1], 10 * index, side, side)))
    judged = PairSet("sizes", tmp_path, images, np.arange(6.0), np.zeros(6, int))
    for batch_size in (1, 2, 64):
        ((distances,),) = measure([Metric("l2", l2)], [judged], batch_size=batch_size)
        assert distances[:, 0] == pytest.approx((np.arange(6) * 10 / 127.5) ** 2)


def test_neither_batch_size_nor_workers_matter(tmp_path: Path) -> None:
    sets = [*read_root(save_root(tmp_path)), read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))]
    metrics = [Metric("l2", l2), Metric("ssim", ssim)]
    large = measure(metrics, sets, workers=0)
    for settings in ({"batch_size": 1, "workers": 2}, {"batch_size": 3, "workers": 1}):
        small = measure(metrics, sets, **settings)
        for first, second in zip(chain(*large), chain(*small), strict=True):
            assert np.allclose(first, second, rtol=0, atol=1e-7)


def test_progress_and_finished_sets_are_told(tmp_path: Path) -> None:
    sets = [*read_root(save_root(tmp_path)), read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))]
    told: list[object] = []
    found = measure(
        [Metric("l2", l2), Metric("ssim", ssim)],
        sets,
        batch_size=3,
        advance=told.append,
        finished=lambda index, distances: told.append((index, [values.tolist() for values in distances])),
    )
    expected = [[of_metric[index].tolist() for of_metric in found] for index in range(4)]
    assert [item for item in told if isinstance(item, tuple)] == list(enumerate(expected))
    assert sum(item for item in told if isinstance(item, int)) == 14
    # The triplets are one batch, and are known to be done before the last pairs are.
    assert told.index((1, expected[1])) < told.index((2, expected[2])) < len(told) - 2


def test_finished_sets_are_told_before_a_later_one_fails(tmp_path: Path) -> None:
    sets = [read_pairs(save_pairs(tmp_path / f"{name}.csv", [1, 2], [1, 2])) for name in "abc"]
    lost = save_grey(tmp_path / "lost.png", 0)
    sets[2] = PairSet("lost", tmp_path, [(lost, lost)] * 2, np.arange(2.0), np.zeros(2, int))
    lost.unlink()
    told: list[int] = []
    with pytest.raises(ValueError, match=r"cannot read the image .*lost.png"):
        measure([Metric("l2", l2)], sets, batch_size=1, finished=lambda index, distances: told.append(index))
    assert told == [0]


def test_a_set_is_finished_though_its_sizes_are_rare(tmp_path: Path) -> None:
    save_family(tmp_path / "2afc/val/mine", [((0, 1, 2), 0.5)] * 9)
    save_grey(tmp_path / "2afc/val/mine/ref/000000.png", 0, 9, 9)
    for folder in ("p0", "p1"):
        save_grey(tmp_path / f"2afc/val/mine/{folder}/000000.png", 9, 9, 9)
    sets = [
        *read_root(tmp_path),
        *(read_pairs(save_pairs(tmp_path / f"{name}.csv", range(9), range(9))) for name in "ab"),
    ]
    told: list[str] = []
    measure(
        [Metric("l2", l2)],
        sets,
        batch_size=3,
        advance=lambda count: told.append("."),
        finished=lambda index, distances: told.append(str(index)),
    )
    assert "".join(told).index("0") <= 5


def test_metrics_run_in_inference_mode_and_see_every_image_once(tmp_path: Path) -> None:
    described: list[int] = []

    def describe(images: list[Tensor]) -> list[Tensor]:
        assert torch.is_inference_mode_enabled()
        described.append(sum(map(len, images)))
        return images

    sets = read_root(save_root(tmp_path), tasks=["2afc"])
    measure([Metric("counting", l2, describe=describe)], sets)
    assert described == [9]


def test_bright_images_are_taken_for_what_they_are(tmp_path: Path) -> None:
    # Alone they look like [0, 1], and the library would warn of a range that is known here.
    images = [(save_grey(tmp_path / "a.png", 200, 32, 32), save_grey(tmp_path / "b.png", 210, 32, 32))] * 2
    judged = PairSet("bright", tmp_path, images, np.arange(2.0), np.zeros(2, int))
    ((distances,),) = measure(make_metrics(["afv"], Choice([str(TINY_BUNDLE)])), [judged])
    assert (distances > 0).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(tmp_path: Path, wrong: float) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    metric = Metric("broken", lambda first, second: torch.tensor([0.0, wrong]))
    with pytest.raises(ValueError, match=r"broken is not finite on .*black.png and .*grey2.png"):
        measure([metric], [judged])


def test_metrics_that_give_no_distance_a_pair_are_named(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", [1, 2], [1, 2]))
    with pytest.raises(ValueError, match=r"summed gave \(\) for 2 pairs"):
        measure([Metric("summed", lambda first, second: (first - second).sum())], [judged])


def test_times_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that only goes on while images are decoded (10 s a batch) and when a set is finished (4 s).
    now = 0.0
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now)
    real = measuring.batches

    def slow(*arguments: object, **settings: object) -> object:
        nonlocal now
        for batch in real(*arguments, **settings):  # type: ignore[arg-type]
            now += 10
            yield batch

    def finished(index: int, distances: object) -> None:
        nonlocal now
        now += 4

    monkeypatch.setattr(measuring, "batches", slow)
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(7), range(7)))
    times = Times()
    for _ in range(2):
        measure([Metric("l2", l2)], [judged], batch_size=2, workers=0, times=times, finished=finished)
    assert times == Times(waiting=80, computing=8)


def _measure_as(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does; what it finds goes into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    measured: list[int] = []
    told: list[int] = []

    def distance(first: Tensor, second: Tensor) -> Tensor:
        measured.append(len(first))
        return l2(first, second)

    sets = [*read_root(folder), read_pairs(folder / "list.csv")]
    metrics = [Metric("l2", distance)]
    (found,) = measure(metrics, sets, batch_size=2, workers=0, finished=lambda index, distances: told.append(index))
    np.savez(folder / f"{rank}.npz", *found, measured=sum(measured), told=told)
    distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_share_the_work_and_know_all_distances(tmp_path: Path) -> None:
    save_pairs(save_root(tmp_path) / "list.csv", range(7), range(7))
    (expected,) = measure([Metric("l2", l2)], [*read_root(tmp_path), read_pairs(tmp_path / "list.csv")])
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
            assert found["told"].tolist() == [0, 1, 2, 3]
            assert all(np.array_equal(found[f"arr_{index}"], values) for index, values in enumerate(expected))
    # 3 triplets are two comparisons each, then there are 4 pairs and 7: 17 comparisons, none done twice.
    assert sum(measured) == 17
    assert min(measured) >= 6
