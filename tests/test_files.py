import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afv_metric.files import replacing, replacing_folder


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_survives_a_failure(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_is_no_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit((tmp_path / "pipe").read_text)
        with replacing(tmp_path / "pipe") as temporary:
            temporary.write_text("piped")
        assert reader.result(10) == "piped"
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_nothing_is_thrown_away_if_the_folder_cannot_come_back(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("old")
    rename, done = Path.rename, []

    def only_once(path, target):
        if done:
            raise OSError("no")
        done.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_once)
    with pytest.raises(OSError, match="no"), replacing_folder(tmp_path / "notes") as temporary:
        (temporary / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["old.txt"]


def test_a_folder_comes_back_if_the_new_one_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("old")
    rename = Path.rename

    def fail_for_the_new(path, target):
        if (path / "new.txt").exists():
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no"), replacing_folder(tmp_path / "notes") as temporary:
        (temporary / "new.txt").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["notes", "notes/old.txt"]
