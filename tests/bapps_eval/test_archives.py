"""Archives are read whole or not at all, and nothing in them is trusted."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from judged_sets import hostile_members, save_archive, save_members, save_root

from bapps_eval.archives import ArchiveMember, contents_of, iterate_files, read_archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The sets of :func:`save_root`."""
    return save_archive(tmp_path / "bapps.tar.gz", save_root(tmp_path / "bapps"), "./")


def _everything(name: PurePosixPath) -> bool:
    return True


def test_files_are_named_without_what_tar_puts_before(archive: Path) -> None:
    folder = archive.parent / "bapps"
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    found = read_archive(archive, _everything)
    assert {name: member.content for name, member in found.items()} == expected
    assert len(found) == 24
    assert str(found["jnd/val/cnn/p0/000000.png"]) == f"{archive}:jnd/val/cnn/p0/000000.png"


def test_only_what_is_wanted_is_kept(archive: Path) -> None:
    found = read_archive(archive, lambda name: "traditional" in name.parts)
    assert sorted(found) == [
        f"2afc/val/traditional/{file}"
        for file in ("judge/000000.npy", "p0/000000.png", "p1/000000.png", "ref/000000.png")
    ]


@pytest.mark.parametrize("kind", hostile_members())
def test_hostile_archives_are_refused(tmp_path: Path, kind: str) -> None:
    path = save_members(tmp_path / "hostile.tar.gz", [(hostile_members()[kind], b"")])
    with pytest.raises(
        ValueError, match=r"hostile.tar.gz is refused: .*000009.png' (leads outside|is a (link|device))"
    ):
        read_archive(path, _everything)
    with pytest.raises(ValueError, match="is refused"):
        read_archive(path, lambda name: False)


def test_holes_and_giants_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = tarfile.TarInfo("val/cnn/ref/0.png")
    member.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "9",
    }
    with pytest.raises(ValueError, match="device or other special file"):
        read_archive(save_members(tmp_path / "sparse.tar.gz", [(member, b"x")]), _everything)
    monkeypatch.setattr("bapps_eval.archives._LARGEST_FILE", 2)
    with pytest.raises(ValueError, match="unpacks to 3 bytes"):
        read_archive(save_members(tmp_path / "giant.tar.gz", [(tarfile.TarInfo("a.png"), b"123")]), _everything)


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(name), b"x") for name in ("a/b.png", "./a/b.png")]
    with pytest.raises(ValueError, match=r"twice.tar.gz is refused: it holds a/b.png twice"):
        read_archive(save_members(tmp_path / "twice.tar.gz", members), _everything)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_truncated_archives_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = save_archive(tmp_path / f"cut{suffix}", save_root(tmp_path / "bapps"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * (len(whole) - 1))])
    with pytest.raises(ValueError, match=rf"cut{suffix} is truncated, damaged or no archive"):
        read_archive(path, _everything)


def test_an_archive_is_truncated_even_if_nothing_wanted_is_lost(tmp_path: Path) -> None:
    path = save_members(tmp_path / "cut.tar.gz", [(tarfile.TarInfo("a.png"), b"x")])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        list(iterate_files(path, _everything))


@pytest.mark.parametrize("content", [b"not an archive at all", b"\x1f\x8b but no more than that", b""])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"page.tar.gz is truncated, damaged or no archive"):
        read_archive(tmp_path / "page.tar.gz", _everything)


def test_other_files_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "plain.tar").touch()
    with pytest.raises(ValueError, match=r"plain.tar should be an archive called \*.tar.gz or \*.tgz or \*.tar.xz"):
        read_archive(tmp_path / "plain.tar", _everything)
    with pytest.raises(FileNotFoundError, match="lost.tar.gz"):
        read_archive(tmp_path / "lost.tar.gz", _everything)


def test_contents_come_from_memory_or_from_the_archive(archive: Path) -> None:
    members = list(read_archive(archive, _everything).values())
    forgotten = [ArchiveMember(member.archive, member.name) for member in members]
    assert contents_of(forgotten) == contents_of(members) == {member: member.content for member in members}
    archive.unlink()
    assert len(contents_of(members)) == 24
    with pytest.raises(FileNotFoundError, match="bapps.tar.gz"):
        contents_of(forgotten)


def test_contents_that_are_not_there_are_named(archive: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bapps.tar.gz has no lost.png"):
        contents_of([ArchiveMember(archive, "lost.png"), ArchiveMember(archive, "2afc/val/cnn/p0/000000.png")])


def test_members_are_told_apart_by_name(archive: Path) -> None:
    member = ArchiveMember(archive, "a.png", b"content")
    assert member == ArchiveMember(archive, "a.png")
    assert member != ArchiveMember(archive, "b.png", b"content")
    assert "content" not in repr(member).replace("content=", "")
    assert pickle.loads(pickle.dumps(member)).content == b"content"
