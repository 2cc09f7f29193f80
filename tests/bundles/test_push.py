"""Tests of afv_metric.bundles.push with the real hub client against a small hub on 127.0.0.1 (see hub_server.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BUNDLE
from hub_server import HubServer

import afv_metric
from afv_metric.bundles.bundle import BundleError
from afv_metric.bundles.push import push_bundle
from afv_metric.files import sha256_of

TOKEN = "hf_secret"
FILES = {"README.md", "config.json", "generator.safetensors", "model.safetensors", "portrait.png"}

# The client reads its environment when it is imported, so it gets a process of its own: one for all tests, because
# importing torch takes longer than all the rest here. A bundle is validated at its first push only.
WORKER = """
import functools, json, os, sys
import torch
from huggingface_hub import constants
from afv_metric import AFVDistance
from afv_metric.bundles import push
torch.set_num_threads(1)
push.validate_bundle = functools.lru_cache(push.validate_bundle)
for line in sys.stdin:
    use, arguments, settings = json.loads(line)
    os.environ["HF_TOKEN"] = settings.pop("token")
    constants.HF_HUB_OFFLINE = settings.pop("offline", False)
    constants.ENDPOINT = settings.pop("endpoint", os.environ["HF_ENDPOINT"])
    try:
        if use == "push":
            answer = {"text": push.push_bundle(*arguments, samples=20, **settings)}
        else:
            answer = {"hash": AFVDistance(*arguments).bundle_hash}
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer), flush=True)
"""
Answer = dict[str, Any]
Client = Callable[..., Answer]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(hub: HubServer) -> HubServer:
    """The hub, with nothing in it."""
    hub.token, hub.owner = TOKEN, None
    for contents in (hub.private, hub.uploads, hub._commits, hub._refs, hub._blobs):
        contents.clear()
    return hub


@pytest.fixture(scope="module")
def worker(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    foreign = re.compile(r"HF_|HUGGING|TRANSFORMERS_|XDG_|PYTHON|.*_PROXY$", re.IGNORECASE)
    surroundings = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    settings = {
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(Path(afv_metric.__file__).parent.parent),
    }
    with subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", WORKER],
        env=surroundings | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def client(worker: subprocess.Popen[str]) -> Client:
    """Push, or load from the hub, in that process; gives what came of it, and what the text of a push says."""

    def use(what: str, *arguments: object, token: str = TOKEN, **settings: object) -> Answer:
        worker.stdin.write(json.dumps([what, arguments, settings | {"token": token}], default=str) + "\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
        listed = re.findall(r"^  (\S+) +([\d,]+) bytes$", answer.get("text", ""), re.MULTILINE)
        commit = re.search(r", commit (\S+)", answer.get("text", ""))
        files = {name: int(size.replace(",", "")) for name, size in listed}
        return answer | ({"files": files, "commit": commit and commit[1]} if what == "push" else {})

    return use


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a card that the hub accepts, and with files that are nobody's business."""
    folder = Path(shutil.copytree(TINY_BUNDLE, tmp_path_factory.mktemp("bundles") / "bundle"))
    (folder / "README.md").write_text(
        "---\nlicense: bsd-2-clause\n---\n\n# tiny-bundle\n\nRandom weights, for tests.\n\n![it](portrait.png)\n"
    )
    (folder / "portrait.png").write_bytes(b"a picture of the card")
    (folder / "private.png").write_bytes(b"another picture")
    (folder / "thesis.tex").write_text("not yet published")
    return folder


def test_what_is_pushed_can_be_used(server: HubServer, client: Client, folder: Path) -> None:
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    dry = client("push", folder, "owner/name", dry_run=True)
    assert dry["text"].startswith(f"would upload to {server.endpoint}/owner/name, branch main")
    assert dry["files"] == sizes
    assert dry["text"].endswith("left out: private.png, thesis.tex")
    assert server._commits == {}

    push = client("push", folder, "owner/name")
    assert "error" not in push, push
    assert push["files"] == sizes
    assert 'AFVDistance("owner/name")' in push["text"]
    contents = server.files("owner/name")
    assert contents == {name: (folder / name).read_bytes() for name in FILES}
    assert contents == server.files("owner/name", push["commit"])
    assert server.private == set()
    assert client("load", "owner/name") == {"hash": sha256_of(folder / "config.json")}
    assert client("push", folder, "owner/name")["commit"] == push["commit"]

    branch = client("push", folder, "owner/name", revision="v2")
    assert 'AFVDistance("owner/name@v2")' in branch["text"]
    assert client("load", "owner/name@v2") == {"hash": sha256_of(folder / "config.json")}

    assert client("push", folder, "owner/secret", private=True)["commit"]
    assert server.private == {"owner/secret"}
    assert server.files("owner/secret") == contents
    assert len(server.uploads) == 2  # two files of weights, once each: the storage tells the client what it has


def test_what_to_do_when_the_hub_refuses(server: HubServer, client: Client, folder: Path) -> None:
    server.owner = "owner"
    server.publish("owner/name", {"README.md": b"---\n---\n"})
    answers = [
        client("push", folder, "owner/new", token=""),
        client("push", folder, "owner/name", token=""),
        client("push", folder, "owner/name", token="hf_wrong"),
        client("push", folder, "somebody/name"),
    ]
    assert {answer.get("error") for answer in answers} == {"HubError"}
    assert re.search(r"does not know who.*'owner/new'.*hf auth login.*HF_TOKEN", answers[0]["text"])
    assert re.search(r"does not know who.*'owner/name'", answers[1]["text"])
    assert re.search(r"does not know who.*'owner/name'", answers[2]["text"])
    assert re.search(r"may not write to 'somebody/name'.*right to write", answers[3]["text"])
    assert server.files("owner/name") == {"README.md": b"---\n---\n"}
    assert server.uploads == []


def test_without_a_connection(server: HubServer, client: Client, folder: Path) -> None:
    offline = client("push", folder, "owner/name", offline=True)
    assert offline["error"] == "HubError"
    assert "unset HF_HUB_OFFLINE" in offline["text"]
    assert client("push", folder, "owner/name", offline=True, dry_run=True)["files"].keys() == FILES
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        unreachable = client("push", folder, "owner/name", endpoint=endpoint)
    assert unreachable["error"] == "HubError"
    assert re.search(rf"could not be uploaded to {endpoint} .*HF_ENDPOINT", unreachable["text"])


def test_a_bundle_that_is_not_valid_stays_here(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_BUNDLE, tmp_path / "bundle"))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(BundleError, match=r"not uploaded:\n.*FAILED 1 of 1(?s:.*)damaged or was changed"):
        push_bundle(folder, "owner/name")


@pytest.mark.parametrize("repository", ["name", "a/b/c", "own er/name", "owner/a--b", ""])
def test_names_that_are_none_are_refused(repository: str) -> None:
    with pytest.raises(ValueError, match="must be named as owner/name"):
        push_bundle(TINY_BUNDLE, repository)


def test_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no bundle folder"):
        push_bundle(tmp_path / "nothing", "owner/name")
