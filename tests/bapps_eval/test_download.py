"""Downloads from a local server that drops connections, cuts bodies short, ignores ranges and serves hostile tars."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from judged_sets import hostile_members, save_archive, save_members, save_root

from bapps_eval import download as downloading
from bapps_eval.data import read_root
from bapps_eval.download import download

NAME = "twoafc_val.tar.gz"


class Server(ThreadingHTTPServer):
    """Serves files that live in memory.

    Attributes:
        files: By path.
        requests: Path and ``Range`` of every request.
        ranges: Whether it honours ``Range``.
        most: Most bytes of a body that it sends before it hangs up, for each of the next answers.
        codes: Status of each of the next answers, ahead of everything else.
        lengths: Whether it tells how long a body is.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.most: list[int] = []
        self.codes: list[int] = []
        self.lengths = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dataset/"

    def serve(self, archive: Path) -> bytes:
        self.files[f"/dataset/{archive.name}"] = archive.read_bytes()
        return archive.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.requests.append((self.path, asked))
        self.close_connection = True
        body = server.files.get(self.path)
        if server.codes or body is None:
            self.send_error(server.codes.pop(0) if server.codes else 404)
            return
        start, tag = 0, f'"{hashlib.md5(body).hexdigest()}"'
        if asked and server.ranges and self.headers["If-Range"] in (None, tag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        self.send_header("Connection", "close")
        if server.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.most.pop(0) if server.most else len(body)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "_PAUSE", 0.0)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Folders of what the archives hold."""
    return save_root(tmp_path / "original")


@pytest.fixture
def archive(server: Server, original: Path, tmp_path: Path) -> bytes:
    """The 2AFC archive, on the server."""
    return server.serve(save_archive(tmp_path / NAME, original / "2afc"))


def _fetch_2afc(server: Server, root: Path, **settings: object) -> list[Path]:
    return download(root, tasks=["2afc"], url=server.url, quiet=True, **settings)  # type: ignore[arg-type]


def names_in(folder: Path) -> list[str]:
    """All but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".downloads.lock")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_archives_are_unpacked_into_the_layout(
    server: Server, archive: bytes, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.serve(save_archive(tmp_path / "jnd.tar.gz", original / "jnd", "jnd/"))
    root = tmp_path / "deep/root"
    assert download(root, url=server.url) == [root / "2afc/val", root / "jnd/val"]
    assert _files(root / "2afc") == _files(original / "2afc")
    assert _files(root / "jnd") == _files(original / "jnd")
    assert len(read_root(root)) == 3
    assert names_in(root) == ["2afc", "downloads.json", "jnd"]
    record = json.loads((root / "downloads.json").read_text())
    assert record[NAME] == {
        "url": f"{server.url}{NAME}",
        "bytes": len(archive),
        "sha256": hashlib.sha256(archive).hexdigest(),
    }
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{NAME}: 100%" in printed.err
    assert "unpacking jnd.tar.gz" in printed.err


def test_what_is_there_is_not_fetched_again(server: Server, archive: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    _fetch_2afc(server, root)
    assert _fetch_2afc(server, root) == [root / "2afc/val"]
    assert len(server.requests) == 1


def test_quiet_is_quiet(server: Server, archive: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fetch_2afc(server, tmp_path / "root")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_dropped_connections_are_taken_up_where_they_broke(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.most = [100, 50, 0, 7]
    _fetch_2afc(server, tmp_path / "root")
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=100-", "bytes=150-", "bytes=150-", "bytes=157-"]
    assert len(read_root(tmp_path / "root")) == 2


def test_a_later_call_goes_on_too(server: Server, archive: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{NAME}.part").write_bytes(archive[:300])
    _fetch_2afc(server, root)
    assert server.requests == [(f"/dataset/{NAME}", "bytes=300-")]
    assert not (root / f"{NAME}.part").exists()


def test_a_later_call_does_not_mix_two_versions(server: Server, archive: bytes, original: Path, tmp_path: Path) -> None:
    server.most = [100] + [0] * 20
    with pytest.raises(ConnectionError):
        _fetch_2afc(server, tmp_path / "root")
    changed = server.serve(save_archive(tmp_path / NAME, original / "2afc", "other/"))
    server.most = []
    _fetch_2afc(server, tmp_path / "root")
    assert server.requests[-1][1] == "bytes=100-"  # which the server does not honour, as the file is another one
    record = json.loads((tmp_path / "root/downloads.json").read_text())
    assert record[NAME]["sha256"] == hashlib.sha256(changed).hexdigest()
    assert names_in(tmp_path / "root") == ["2afc", "downloads.json"]


def test_two_at_once_fetch_once(server: Server, archive: bytes, tmp_path: Path) -> None:
    threads = [Thread(target=_fetch_2afc, args=(server, tmp_path / "root")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert len(read_root(tmp_path / "root")) == 2


def test_a_part_that_is_whole_is_not_fetched_again(server: Server, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / f"{NAME}.part").write_bytes(archive)
    _fetch_2afc(server, tmp_path / "root")
    assert [asked for _, asked in server.requests] == [f"bytes={len(archive)}-"]
    assert len(read_root(tmp_path / "root")) == 2


def test_a_part_that_is_too_long_is_replaced(server: Server, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / f"{NAME}.part").write_bytes(archive + b"more")
    _fetch_2afc(server, tmp_path / "root")
    assert [asked for _, asked in server.requests] == [f"bytes={len(archive) + 4}-", None]


def test_servers_without_ranges_are_asked_for_all(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.ranges = False
    server.most = [len(archive) - 1]
    _fetch_2afc(server, tmp_path / "root")
    assert len(server.requests) == 2
    assert len(read_root(tmp_path / "root")) == 2


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    server: Server, archive: bytes, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.most = [200]

    def change(seconds: float) -> None:
        server.files[f"/dataset/{NAME}"] = save_archive(tmp_path / NAME, original / "2afc", "other/").read_bytes()

    monkeypatch.setattr(downloading.time, "sleep", change)
    _fetch_2afc(server, tmp_path / "root")
    assert [asked for _, asked in server.requests] == [None, "bytes=200-"]
    assert len(read_root(tmp_path / "root")) == 2


def test_servers_that_never_send_the_rest(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.most = [100] + [0] * 20
    with pytest.raises(ConnectionError, match=rf"cannot fetch http.*{NAME}: the connection ended at 100 of .*again"):
        _fetch_2afc(server, tmp_path / "root")
    assert (tmp_path / "root" / f"{NAME}.part").read_bytes() == archive[:100]
    assert not (tmp_path / "root/2afc").exists()
    server.most = []
    _fetch_2afc(server, tmp_path / "root")
    assert server.requests[-1][1] == "bytes=100-"


def test_servers_that_always_cut_short_and_know_no_ranges(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.ranges, server.most = False, [100] * 20
    with pytest.raises(ConnectionError, match="ended at 100 of"):
        _fetch_2afc(server, tmp_path / "root")
    assert len(server.requests) < 10


def test_a_body_cut_short_without_a_length(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.lengths, server.most = False, [len(archive) - 3]
    with pytest.raises(ValueError, match=rf"{NAME}.part is truncated, damaged or no archive"):
        _fetch_2afc(server, tmp_path / "root")
    assert names_in(tmp_path / "root") == []


def test_passing_errors_of_the_server(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.codes = [503, 500, 429]
    _fetch_2afc(server, tmp_path / "root")
    assert len(server.requests) == 4


@pytest.mark.parametrize("code", [403, 404, 410])
def test_lasting_errors_of_the_server(server: Server, tmp_path: Path, code: int) -> None:
    server.codes = [code]
    with pytest.raises(ConnectionError, match=rf"cannot fetch {re.escape(server.url)}{NAME}: the server says {code}"):
        _fetch_2afc(server, tmp_path / "root")
    assert len(server.requests) == 1


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"cannot fetch .*refused.*run the command again"):
        download(tmp_path, url=url, quiet=True)


def test_a_sha256_that_was_recorded(server: Server, archive: bytes, original: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    _fetch_2afc(server, root)
    shutil.rmtree(root / "2afc")
    server.serve(save_archive(tmp_path / NAME, original / "2afc", "other/"))
    with pytest.raises(ValueError, match=rf"and not {hashlib.sha256(archive).hexdigest()}, as .*downloads.json has it"):
        _fetch_2afc(server, root)
    assert names_in(root) == ["downloads.json"]
    server.files[f"/dataset/{NAME}"] = archive
    _fetch_2afc(server, root)
    assert len(read_root(root)) == 2


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {}}'])
def test_a_damaged_record_is_named_before_anything_is_fetched(server: Server, tmp_path: Path, text: str) -> None:
    (tmp_path / "downloads.json").write_text(text)
    with pytest.raises(ValueError, match=r"downloads.json is damaged: .*; remove it"):
        _fetch_2afc(server, tmp_path)
    assert server.requests == []


def test_disks_that_are_too_small(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=int(2.5 * len(archive)) - 1))
    with pytest.raises(OSError, match=r"GB free, but the archive and what is in it take .* GB"):
        _fetch_2afc(server, tmp_path / "root")
    assert names_in(tmp_path / "root") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=int(2.5 * len(archive))))
    _fetch_2afc(server, tmp_path / "root")


@pytest.mark.parametrize("kind", hostile_members())
def test_hostile_archives_leave_nothing(server: Server, tmp_path: Path, kind: str) -> None:
    good = tarfile.TarInfo("val/cnn/ref/000000.png")
    server.serve(save_members(tmp_path / NAME, [(good, b"x"), (hostile_members()[kind], b""), (good, b"x")]))
    (tmp_path / "outer").mkdir()
    with pytest.raises(ValueError, match="is refused"):
        _fetch_2afc(server, tmp_path / "outer/root")
    assert [path.name for path in (tmp_path / "outer").rglob("[!.]*")] == ["root"]


def test_bombs_leave_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "_LEAST_BOMB", 1 << 12)
    server.serve(save_members(tmp_path / NAME, [(tarfile.TarInfo("val/cnn/ref/0.png"), bytes(1 << 20))]))
    with pytest.raises(ValueError, match=r"is refused: it unpacks to over"):
        _fetch_2afc(server, tmp_path / "root")
    assert names_in(tmp_path / "root") == []


def test_one_file_in_two_places(server: Server, tmp_path: Path) -> None:
    names = ("val/cnn/ref/0.png", "2afc/val/cnn/ref/0.png")
    server.serve(save_members(tmp_path / NAME, [(tarfile.TarInfo(name), b"x") for name in names]))
    with pytest.raises(ValueError, match="2afc/val/cnn/ref/0.png is there twice"):
        _fetch_2afc(server, tmp_path / "root")


def test_archives_of_something_else(server: Server, tmp_path: Path) -> None:
    server.serve(save_members(tmp_path / NAME, [(tarfile.TarInfo("train/cnn/ref/0.png"), b"x")]))
    with pytest.raises(ValueError, match="has no files 2afc/val/<family>/<folder>/<file>"):
        _fetch_2afc(server, tmp_path / "root")
    assert names_in(tmp_path / "root") == []


def test_files_that_belong_nowhere_are_told(
    server: Server, original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (original / "2afc/README.md").touch()
    (original / "2afc/val/cnn/ref/.hidden.png").touch()
    server.serve(save_archive(tmp_path / NAME, original / "2afc"))
    _fetch_2afc(server, tmp_path / "root")
    assert "1 files that belong nowhere are left out, first README.md" in caplog.text
    assert not list((tmp_path / "root").rglob(".hidden*"))


def test_what_an_interrupted_unpacking_left_goes(server: Server, archive: bytes, tmp_path: Path) -> None:
    left = tmp_path / "root/.2afc-val-unpacking/cnn/ref"
    left.mkdir(parents=True)
    (left / "999999.png").touch()
    _fetch_2afc(server, tmp_path / "root")
    assert sorted(path.name for path in (tmp_path / "root/2afc/val/cnn/ref").iterdir()) == ["000000.png", "000001.png"]


def test_train_has_no_jnd(server: Server, original: Path, tmp_path: Path) -> None:
    (original / "2afc/val").rename(original / "2afc/train")
    server.serve(save_archive(tmp_path / "twoafc_train.tar.gz", original / "2afc"))
    root = tmp_path / "root"
    assert download(root, split="train", url=server.url, quiet=True) == [root / "2afc/train"]
    with pytest.raises(ValueError, match="no archive of the split 'train' of jnd"):
        download(root, split="train", tasks=["jnd"], url=server.url)


@pytest.mark.parametrize("url", ["file:///data", "data/bapps", "ftp://host/"])
def test_only_web_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="should begin with https:// or http://"):
        download(tmp_path, url=url)
