import os

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
    files, passed_over = list_images(tmp_path)
    assert list(files) == ["a/x.jfif", "a-b/y.gif", "a.png", "b.JPG", "deep/er/z.nii.gz", "s.dcm", "v.npy"]
    assert files["a.png"] == str(tmp_path / "a.png")
    said = "(3 system, 2 hidden, 2 .txt, 1 .json, 1 without suffix)"
    assert passed_over.startswith(f"{tmp_path}: passed over 9 other files (3 system, 2 ")
    assert sorted(passed_over.partition("(")[2][:-1].split(", ")) == sorted(said[1:-1].split(", "))


def test_a_folder_of_images_alone_needs_no_word(tmp_path):
    touch(tmp_path, "a.png")
    assert list_images(tmp_path)[1] == ""


def test_links_are_followed_once_round(tmp_path):
    touch(tmp_path, "store/1.png", "store/2.png")
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        os.symlink(tmp_path / "store", tmp_path / "a" / name)
    os.symlink(tmp_path / "store" / "1.png", tmp_path / "a" / "file.png")
    os.symlink(tmp_path / "a", tmp_path / "store" / "back")
    os.symlink("self", tmp_path / "a" / "self")
    os.symlink("nowhere", tmp_path / "a" / "dead.png")
    files, passed_over = list_images(tmp_path / "a")
    assert list(files) == ["dead.png", "file.png", "one/1.png", "one/2.png", "two/1.png", "two/2.png"]
    assert passed_over.endswith(": passed over 2 other files (2 circular link), 2 dead links (dead.png, self)")
    os.symlink(tmp_path / "a", tmp_path / "link")
    assert list(list_images(tmp_path / "link")[0]) == list(files)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(
        ValueError, match=r"holds no image \(passed over 1 other file \(1 special\)\): expected files such"
    ):
        list_images(tmp_path)


def test_shards_are_recognised(tmp_path):
    touch(tmp_path, "000.tar", "001.tar", "readme.md")
    with pytest.raises(ValueError, match="holds no image, but 2 archives: train on them by their own paths"):
        list_images(tmp_path)


def test_no_folder(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_images(tmp_path / "b")
    with pytest.raises(NotADirectoryError, match="is a file; a folder of images was expected"):
        list_images(tmp_path / "a.png")


def test_suffixes():
    assert {
        ".avif",
        ".bmp",
        ".dcm",
        ".gif",
        ".heic",
        ".jfif",
        ".jp2",
        ".nii.gz",
        ".npy",
        ".pgm",
        ".tif",
        ".webp",
    } <= set(image_suffixes())
    assert not {".eps", ".hdf", ".mpg", ".pdf", ".txt"} & set(image_suffixes())
