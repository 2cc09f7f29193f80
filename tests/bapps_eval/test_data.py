"""Reading sets: what is found, how it is batched, and that nothing is skipped in silence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_sets import save_family, save_grey, save_pairs, save_root

from afv_metric.images import read_image
from bapps_eval import data
from bapps_eval.data import PairSet, SameSet, TripletSet, batches, distinguish, read_pairs, read_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """See :func:`save_root`."""
    return save_root(tmp_path / "bapps")


def test_root_families_are_discovered(root: Path) -> None:
    sets = read_root(root)
    assert [judged.name for judged in sets] == ["2afc/cnn", "2afc/traditional", "jnd/cnn"]
    assert [type(judged) for judged in sets] == [TripletSet, TripletSet, SameSet]
    assert [judged.measure for judged in sets] == ["2AFC", "2AFC", "JND mAP"]
    assert sets[0].judged.tolist() == [0.75, 0.25]
    assert sets[2].judged.tolist() == [1, 0, 1, 0]
    family = root / "2afc/val/cnn"
    assert sets[0].images[1] == (
        family / "ref/000001.png",
        family / "p0/000001.png",
        family / "p1/000001.png",
    )


def test_root_split(root: Path) -> None:
    save_family(root / "2afc/train/mix", [((1, 2, 3), 0.5)])
    assert [judged.name for judged in read_root(root, "train")] == ["2afc/mix"]


def test_root_without_families(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing has no folder 2afc/val/<family> or jnd/val/<family>"):
        read_root(tmp_path / "nothing")


@pytest.mark.parametrize("lost", ["ref/000001.png", "p0/000001.png", "p1/000001.png", "judge/000001.npy"])
def test_root_names_what_is_missing(root: Path, lost: str) -> None:
    (root / "2afc/val/cnn" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"missing: .*2afc/val/cnn/{lost[:-4]}"):
        read_root(root)


def test_root_names_a_missing_folder(root: Path) -> None:
    (root / "jnd/val/cnn/same").rename(root / "jnd/val/cnn/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*jnd/val/cnn/same"):
        read_root(root)


def test_root_ignores_hidden_files_only(root: Path) -> None:
    (root / "2afc/val/cnn/p0/.DS_Store").touch()
    (root / "2afc/val/.cache").mkdir()
    assert len(read_root(root)) == 3
    (root / "2afc/val/cnn/p0/notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="notes"):
        read_root(root)


def test_root_refuses_two_images_of_one_item(root: Path) -> None:
    save_grey(root / "2afc/val/cnn/p1/000000.bmp", 0)
    with pytest.raises(ValueError, match=r"000000.bmp and 000000.png are two files for one item"):
        read_root(root)


@pytest.mark.parametrize(
    "content", [np.array([1.5]), np.array([-0.1]), np.array([np.nan]), np.array([0.1, 0.2]), np.array(["a"])]
)
def test_root_names_a_bad_judgement(root: Path, content: np.ndarray) -> None:
    np.save(root / "2afc/val/cnn/judge/000001.npy", content)
    with pytest.raises(ValueError, match=r"judge/000001.npy"):
        read_root(root)


def test_root_names_a_broken_judgement(root: Path) -> None:
    (root / "2afc/val/cnn/judge/000001.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read one number from .*judge/000001.npy"):
        read_root(root)


def test_pairs_are_relative_to_their_list(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "noise.csv", [10, 20], [1.5, -2]))
    assert judged.name == "noise"
    assert judged.images == [
        (tmp_path / "black.png", tmp_path / "grey10.png"),
        (tmp_path / "black.png", tmp_path / "grey20.png"),
    ]
    assert judged.judged.tolist() == [1.5, -2]


def test_pairs_in_scores_csv_are_called_after_the_folder(tmp_path: Path) -> None:
    (tmp_path / "blur").mkdir()
    assert read_pairs(save_pairs(tmp_path / "blur/scores.csv", [10, 20], [1, 2])).name == "blur"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((10, 12), [10, 12]), ((9, 13), [22]), ((22,), [22])],
    ids=["large", "small", "one"],
)
def test_pairs_are_grouped_when_every_group_is_large(
    tmp_path: Path, sizes: tuple[int, ...], expected: list[int]
) -> None:
    groups = [f"scene{group}" for group, size in enumerate(sizes) for _ in range(size)]
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(22), range(22), groups))
    assert [len(stratum) for stratum in judged.strata] == expected
    assert judged.measure == ("SROCC in groups" if len(expected) > 1 else "SROCC")
    assert sorted(np.concatenate(judged.strata)) == list(range(22))


def test_pairs_need_not_be_sorted_by_group(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(20), range(20), ["b", "a"] * 10))
    assert [stratum.tolist() for stratum in judged.strata] == [list(range(1, 20, 2)), list(range(0, 20, 2))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference,distorted,score\na.png,a.png,1\n", "needs the columns reference, distorted, distance"),
        ("", "needs the columns"),
        ("reference,distorted,distance\n", "lists no pairs"),
        (
            "reference,distorted,distance\na.png,a.png,far\n",
            "line 2: the distance should be a number, not 'far'",
        ),
        (
            "reference,distorted,distance\na.png,a.png,nan\n",
            "line 2: the distance should be a number, not 'nan'",
        ),
        ("reference,distorted,distance\na.png,a.png,1\na.png,a.png\n", "line 3: .* must all be given"),
        ("reference,distorted,distance,group\na.png,a.png,1,\n", "line 2: .*group must all be given"),
        ("reference,distorted,distance\na.png,a.png,1\n", "at least two pairs"),
    ],
)
def test_pairs_name_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    save_grey(tmp_path / "a.png", 0)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"list\.csv.*{message}"):
        read_pairs(tmp_path / "list.csv")


def test_pairs_name_missing_images(tmp_path: Path) -> None:
    file = save_pairs(tmp_path / "list.csv", range(30), range(30))
    for level in range(12):
        (tmp_path / f"grey{level}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: .*grey0.png, .*grey9.png and 2 more$"):
        read_pairs(file)


def test_limited_is_evenly_spread(tmp_path: Path) -> None:
    groups = ["a"] * 10 + ["b"] * 10
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(20), range(20), groups)).limited(4)
    assert judged.judged.tolist() == [0, 5, 10, 15]
    assert [paths[1].name for paths in judged.images] == [
        "grey0.png",
        "grey5.png",
        "grey10.png",
        "grey15.png",
    ]
    assert [stratum.tolist() for stratum in judged.strata] == [[0, 1], [2, 3]]
    assert judged.limited(5) is judged


def test_limited_to_groups_of_one(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(20), range(20), ["a"] * 10 + ["b"] * 10))
    with pytest.raises(ValueError, match="at least two pairs"):
        judged.limited(2)


def test_distinguish(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (read_pairs(save_pairs(tmp_path / f / "blur.csv", [1, 2], [1, 2])) for f in "ab")
    third = read_pairs(save_pairs(tmp_path / "noise.csv", [1, 2], [1, 2]))
    names = [judged.name for judged in distinguish([first, second, third])]
    assert names == [f"{tmp_path}/a/blur.csv", f"{tmp_path}/b/blur.csv", "noise"]
    with pytest.raises(ValueError, match=r"given twice: .*a/blur.csv"):
        distinguish([first, first])


def _greys(tmp_path: Path, sizes: list[tuple[int, int]]) -> PairSet:
    images = []
    for index, (height, width) in enumerate(sizes):
        pair = (tmp_path / f"{index}a.png", tmp_path / f"{index}b.png")
        save_grey(pair[0], index, height, width)
        save_grey(pair[1], 255 - index, height, width)
        images.append(pair)
    rows = np.arange(len(sizes))
    return PairSet("greys", tmp_path, images, rows.astype(float), np.zeros_like(rows))


def test_batches_hold_one_size_and_every_item_once(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 12), (12, 8), (8, 12), (8, 8), (8, 12), (8, 12)]
    judged = _greys(tmp_path, sizes)
    seen = []
    for rows, columns in batches(judged, 3):
        assert len(rows) <= 3
        for index, (row, first, second) in enumerate(zip(rows, *columns, strict=True)):
            assert first.shape == second.shape == (3, *sizes[row]), index
            assert first.unique().tolist() == pytest.approx([row / 127.5 - 1])
            assert second.unique().tolist() == pytest.approx([(255 - row) / 127.5 - 1])
            seen.append(row)
    assert sorted(seen) == list(range(7))


def test_batches_span_exactly_minus_one_to_one(tmp_path: Path) -> None:
    judged = _greys(tmp_path, [(8, 8), (8, 8)]).limited(2)
    (_, (first, second)) = next(batches(judged, 2))
    assert first.dtype == torch.float32
    assert torch.equal(first[0], -torch.ones(3, 8, 8))
    assert torch.equal(second[0], torch.ones(3, 8, 8))


def test_batches_decode_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(9), range(9)))
    reads: Counter[str] = Counter()

    def counting(path: Path) -> torch.Tensor:
        reads[path.name] += 1
        return read_image(path)

    monkeypatch.setattr(data, "read_image", counting)
    assert sum(len(rows) for rows, _ in batches(judged, 2)) == 9
    assert reads == Counter(["black.png", *(f"grey{level}.png" for level in range(9))])


def test_batches_name_images_of_two_sizes(tmp_path: Path) -> None:
    judged = _greys(tmp_path, [(8, 8), (8, 8)])
    save_grey(tmp_path / "1b.png", 0, 8, 9)
    with pytest.raises(ValueError, match=r"one size: .*1a.png, .*1b.png"):
        list(batches(judged, 2))


@pytest.mark.parametrize("name", ["1a.png", "1b.png"])
@pytest.mark.parametrize("kept", [0, 10, 45])
def test_batches_name_broken_images(tmp_path: Path, name: str, kept: int) -> None:
    judged = _greys(tmp_path, [(8, 8), (8, 8)])
    whole = (tmp_path / name).read_bytes()
    assert len(whole) > kept
    (tmp_path / name).write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}"):
        list(batches(judged, 2))
