"""Files that commands write."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afv_metric.cli.outputs import csv_rows, kept_rows, try_output

HEADER = ("file", "distance")


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    for path in (tmp_path / "old.csv", tmp_path / "new.csv", tmp_path / "deep" / "er" / "new.csv", Path(os.devnull)):
        try_output(path, "--csv")
    try_output(None, "--csv")
    assert [path.name for path in tmp_path.rglob("*")] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder; give the name of a file in it"),
        ("file/out.csv", "cannot be written: .*file is no folder"),
        ("new/" + "x" * 240, "cannot be written: File name too long"),
    ],
)
def test_what_cannot_be_written_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=message) as raised:
        try_output(tmp_path / name, "--csv")
    assert str(raised.value).startswith(f"--csv {tmp_path / name} ")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_what_is_read_or_written_as_well_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("table.csv")
    for other in (tmp_path / "table.csv", tmp_path / "link", tmp_path / "sub" / ".." / "table.csv"):
        with pytest.raises(ValueError, match=r"--csv .*table\.csv would replace what is read or written as well"):
            try_output(tmp_path / "table.csv", "--csv", [tmp_path, other])
    for _ in range(2):
        try_output(Path(os.devnull), "--csv", [Path(os.devnull)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_file_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "out.csv").touch(mode=0o400)
    with pytest.raises(OSError, match="Permission denied"):
        try_output(tmp_path / "out.csv", "--csv")


def test_rows_are_in_the_file_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.csv"
    path.parent.mkdir()
    path.write_text("old")
    with csv_rows(path, HEADER) as write:
        assert path.read_text() == "file,distance\n"
        assert write([("a,b", "1"), ("c", "2")])
        assert path.read_text() == 'file,distance\n"a,b",1\nc,2\n'
        refused = pytest.raises(BlockingIOError, match=r"out\.csv is being written")
        with ThreadPoolExecutor(1) as other, refused:
            other.submit(csv_rows(path, HEADER).__enter__).result()
    assert [path.name for path in path.parent.iterdir()] == ["out.csv"]


def test_the_folder_of_a_table_is_made(tmp_path: Path) -> None:
    with csv_rows(tmp_path / "new" / "er" / "out.csv", HEADER):
        pass
    assert (tmp_path / "new" / "er" / "out.csv").exists()


@pytest.mark.parametrize("name", ["plain", "a,b", 'a"b', "a\nb", "a\r\nb", "ä"])
def test_a_cut_table_is_kept_up_to_its_last_whole_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    rows = [[name, "1"], [f"{name} {name}", "0.5"]]
    sizes = [0]
    with csv_rows(path, HEADER) as write:
        for written in ([], rows[:1], rows[1:]):
            write(written)
            sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        number = max(index for index, size in enumerate(sizes) if size <= length)
        kept = {name: [float(value)] for name, value in rows[: max(number - 1, 0)]}
        assert kept_rows(path, HEADER) == (kept, sizes[number])
        with csv_rows(path, HEADER, sizes[number]) as write:
            write(rows[max(number - 1, 0) :])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["name,value\n", "file,distance,more\n", "file,distance\na\n", "some text\n"])
def test_another_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text(text)
    with pytest.raises(ValueError, match="is not a table that this command has begun"):
        kept_rows(tmp_path / "out.csv", HEADER)
    assert kept_rows(tmp_path / "none.csv", HEADER) == ({}, 0)
