"""Tests of afv_metric.bundles.resolve with the real hub client against a small hub on 127.0.0.1 (see hub_server.py)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

from afv_metric.bundles import resolve as hub

MODEL = bytes(range(256)) * 800
GENERATOR = b"generator" * 5000
FILES = ["config.json", "model.safetensors"]
ALL_FILES = [*FILES, "generator.safetensors"]
PATIENCE = 120.0  # seconds, for a busy machine

# The client reads its environment when it is imported, so every use of it gets a process of its own. There
# the __init__ of the package is passed by, because importing torch takes longer than all the rest here, and
# the pauses of the client before its next attempt are cut short.
USE = """
import json, sys, time, types
package = types.ModuleType("afv_metric")
package.__path__ = [sys.argv[1]]
sys.modules["afv_metric"] = package
from afv_metric.bundles.resolve import find_bundle
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
answers = []
for weights, files in json.loads(sys.argv[2]):
    try:
        answers.append({"folder": str(find_bundle(weights, files)), "error": ""})
    except Exception as error:
        cause = type(error.__cause__).__name__
        answers.append({"error": type(error).__name__, "text": str(error), "cause": cause})
print(json.dumps(answers))
"""


def bundle(model: bytes = MODEL, **changes: object) -> dict[str, bytes]:
    """Make the files of a bundle in memory; ``changes`` replace entries of its config."""
    weights = {"model.safetensors": model, "generator.safetensors": GENERATOR}
    entries = {file: {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} for file, body in weights.items()}
    config = json.dumps({"files": entries} | changes).encode()
    return {**weights, "config.json": config, "README.md": b"# A bundle"}


class Client:
    """Calls ``find_bundle`` in processes of their own that share an environment and so a cache."""

    def __init__(self, **environment: str) -> None:
        """Keep everything of the surroundings except what steers the hub client, Python or a proxy."""
        foreign = re.compile(r"HF_|HUGGING|TRANSFORMERS_|XDG_|PYTHON|.*_PROXY$", re.IGNORECASE)
        surroundings = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        self._environment = surroundings | environment

    def set(self, **environment: str) -> Client:
        """Give a client that has these environment variables in addition."""
        return Client(**self._environment | environment)

    def start(self, *uses: tuple[str, list[str]]) -> subprocess.Popen[str]:
        """Start a process that calls ``find_bundle`` with these arguments, one after the other."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USE, str(Path(hub.__file__).parents[1]), json.dumps(uses)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answers(self, process: subprocess.Popen[str]) -> list[dict[str, str]]:
        """Wait for the process, and give what ``find_bundle`` gave or raised for each of its uses."""
        with process:
            output, complaints = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, complaints
        assert "Traceback" not in complaints
        assert "ResourceWarning" not in complaints
        return list(json.loads(output))

    def find(self, weights: str, files: list[str] = FILES) -> dict[str, str]:
        """Call ``find_bundle`` once in a process of its own."""
        return self.answers(self.start((weights, files)))[0]

    def folder(self, weights: str, files: list[str] = FILES) -> Path:
        """Like ``find``, for uses that have to go well."""
        answer = self.find(weights, files)
        assert answer["error"] == "", answer["text"]
        return Path(answer["folder"])


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def client(cache: Path, server: HubServer) -> Client:
    return Client(
        HF_HOME=str(cache),
        HF_ENDPOINT=server.endpoint,
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_ETAG_TIMEOUT="60",
        HF_HUB_DOWNLOAD_TIMEOUT="60",
    )


def test_download_then_cache_without_server(client: Client, server: HubServer, cache: Path) -> None:
    commit = server.publish("owner/name", bundle())
    folder = client.folder("owner/name", ALL_FILES)
    assert folder.name == commit
    assert cache in folder.parents
    assert sorted(path.name for path in folder.iterdir()) == sorted(ALL_FILES)
    assert (folder / "model.safetensors").read_bytes() == MODEL
    assert (folder / "generator.safetensors").read_bytes() == GENERATOR
    assert [server.count("GET", file) for file in ALL_FILES] == [1, 1, 1]

    assert client.folder("owner/name") == folder
    assert [server.count("GET", file) for file in ALL_FILES] == [1, 1, 1]

    server.stop()
    assert client.folder("owner/name") == folder
    assert client.set(HF_HUB_OFFLINE="1").folder("owner/name") == folder


def test_config_always_comes_along(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    folder = client.folder("owner/name", ["README.md"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json"]


def test_not_cached_and_offline(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    offline = client.set(HF_HUB_OFFLINE="1").find("owner/name")
    server.stop()
    unreachable = client.find("owner/name")
    for answer in (offline, unreachable):
        assert (answer["error"], answer["cause"]) == ("HubError", "LocalEntryNotFoundError")
        assert re.search(r"owner/name.*not in the cache.*Connect.*HF_ENDPOINT.*path.*ships", answer["text"])
    assert "HF_HUB_OFFLINE" in offline["text"]
    assert "refused" in unreachable["text"]
    assert server.requests == []


def test_a_hub_out_of_reach_is_tried_once_and_in_silence(client: Client, server: HubServer) -> None:
    server.stop()
    with client.start(("owner/name", FILES)) as process:
        output, complaints = process.communicate(timeout=PATIENCE)
    assert "not in the cache" in json.loads(output)[0]["text"]
    assert complaints == ""  # no line of the client about its retries


def test_wrong_hash_in_config(client: Client, server: HubServer) -> None:
    entries = {"model.safetensors": {"sha256": "0" * 64, "bytes": len(MODEL)}}
    commit = server.publish("owner/name", bundle(files=entries))
    answer = client.find("owner/name")
    assert answer["error"] == "HubError"
    assert f"model.safetensors from owner/name should be {'0' * 64}" in answer["text"]
    assert f"but is {hashlib.sha256(MODEL).hexdigest()}" in answer["text"]
    assert f"--revision {commit} --force-download" in answer["text"]
    to_delete = re.search(r"delete (\S+) and try again", answer["text"])
    assert to_delete
    assert Path(to_delete[1]).read_bytes() == MODEL
    assert server.count("GET", "model.safetensors") == 2


@pytest.mark.parametrize("symlinks", [True, False])
def test_broken_file_in_cache_is_downloaded_again(client: Client, server: HubServer, symlinks: bool) -> None:
    if not symlinks:
        client = client.set(HF_HUB_DISABLE_SYMLINKS="1")
    server.publish("owner/name", bundle())
    folder = client.folder("owner/name")
    assert (folder / "model.safetensors").is_symlink() == symlinks
    (folder / "model.safetensors").write_bytes(MODEL[:-1] + b"?")

    if symlinks:
        answer = client.set(HF_HUB_OFFLINE="1").find("owner/name")
        assert (answer["error"], answer["cause"]) == ("HubError", "HubError")
        assert re.search(r"sha256 of model.safetensors.*forced download failed.*offline", answer["text"])

    assert client.folder("owner/name") == folder
    assert (folder / "model.safetensors").read_bytes() == MODEL
    assert server.count("GET", "model.safetensors") == 2


def test_deleting_the_named_file_helps(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    folder = client.folder("owner/name")
    (folder / "model.safetensors").resolve().unlink()
    assert client.folder("owner/name") == folder
    assert (folder / "model.safetensors").read_bytes() == MODEL


def test_bytes_spoiled_on_the_way(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    server.spoil["model.safetensors"] = 1
    folder = client.folder("owner/name")
    assert (folder / "model.safetensors").read_bytes() == MODEL

    server.publish("owner/other", bundle(model=MODEL[::-1]))
    server.spoil["model.safetensors"] = 2
    answer = client.find("owner/other")
    assert answer["error"] == "HubError"
    assert "forced download brought the same" in answer["text"]


def test_body_that_breaks_off(client: Client, server: HubServer, cache: Path) -> None:
    server.publish("owner/name", bundle())
    server.cut["model.safetensors"] = 1000
    server.cuts = 1000
    answer = client.find("owner/name")
    assert answer["error"] == "HubError"
    assert "model.safetensors of owner/name@" in answer["text"]
    assert "could not be downloaded" in answer["text"]
    assert not any(path.stat().st_size >= 1000 for path in cache.rglob("*") if path.is_file())

    server.cuts = 1
    folder = client.folder("owner/name")
    assert (folder / "model.safetensors").read_bytes() == MODEL


def test_things_that_are_not_there(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    server.publish("owner/empty", {"README.md": b"nothing here"})
    server.publish("owner/other", {"config.json": b'{"architectures": []}', "model.safetensors": MODEL})
    server.publish("owner/text", {"config.json": b"not json", "model.safetensors": MODEL})
    unknown, revision, file, config, other, text, invalid = client.answers(
        client.start(
            ("owner/unknown", FILES),
            ("owner/name@v9", FILES),
            ("owner/name", ["missing.bin"]),
            ("owner/empty", FILES),
            ("owner/other", FILES),
            ("owner/text", FILES),
            ("owner/a--b", FILES),
        )
    )
    answers = [unknown, revision, file, config, other, text, invalid]
    assert [answer["error"] for answer in answers] == ["HubError"] * 7
    assert unknown["cause"] == "RepositoryNotFoundError"
    assert re.search(r"no repository 'owner/unknown'.*folder.*HF_TOKEN", unknown["text"])
    assert revision["cause"] == "RevisionNotFoundError"
    assert "'owner/name' has no revision 'v9'" in revision["text"]
    assert file["cause"] == "RemoteEntryNotFoundError"
    assert "has no file 'missing.bin'" in file["text"]
    assert "owner/empty has no file 'config.json'" in config["text"]
    assert "names no sha256 of model.safetensors (KeyError('files'))" in other["text"]
    assert "names no sha256 of model.safetensors (JSONDecodeError" in text["text"]
    assert "HFValidationError" in invalid["text"]
    # A repository of something else is recognised before its weights are downloaded.
    assert server.count("GET", "model.safetensors") == 0


def test_private_repository_needs_a_token(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    server.token = "hf_secret"
    answer = client.find("owner/name")
    assert answer["error"] == "HubError"
    assert re.search(r"no repository 'owner/name'.*hf auth login.*HF_TOKEN", answer["text"])
    assert client.set(HF_TOKEN="hf_secret").folder("owner/name").is_dir()


def test_pinned_revisions(client: Client, server: HubServer) -> None:
    old = server.publish("owner/name", bundle(), branch="refs/pr/1")
    new = server.publish("owner/name", bundle(model=MODEL[::-1]))
    uses = [("owner/name@refs/pr/1", FILES), ("owner/name", FILES), (f"owner/name@{old}", FILES)]
    folders = [Path(answer["folder"]) for answer in client.answers(client.start(*uses))]
    assert [folder.name for folder in folders] == [old, new, old]
    assert (folders[0] / "model.safetensors").read_bytes() == MODEL
    assert (folders[1] / "model.safetensors").read_bytes() == MODEL[::-1]


@pytest.mark.parametrize("moment", [("HEAD", "model.safetensors"), ("GET", "config.json")])
def test_one_commit_while_main_moves(client: Client, server: HubServer, moment: tuple[str, str]) -> None:
    """In the second case the client mixes two commits up in its cache, which the hashes bring to light."""
    old = server.publish("owner/name", bundle())
    moved: list[str] = []

    def move(method: str, revision: str, file: str) -> None:
        if (method, file) == moment and not moved:
            moved.append(server.publish("owner/name", bundle(model=MODEL[::-1])))

    server.before = move
    folder = client.folder("owner/name")
    assert folder.name == old
    assert (folder / "config.json").read_bytes() == bundle()["config.json"]
    assert (folder / "model.safetensors").read_bytes() == MODEL
    assert ("HEAD", "main", "model.safetensors") not in server.requests
    assert client.folder("owner/name").name == moved[0]


def test_two_processes_at_once(client: Client, server: HubServer) -> None:
    server.publish("owner/name", bundle())
    both = threading.Barrier(2, timeout=PATIENCE)

    def meet(method: str, revision: str, file: str) -> None:
        if (method, file) == ("HEAD", "model.safetensors"):
            both.wait()

    server.before = meet
    for broken in (False, True):
        processes = [client.start(("owner/name", FILES)) for _ in range(2)]
        answers = [client.answers(process)[0] for process in processes]
        assert [answer["error"] for answer in answers] == ["", ""], f"{broken=} {answers}"
        assert answers[0] == answers[1]
        model = Path(answers[0]["folder"]) / "model.safetensors"
        assert model.read_bytes() == MODEL
        model.write_bytes(b"broken, so that both have to repair the same file next")


def test_import_leaves_the_hub_client_alone() -> None:
    code = "import sys, afv_metric.bundles.resolve; sys.exit('huggingface_hub' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(hub.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=PATIENCE).returncode == 0


# What follows needs no hub.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that the package lies, without any bundle, in a temporary folder."""
    folder = tmp_path / "site-packages" / "afv_metric"
    folder.mkdir(parents=True)
    monkeypatch.setattr(hub, "_PACKAGE", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def write_bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file, body in bundle().items():
        (folder / file).write_bytes(body)
    return folder


def test_shipped_in_an_installed_package(package: Path) -> None:
    shipped = write_bundle(package / "weights" / hub.DEFAULT_BUNDLE)
    (package / "weights" / "no-bundle").mkdir()
    write_bundle(package.parent / "weights" / "of-somebody-else")
    assert hub.list_bundles() == [hub.DEFAULT_BUNDLE]
    assert hub.find_bundle() == shipped
    assert hub.find_bundle(hub.DEFAULT_BUNDLE, ALL_FILES) == shipped


def test_shipped_in_a_checkout(package: Path) -> None:
    (package.parent / "pyproject.toml").touch()
    assert hub.list_bundles() == []
    outside = write_bundle(package.parent / "weights" / "b")
    assert hub.find_bundle("b") == outside
    inside = write_bundle(package / "weights" / "b")
    write_bundle(package.parent / "weights" / "a")
    assert hub.list_bundles() == ["a", "b"]
    assert hub.find_bundle("b") == inside


def test_shipped_name_goes_before_folder(package: Path, tmp_path: Path) -> None:
    shipped = write_bundle(package / "weights" / "a")
    write_bundle(tmp_path / "a")
    assert hub.find_bundle("a") == shipped
    assert hub.find_bundle("./a") == Path("a")
    assert hub.find_bundle(Path("a")) == Path("a")


@pytest.mark.parametrize("kind", [str, Path])
def test_folder(package: Path, tmp_path: Path, kind: type[str] | type[Path]) -> None:
    folder = write_bundle(tmp_path / "runs" / "best")
    assert hub.find_bundle(kind(folder), ALL_FILES) == folder
    # It looks like a hub id as well.
    assert hub.find_bundle(kind("runs/best")) == Path("runs/best")
    (folder / "generator.safetensors").unlink()
    assert hub.find_bundle(kind(folder)) == folder
    with pytest.raises(hub.BundleError, match=r"best' has no file 'generator\.safetensors'"):
        hub.find_bundle(kind(folder), ALL_FILES)


def test_folder_in_the_home(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = write_bundle(tmp_path / "a")
    assert hub.find_bundle("~/a") == folder


def test_path_that_is_no_folder(package: Path) -> None:
    with pytest.raises(hub.BundleError, match="no bundle folder 'owner/name'"):
        hub.find_bundle(Path("owner/name"))


@pytest.mark.parametrize(
    "weights",
    ["", "nonsense", "a/b/c", "../a/b", "./a/b", "a/b@", "a/b@c..d", "@v1", "a b/c", "a/" + "b" * 5000 + "/"],
)
def test_none_of_the_three_kinds(package: Path, weights: str) -> None:
    with pytest.raises(ValueError, match=r"name of a shipped bundle \(there is none.*owner/name\["):
        hub.find_bundle(weights)


def test_suggestion(package: Path) -> None:
    write_bundle(package / "weights" / "tiny-imagenet-v8")
    write_bundle(package / "weights" / "other")
    with pytest.raises(ValueError, match=r"\('other', 'tiny-imagenet-v8'\).* mean 'tiny-imagenet-v8'\?$"):
        hub.find_bundle("tiny_imagenet_v3")


def test_file_instead_of_folder(package: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "runs")
    with pytest.raises(ValueError, match="this is a file, give the folder"):
        hub.find_bundle("runs/model.safetensors")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_of(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "data").write_bytes(data)
    assert hub.sha256_of(tmp_path / "data") == hashlib.sha256(data).hexdigest()
