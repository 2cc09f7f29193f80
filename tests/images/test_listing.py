import os
from collections import Counter

import pytest

from afv_metric.images.listing import image_suffixes, list_images


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_listed_and_the_rest_is_counted(tmp_path):
    touch(tmp_path, "b.JPG", "a/x.jfif", "a-b/y.gif", "a.png", "deep/er/z.nii.gz", "v.npy", "s.dcm")
    touch(tmp_path, "a.txt", "c.json", "d.txt", "noend", ".DS_Store", ".git/x.png", "Thumbs.db")
    touch(tmp_path, "@eaDir/a.png", "__MACOSX/._a.png")
    found = list_images(tmp_path)
    assert list(found.files) == ["a/x.jfif", "a-b/y.gif", "a.png", "b.JPG", "deep/er/z.nii.gz", "s.dcm", "v.npy"]
    assert found.files["a.png"] == str(tmp_path / "a.png")
    assert found.passed_over == Counter({".txt": 2, ".json": 1, "without suffix": 1, "hidden": 2, "system": 3})
    assert found.summary().startswith(f"{tmp_path}: passed over 9 other files (3 system, 2 ")


def test_a_folder_of_images_alone_needs_no_word(tmp_path):
    touch(tmp_path, "a.png")
    assert list_images(tmp_path).summary() == ""


def test_links_are_followed_once_round(tmp_path):
    touch(tmp_path, "store/1.png", "store/2.png")
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        os.symlink(tmp_path / "store", tmp_path / "a" / name)
    os.symlink(tmp_path / "store" / "1.png", tmp_path / "a" / "file.png")
    os.symlink(tmp_path / "a", tmp_path / "store" / "back")
    os.symlink("self", tmp_path / "a" / "self")
    os.symlink("nowhere", tmp_path / "a" / "dead.png")
    found = list_images(tmp_path / "a")
    assert list(found.files) == ["dead.png", "file.png", "one/1.png", "one/2.png", "two/1.png", "two/2.png"]
    assert found.passed_over == Counter({"circular link": 2})
    assert found.dead_links == ("dead.png", "self")
    assert "2 dead links (dead.png, self)" in found.summary()
    os.symlink(tmp_path / "a", tmp_path / "link")
    assert list(list_images(tmp_path / "link").files) == list(found.files)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert not list_images(tmp_path).files


def test_shards_are_recognised(tmp_path):
    touch(tmp_path, "000.tar", "001.tar", "readme.md")
    assert "holds no image, but 2 archives: train on them by their own paths" in list_images(tmp_path).lack()


def test_no_folder(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_images(tmp_path / "b")
    with pytest.raises(NotADirectoryError, match="is a file; a folder of images was expected"):
        list_images(tmp_path / "a.png")


def test_suffixes():
    assert {".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".tif", ".webp"} <= set(image_suffixes())
    assert not {".eps", ".hdf", ".mpg", ".pdf", ".txt"} & set(image_suffixes())
