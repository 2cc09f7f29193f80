import hashlib
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from afv_metric.images import read_image, sources
from afv_metric.images.sources import class_folders, find_source

NAMES = ["data/cats/b.png", "data/cats/a.png", "data/dogs/old/c.png"]


def encode(value, size=(5, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read(path):
    """Names and red values of all images, read as a user of the source would."""
    pictures = list(find_source(path).read()[1])
    return {picture.name: int(read_image(picture.open())[0, 0, 0, 0]) for picture in pictures}


def write_cifar(root, dataset, monkeypatch, count=70):
    """A small CIFAR in its own layout, with the sums that torchvision checks it against."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3072), np.uint8)
    key = "labels" if dataset is CIFAR10 else "fine_labels"
    contents = {"data": pixels, key: [index % 2 for index in range(count)]}
    sums = {}
    for name, content in (("train", contents), ("test", contents), ("meta", {"names": ["bee", "cat"]})):
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(dataset, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(dataset, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(dataset, "meta", {"filename": "meta", "key": "names", "md5": sums["meta"]})
    return pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2", "images"])
def test_tars_are_read_in_their_order(tmp_path, name):
    path = tmp_path / name
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    write_tar(path, [*((name, encode(index)) for index, name in enumerate(NAMES)), ("data/notes.txt", b"no")], mode)
    assert list(read(path).items()) == [(name, index) for index, name in enumerate(NAMES)]
    assert find_source(path).kind == "tar"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_are_read_in_their_order(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
        archive.mkdir("data") if hasattr(archive, "mkdir") else None
        for index, name in enumerate(NAMES):
            archive.writestr(name, encode(index))
        archive.writestr("__MACOSX/data/cats/._b.png", b"no image")
    assert list(read(tmp_path / "x.zip").items()) == [(name, index) for index, name in enumerate(NAMES)]
    assert find_source(tmp_path / "x.zip").read()[0] == 3


def test_a_tar_whose_last_file_is_a_zip_is_a_tar(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("z.png", encode(9))
    write_tar(tmp_path / "x.tar", [("a.png", encode(1)), ("b.zip", inner.getvalue())])
    assert read(tmp_path / "x.tar") == {"a.png": 1}


def test_nothing_in_an_archive_is_used_as_a_path(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    Image.new("RGB", (5, 5), (200, 0, 0)).save(tmp_path / "secret.png")
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.png"
            archive.addfile(info)
        for name in ("../secret.png", "/secret.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encode(1))
            archive.addfile(info, io.BytesIO(encode(1)))
    monkeypatch.chdir(folder)
    before = sorted(tmp_path.rglob("*"))
    assert list(read(folder / "x.tar").values()) == [1, 1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_that_is_cut_short_is_refused(tmp_path, mode):
    path = tmp_path / "x.tar"
    noise = np.random.default_rng(0).bytes(40_000)
    write_tar(path, [("a.png", encode(1)), ("b.png", noise)], mode)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        list(find_source(path).read()[1])


def test_a_zip_without_its_end_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", encode(1))
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="neither a folder nor a tar or zip archive"):
        find_source(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(whole[-60:])
    with pytest.raises(ValueError, match="damaged or cut short"):
        find_source(tmp_path / "x.zip").read()


def test_huge_members_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_MEMBER", 1000)
    write_tar(tmp_path / "x.tar", [("bomb.png", bytes(1001)), ("a.png", encode(1))])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("bomb.png", bytes(1001))
        archive.writestr("a.png", encode(1))
    for name in ("x.tar", "x.zip"):
        bomb, good = find_source(tmp_path / name).read()[1]
        with pytest.raises(ValueError, match="1001 bytes, more than the 1000"):
            bomb.open()
        assert read_image(good.open()).shape == (1, 3, 4, 5)


def test_folders_are_read_in_sorted_order(tmp_path):
    for index, name in enumerate(["b/2.png", "b/10.png", "b-c/1.PNG", "a.png", ".hidden/x.png", ".x.png", "notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(index))
    (tmp_path / "folder.png").mkdir()
    assert list(read(tmp_path).items()) == [("a.png", 3), ("b/10.png", 1), ("b/2.png", 0), ("b-c/1.PNG", 2)]
    assert find_source(tmp_path).kind == "folder"


def test_links_in_folders_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(encode(7))
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "cats")
    os.symlink(tmp_path / "images", tmp_path / "elsewhere" / "circle")
    assert read(tmp_path / "images") == {"cats/a.png": 7}


def test_the_state_tells_changes(tmp_path):
    image = tmp_path / "a" / "x.png"
    image.parent.mkdir()
    image.write_bytes(encode(1))
    os.utime(image, (1, 1))
    states = [find_source(tmp_path / "a").state()]
    os.utime(image, (2, 2))
    states.append(find_source(tmp_path / "a").state())
    os.utime(image, (1, 1))
    assert find_source(tmp_path / "a").state() == states[0]
    image.rename(image.with_name("y.png"))
    states.append(find_source(tmp_path / "a").state())
    image.parent.joinpath("y.png").write_bytes(encode(1) + b"!")
    os.utime(image.with_name("y.png"), (1, 1))
    states.append(find_source(tmp_path / "a").state())
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "z.png")
    states.append(find_source(tmp_path / "a").state())
    assert len(set(states)) == len(states)


def test_classes_are_those_of_torchvision(tmp_path):
    for name in ("dogs/1.png", "cats/2.png", "cats/1.png", "owls/deep/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(1))
    theirs = ImageFolder(str(tmp_path))
    names = list(read(tmp_path))
    folders = class_folders(names)
    assert sorted(set(folders)) == theirs.classes
    assert [str(tmp_path / name) for name in names] == [path for path, _ in theirs.samples]
    assert [theirs.classes.index(folder) for folder in folders] == theirs.targets


@pytest.mark.parametrize("names", [[], ["a.png", "b.png"], ["x/a.png", "x/b.png"], ["x/a.png", "x/y/b.png"]])
def test_images_beside_folders_or_in_one_folder_have_no_classes(names):
    assert class_folders(names) is None


@pytest.mark.parametrize("dataset", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path, monkeypatch, dataset, inside):
    pixels = write_cifar(tmp_path, dataset, monkeypatch)
    source = find_source(tmp_path / dataset.base_folder if inside else tmp_path)
    assert source.kind == dataset.__name__
    number, pictures = source.read()
    pictures = list(pictures)
    assert number == len(pictures) == 70
    assert [picture.name for picture in pictures[:3]] == ["bee/00000", "cat/00001", "bee/00002"]
    assert all(np.array_equal(picture.open(), expected) for picture, expected in zip(pictures, pixels, strict=True))


def test_a_damaged_cifar_is_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path, CIFAR10, monkeypatch)
    (tmp_path / CIFAR10.base_folder / "train").write_bytes(pickle.dumps("else"))
    with pytest.raises(ValueError, match="not complete, or damaged"):
        find_source(tmp_path).read()


def test_of_two_cifars_one_must_be_named(tmp_path):
    for dataset in (CIFAR10, CIFAR100):
        (tmp_path / dataset.base_folder).mkdir()
    with pytest.raises(ValueError, match="give the paths of those wanted"):
        find_source(tmp_path)


def test_imagenet(tmp_path):
    for name in ("train/n02/a.JPEG", "train/n01/b.JPEG", "val/n01/c.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(1))
    assert find_source(tmp_path).kind == "folder"
    (tmp_path / "meta.bin").touch()
    source = find_source(tmp_path)
    assert source.kind == "ImageNet"
    number, pictures = source.read()
    assert number == 2
    assert [picture.name for picture in pictures] == ["n01/b.JPEG", "n02/a.JPEG"]


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or archive"):
        find_source(tmp_path / "nowhere")
    (tmp_path / "one.png").write_bytes(encode(1))
    with pytest.raises(ValueError, match="neither a folder nor a tar or zip"):
        find_source(tmp_path / "one.png")
