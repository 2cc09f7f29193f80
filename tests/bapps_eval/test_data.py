"""Reading sets: what is found, that nothing is skipped in silence, and how images come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from judged_sets import save_archive, save_family, save_grey, save_pairs, save_root
from PIL import Image
from torchvision import transforms

from bapps_eval import data
from bapps_eval.data import (
    default_root,
    distinguish,
    read_image_source,
    read_pairs,
    read_root,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """See :func:`save_root`."""
    return save_root(tmp_path / "bapps")


def test_root_families_are_discovered(root: Path) -> None:
    sets = read_root(root)
    assert [judged.name for judged in sets] == ["2afc/traditional", "2afc/cnn", "jnd/cnn"]
    assert [judged.kind for judged in sets] == ["triplets", "triplets", "same"]
    assert [judged.measure for judged in sets] == ["2AFC", "2AFC", "JND mAP"]
    assert sets[1].judged.tolist() == [0.75, 0.25]
    assert sets[2].judged.tolist() == [1, 0, 1, 0]
    family = root / "2afc/val/cnn"
    assert sets[1].images[1] == (
        family / "ref/000001.png",
        family / "p0/000001.png",
        family / "p1/000001.png",
    )


def test_root_split(root: Path) -> None:
    save_family(root / "2afc/train/mix", [((1, 2, 3), 0.5)])
    assert [judged.name for judged in read_root(root, "train")] == ["2afc/mix"]


def test_root_without_families(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no folder 2afc/val/<family> or jnd/val/<family>$"):
        read_root(tmp_path)


def test_families_are_in_the_order_of_bapps(tmp_path: Path) -> None:
    for family in ("zebra", "frameinterp", "color", "apple", "superres", "cnn", "deblur", "traditional"):
        save_family(tmp_path / "2afc/val" / family, [((1, 2, 3), 0.5)])
    expected = ["traditional", "cnn", "superres", "deblur", "color", "frameinterp", "apple", "zebra"]
    assert [judged.name for judged in read_root(tmp_path)] == [f"2afc/{family}" for family in expected]


def test_tasks_and_families_can_be_chosen(root: Path) -> None:
    assert [judged.name for judged in read_root(root, tasks=["jnd"])] == ["jnd/cnn"]
    assert [judged.name for judged in read_root(root, tasks=["jnd", "2afc"], families=["cnn"])] == [
        "2afc/cnn",
        "jnd/cnn",
    ]
    assert [judged.name for judged in read_root(root, families=["traditional"])] == ["2afc/traditional"]


def test_what_is_not_there_cannot_be_chosen(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bapps has no folder 2afc/val/superres or jnd/val/superres$"):
        read_root(root, families=["cnn", "superres"])
    with pytest.raises(FileNotFoundError, match="bapps has no folder jnd/train/<family>"):
        read_root(root, "train", tasks=["jnd"])


def test_families_that_are_not_chosen_may_be_broken(root: Path) -> None:
    (root / "2afc/val/traditional/p0/000000.png").unlink()
    assert [judged.name for judged in read_root(root, families=["cnn"])] == ["2afc/cnn", "jnd/cnn"]


def test_partial_families_are_named(tmp_path: Path) -> None:
    items = [((1, 2, 3), 0.5), ((1, 2, 3), 0.5)]
    for family in ("2afc/val/cnn", "2afc/val/mine", "2afc/train/cnn"):
        save_family(tmp_path / family, items)
    cnn, mine = read_root(tmp_path)
    assert (cnn.partial, mine.partial) == ("2 of 4,720 items", "")
    assert read_root(tmp_path, "train")[0].partial == ""
    assert cnn.limited(1).partial == "1 of 4,720 items"
    assert mine.limited(1).partial == "1 of 2 items"
    assert mine.limited(2).partial == ""


def test_whole_families_are_not_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [sum(items.values()) for items in data.PUBLISHED.values()] == [36_344, 9_600]
    monkeypatch.setitem(data.PUBLISHED["2afc"], "cnn", 2)
    save_family(tmp_path / "2afc/val/cnn", [((1, 2, 3), 0.5), ((1, 2, 3), 0.5)])
    assert read_root(tmp_path)[0].partial == ""


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BAPPS_ROOT", "/data/bapps")
    assert default_root() == Path("/data/bapps")
    monkeypatch.delenv("BAPPS_ROOT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "afv_metric/bapps"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache/afv_metric/bapps"

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ValueError, match=r"no home folder .*: set BAPPS_ROOT"):
        default_root()


@pytest.mark.parametrize("lost", ["ref/000001.png", "p0/000001.png", "p1/000001.png", "judge/000001.npy"])
def test_root_names_what_is_missing(root: Path, lost: str) -> None:
    (root / "2afc/val/cnn" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"missing: .*2afc/val/cnn/{lost[:-4]}"):
        read_root(root)


def test_root_names_a_missing_folder(root: Path) -> None:
    (root / "jnd/val/cnn/same").rename(root / "jnd/val/cnn/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*jnd/val/cnn/same"):
        read_root(root)


def test_foreign_files_are_passed_over_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = [judged.images for judged in read_root(root)]
    assert caplog.text == ""
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (root / "2afc/val/cnn/p0" / name).touch()
        (root / "2afc/val/cnn/judge" / name).touch()
    for folder in (".cache", "@eaDir", "__MACOSX", "cnn/@eaDir", "cnn/p1/@eaDir"):
        (root / "2afc/val" / folder).mkdir()
        (root / "2afc/val" / folder / "000000.png").touch()
    (root / "2afc/val/Thumbs.db").touch()
    assert [judged.images for judged in read_root(root)] == expected
    assert "bapps: 12 foreign files or folders passed over, first " in caplog.text
    assert len(caplog.records) == 1


def test_root_refuses_two_images_of_one_item(root: Path) -> None:
    save_grey(root / "2afc/val/cnn/p1/000000.bmp", 0)
    with pytest.raises(ValueError, match=r"000000.bmp and 000000.png are two files for one item"):
        read_root(root)


@pytest.mark.parametrize(
    "content",
    [np.zeros((0,)), np.array([1.5]), np.array([-0.1]), np.array([np.nan]), np.array([0.1, 0.2]), np.array(["a"])],
)
def test_root_names_a_bad_judgement(root: Path, content: np.ndarray) -> None:
    np.save(root / "2afc/val/cnn/judge/000001.npy", content)
    with pytest.raises(ValueError, match=r"judge/000001.npy"):
        read_root(root)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_judgements_are_arrays_of_one_element(root: Path, shape: tuple[int, ...]) -> None:
    np.save(root / "2afc/val/traditional/judge/000000.npy", np.full(shape, 0.6))
    assert read_root(root)[0].judged.tolist() == [0.6]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{"])
def test_root_names_a_broken_judgement(root: Path, content: bytes) -> None:
    (root / "2afc/val/cnn/judge/000001.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read one number from .*judge/000001.npy"):
        read_root(root)


def test_judgements_are_never_unpickled(root: Path) -> None:
    np.save(root / "2afc/val/cnn/judge/000001.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot read one number from .*judge/000001.npy: it is no .npy"):
        read_root(root)


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope is not there$"):
        read_root(tmp_path / "nope")


def test_archives_must_be_unpacked(root: Path, tmp_path: Path) -> None:
    archive = save_archive(tmp_path / "packed/twoafc_val.tar.gz", root / "2afc")
    with pytest.raises(FileNotFoundError, match=r"twoafc_val.tar.gz is a file, not a folder: unpack it"):
        read_root(archive)
    with pytest.raises(FileNotFoundError, match=r"packed has no folder 2afc/val/.*; unpack twoafc_val.tar.gz in it"):
        read_root(archive.parent)


def test_images_of_bapps_are_resized_as_the_official_scripts_do(tmp_path: Path, rng: np.random.Generator) -> None:
    resize = transforms.Compose([transforms.Resize(64), transforms.PILToTensor()])
    for height, width in ((256, 256), (100, 171), (131, 64), (64, 64), (48, 40)):
        path = tmp_path / f"{height}.png"
        Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
        with Image.open(path) as image:
            expected = resize(image.convert("RGB"))
        assert torch.equal(read_image_source(path, 64)[0], expected)


def test_only_families_of_bapps_are_resized(root: Path) -> None:
    save_family(root / "2afc/val/mine", [((1, 2, 3), 0.5)])
    assert [judged.side for judged in read_root(root)] == [64, 64, None, 64]


@pytest.mark.parametrize("kept", [0, 10, 45])
def test_broken_images_are_named(tmp_path: Path, kept: int) -> None:
    path = save_grey(tmp_path / "grey.png", 7)
    whole = path.read_bytes()
    assert len(whole) > kept
    path.write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"cannot read the image .*grey.png"):
        read_image_source(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*grey.png: .*No such file"):
        read_image_source(path)


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


def test_pairs_name_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"reference,distorted,distance\n\xff\xfe,b,1\n")
    with pytest.raises(ValueError, match=r"list\.csv is no CSV list in UTF-8"):
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
    assert [stratum.tolist() for stratum in judged.strata] == [[0, 1, 2, 3]]  # groups of two say little
    assert judged.limited(5) is judged


def test_limited_to_groups_that_are_large_enough(tmp_path: Path) -> None:
    judged = read_pairs(save_pairs(tmp_path / "list.csv", range(40), range(40), ["a"] * 20 + ["b"] * 20))
    assert judged.limited(20).measure == "SROCC in groups"
    assert judged.limited(18).measure == "SROCC"
    with pytest.raises(ValueError, match="at least two pairs"):
        judged.limited(1)


def test_distinguish(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (read_pairs(save_pairs(tmp_path / f / "blur.csv", [1, 2], [1, 2])) for f in "ab")
    third = read_pairs(save_pairs(tmp_path / "noise.csv", [1, 2], [1, 2]))
    names = [judged.name for judged in distinguish([first, second, third])]
    assert names == [f"{tmp_path}/a/blur.csv", f"{tmp_path}/b/blur.csv", "noise"]
    with pytest.raises(ValueError, match=r"given twice: .*a/blur.csv"):
        distinguish([first, first])
