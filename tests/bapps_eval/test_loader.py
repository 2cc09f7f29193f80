"""Batches: every item once, images as they are in the files, errors that name the file, with and without workers."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_sets import save_family, save_grey, save_pairs, save_root

from afv_metric.images import Reader
from bapps_eval import loader
from bapps_eval.data import JudgedSet, read_image_source, read_pairs, read_root
from bapps_eval.loader import batches


def _pairs(folder: Path, sizes: Sequence[tuple[int, int]], name: str = "greys") -> JudgedSet:
    """Pairs of the given heights and widths: the first image is as grey as its row, the second 255 less that."""
    images = []
    for row, (height, width) in enumerate(sizes):
        pair = (folder / name / f"{row}a.png", folder / name / f"{row}b.png")
        save_grey(pair[0], row, height, width)
        save_grey(pair[1], 255 - row, height, width)
        images.append(pair)
    rows = np.arange(len(sizes))
    return JudgedSet("pairs", name, folder, images, rows.astype(float), np.zeros_like(rows))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_item_comes_once_with_its_images(tmp_path: Path, workers: int, batch_size: int) -> None:
    sizes = [(8, 8), (8, 12), (12, 8), (8, 12), (8, 8), (8, 12), (8, 12)]
    seen = []
    for batch in batches(_pairs(tmp_path, sizes), batch_size, workers=workers):
        assert batch.errors == {}
        assert len(batch.rows) == len(batch.images[0]) <= batch_size
        for row, first, second in zip(batch.rows, *batch.images, strict=True):
            assert first.shape == second.shape == (3, *sizes[row])
            assert first.unique().tolist() == pytest.approx([row / 127.5 - 1])
            assert second.unique().tolist() == pytest.approx([(255 - row) / 127.5 - 1])
            seen.append(row)
    assert sorted(seen) == list(range(7))


def test_rows_can_be_chosen(tmp_path: Path) -> None:
    judged = _pairs(tmp_path, [(8, 8)] * 5)
    (batch,) = batches(judged, 64, rows=[1, 4])
    assert batch.rows.tolist() == [1, 4]
    assert batch.images[0][:, 0, 0, 0].tolist() == pytest.approx([row / 127.5 - 1 for row in (1, 4)])
    assert list(batches(judged, 64, rows=[])) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_read_is_named_and_the_others_come(tmp_path: Path, workers: int) -> None:
    judged = _pairs(tmp_path, [(8, 8)] * 6)
    (tmp_path / "greys/4b.png").write_bytes(b"not an image")
    save_grey(tmp_path / "greys/2b.png", 0, 9, 9)
    found = list(batches(judged, 2, workers=workers))
    assert sorted(row for batch in found for row in batch.rows) == list(range(6))
    errors = {row: error for batch in found for row, error in batch.errors.items()}
    assert errors.keys() == {2, 4}
    assert re.match(r"these images should have one size: .*2a.png, .*2b.png", errors[2])
    assert re.match(r"cannot read the image .*4b.png: is no image that Pillow reads", errors[4])
    assert all(len(batch.images) == (0 if batch.errors else 2) for batch in found)


def test_numbers_span_exactly_minus_one_to_one(tmp_path: Path) -> None:
    (batch,) = batches(_pairs(tmp_path, [(8, 8)] * 2), 2)
    first, second = batch.images
    assert first.dtype == torch.float32
    assert torch.equal(first[0], -torch.ones(3, 8, 8))
    assert torch.equal(second[0], torch.ones(3, 8, 8))


def test_images_are_contiguous_slices_of_one_copy(tmp_path: Path) -> None:
    (batch,) = batches(read_root(save_root(tmp_path), families=["cnn"])[0], 64)
    storages = {image.untyped_storage().data_ptr() for image in batch.images}
    assert len(storages) == 1
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in batch.images)
    assert batch.images[0].untyped_storage().nbytes() == 6 * 3 * 64 * 64 * 4


def test_a_repeated_image_is_decoded_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(9), range(9)))
    reads: Counter[str] = Counter()

    def counting(source: Path, side: int | None, reader: Reader) -> torch.Tensor:
        reads[Path(source.name).name] += 1
        return read_image_source(source, side, reader)

    monkeypatch.setattr(loader, "read_image_source", counting)
    greys = [second.unique().item() for batch in batches(judged, 4, workers=0) for second in batch.images[1]]
    assert greys == pytest.approx([level / 127.5 - 1 for level in range(9)])
    assert reads == Counter(["black.png"] * 3 + [f"grey{level}.png" for level in range(9)])


def test_families_of_bapps_have_64_pixels(tmp_path: Path) -> None:
    save_family(tmp_path / "2afc/val/cnn", [((0, 100, 200), 0.5)])
    save_family(tmp_path / "2afc/val/mine", [((0, 100, 200), 0.5)])
    sets = read_root(tmp_path)
    assert [batch.images[0].shape[2:] for judged in sets for batch in batches(judged, 2)] == [(64, 64), (8, 8)]


def test_workers_are_other_processes_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = tmp_path / "processes"
    processes.mkdir()

    def telling(source: Path, side: int | None, reader: Reader) -> torch.Tensor:
        (processes / str(os.getpid())).touch()
        return read_image_source(source, side, reader)

    monkeypatch.setattr(loader, "read_image_source", telling)
    judged = _pairs(tmp_path, [(8, 8)] * 6)
    started = batches(judged, 1, workers=2)
    next(started)
    started.close()
    seen = {int(path.name) for path in processes.iterdir()}
    assert os.getpid() not in seen
    for process in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(
    ("cores", "processes", "items", "expected"),
    [
        (1, "1", 9, 0),
        (2, "1", 9, 0),
        (3, "1", 9, 2),
        (16, "1", 9, 9),
        (64, "1", 20, 16),
        (16, "4", 9, 3),
        (16, "1", 2, 2),
        (2, "4", 9, 0),
    ],
)
def test_default_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, processes: str, items: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    asked: list[int] = []

    def load(items: object, batch_size: int, *, num_workers: int, **settings: object) -> list[object]:
        asked.append(num_workers)
        return []

    monkeypatch.setattr(loader, "DataLoader", load)
    list(batches(_pairs(tmp_path, [(8, 8)] * items), 1))
    assert asked == [expected]
