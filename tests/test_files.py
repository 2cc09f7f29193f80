import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afv_metric.files import atomic_update, atomic_write, finish_update, locked


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_survives_a_failure(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_is_no_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit((tmp_path / "pipe").read_text)
        with atomic_write(tmp_path / "pipe") as temporary:
            temporary.write_text("piped")
        assert reader.result(10) == "piped"
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def _files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def _fill(folder, text):
    for name in ("head", "body"):
        (folder / name).write_text(text)


def test_an_update_replaces_its_files_and_no_others(tmp_path):
    place = tmp_path / "place"
    for text in ("old", "new", "new"):
        with atomic_update(place, "head") as temporary:
            _fill(temporary, text)
        (place / "mine").mkdir(exist_ok=True)
        (place / "mine" / "notes").write_text("dear")
    assert _files(tmp_path) == {"place/head": "new", "place/body": "new", "place/mine/notes": "dear"}
    assert (place / "head").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"head": "old", "body": "old"}])
def test_a_failed_update_changes_nothing(tmp_path, error, before):
    place = tmp_path / "place"
    if before:
        place.mkdir()
        _fill(place, "old")

    def update():
        with atomic_update(place, "head") as temporary:
            _fill(temporary, "new")
            raise error

    with pytest.raises(error):
        update()
    assert [path.name for path in tmp_path.iterdir()] == (["place"] if before else [])
    assert not before or _files(place) == before


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("present", [True, False])
def test_an_update_cut_off_between_any_two_renames_is_the_old_or_the_new(tmp_path, monkeypatch, step, present):
    """Every rename up to a step is done, then the process is as good as dead."""
    place, names = tmp_path / "place", {"head", "body"}
    if present:
        place.mkdir()
        _fill(place, "old")
    calls = []

    class Killed(BaseException):
        pass

    def renaming(how):
        def rename(path, target):
            if len(calls) == step:
                raise Killed
            calls.append(path)
            return how(path, target)

        return rename

    monkeypatch.setattr(Path, "rename", renaming(Path.rename))
    monkeypatch.setattr(Path, "replace", renaming(Path.replace))
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # the dead clear nothing away
    with contextlib.suppress(Killed), atomic_update(place, "head") as temporary:
        _fill(temporary, "new")
    monkeypatch.undo()
    finish_update(place, "head")
    found = {name: text for name, text in _files(tmp_path).items() if name.startswith("place/") and "." not in name}
    done = {f"place/{name}": "new" for name in names}
    assert found == done if len(calls) > present else found == {f"place/{name}": "old" for name in names if present}
    with atomic_update(place, "head") as temporary:  # the next one clears up
        _fill(temporary, "newer")
    assert _files(tmp_path) == {f"place/{name}": "newer" for name in names}


def test_a_second_writer_is_refused(tmp_path):
    with locked(tmp_path / "run"), locked(tmp_path / "run"), ThreadPoolExecutor(1) as pool:

        def lock():
            with locked(tmp_path / "run"):
                pass

        with pytest.raises(BlockingIOError, match=r"run is being written by another process"):
            pool.submit(lock).result()
    with locked(tmp_path / "run"):
        assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    assert not list(tmp_path.iterdir())


WRITERS = {
    "locked": locked,
    "atomic_write": atomic_write,
    "atomic_update": lambda place: atomic_update(place, "head"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["new/er/place", "to-nowhere", "to-nowhere/place"])
def test_folders_that_were_made_for_nothing_are_removed(tmp_path, writer, place):
    (tmp_path / "to-nowhere").symlink_to(tmp_path / "far" / "away")

    def fail():
        with WRITERS[writer](tmp_path / place):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["to-nowhere"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["file/place", "file/new/place", "circle", "circle/place"])
def test_what_is_in_the_way_is_named(tmp_path, writer, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    named = f"{place.partition('/')[0]} is no folder" if "/" in place else "circle"
    with pytest.raises(OSError, match=named), WRITERS[writer](tmp_path / place):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_the_lock_of_a_killed_process_does_no_harm(tmp_path):
    code = f"""
import os, signal
from afv_metric.files import locked
with locked({str(tmp_path / "run")!r}):
    print("locked", flush=True)
    signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(BlockingIOError), locked(tmp_path / "run"):
        pass
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_the_lock_goes_inside_where_the_parent_cannot_be_written(tmp_path):
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o500)
    with locked(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    tmp_path.chmod(0o700)
