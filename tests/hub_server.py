"""A small stand-in for the Hugging Face hub on 127.0.0.1: enough for ``hf_hub_download`` and ``upload_folder``.

Like the real one it answers ``/{owner}/{name}/resolve/{revision}/{file}`` and sends safetensors by a redirect
to a second origin, the storage, that knows nothing of repositories. Uploads go the way of Git LFS, which the client
takes with ``HF_HUB_DISABLE_XET=1``: safetensors are put into the storage, all else comes inside the commit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any
from urllib.parse import unquote


class HubServer:
    """Serves repositories that live in memory, and misbehaves on demand.

    Attributes:
        requests: ``(method, revision, file)`` of every request for a file of a repository that was there, and
            ``(method, "storage", file)`` of every request to the storage.
        cut: File names and the byte at which their bodies break off.
        cuts: How many times bodies break off before the server behaves again.
        spoil: File names and how many of their bodies still get a wrong first byte.
        token: If set, what a client has to show as its bearer token. Without any token nothing can be written.
        owner: If set, the only one whose repositories may be written to.
        private: Repositories that were made private.
        uploads: sha256 of every file that was put into the storage, in order.
        before: Called with ``(method, revision, file)`` ahead of the answer; may publish or wait.

    Example:
        >>> with HubServer() as server:
        ...     commit = server.publish("owner/name", {"config.json": b"{}"})
        ...     print(server.endpoint.startswith("http://127.0.0.1:"), len(commit))
        True 40
    """

    def __init__(self) -> None:
        """Bind the two origins to free ports; they answer from ``__enter__`` on."""
        self.requests: list[tuple[str, str, str]] = []
        self.cut: dict[str, int] = {}
        self.cuts = 0
        self.spoil: dict[str, int] = {}
        self.token: str | None = None
        self.owner: str | None = None
        self.private: set[str] = set()
        self.uploads: list[str] = []
        self.before: Callable[[str, str, str], None] = lambda method, revision, file: None
        self._commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self._refs: dict[str, dict[str, str]] = {}
        self._blobs: dict[str, tuple[str, bytes]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._origins = [_Origin(("127.0.0.1", 0), handler) for _ in range(2)]

    @property
    def endpoint(self) -> str:
        """The value for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self._origins[0].server_port}"

    def publish(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files, let the branch point to it, and give its hash."""
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self._commits.setdefault(repository, {})[commit] = dict(files)
        self._refs.setdefault(repository, {})[branch] = commit
        for file, body in files.items():
            self._blobs[hashlib.sha256(body).hexdigest()] = (file, body)
        return commit

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """Give the files of a commit or a branch."""
        return self._commits[repository][self._refs[repository].get(revision, revision)]

    def count(self, method: str, file: str) -> int:
        """Count the answered requests for a file; bodies of safetensors are those sent by the storage."""
        storage = file.endswith(".safetensors")
        return sum(
            (method, file) == (made, name) and storage == (revision == "storage")
            for made, revision, name in self.requests
        )

    def stop(self) -> None:
        """Close both origins; later connections are refused."""
        for origin in self._origins:
            origin.shutdown()
            origin.server_close()
        self._origins = []

    def __enter__(self) -> HubServer:
        """Answer requests from now on."""
        for origin in self._origins:
            Thread(target=origin.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, if that has not been done before."""
        self.stop()


class _Origin(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._receive()

    def do_PUT(self) -> None:
        self._receive()

    def _receive(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.path.startswith("/storage/"):
                self._store(self.path.removeprefix("/storage/"), body)
            else:
                self._write(self.path.partition("?")[0].strip("/"), body)

    def _store(self, sha256: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != sha256:
            return self._send(400, {"X-Error-Message": "the content has another sha256"})
        self.hub._blobs[sha256] = (sha256, body)
        self.hub.uploads.append(sha256)
        return self._send(200, {})

    def _write(self, path: str, body: bytes) -> None:
        hub, token = self.hub, self.headers["Authorization"]
        if path == "api/validate-yaml":
            described = json.loads(body)["content"].startswith("---\n")
            warnings = [] if described else [{"message": "empty or missing yaml metadata in repo card"}]
            return self._json({"errors": [], "warnings": warnings})
        if not token or (hub.token and token != f"Bearer {hub.token}"):
            return self._send(401, {"X-Error-Message": "Invalid username or password."})
        if path == "api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
        else:
            repository = "/".join(
                path.removeprefix("api/models/").removesuffix(".git/info/lfs/objects/batch").split("/")[:2]
            )
        if hub.owner and repository.partition("/")[0] != hub.owner:
            return self._send(403, {"X-Error-Message": "You don't have the rights to write here"})
        if path == "api/repos/create":
            return self._create(repository, asked)
        if repository not in hub._commits:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        action, _, revision = path.removeprefix(f"api/models/{repository}/").partition("/")
        revision = unquote(revision)
        refs = hub._refs[repository]
        if action == "branch":
            known = revision in refs
            refs.setdefault(revision, refs["main"])
            return self._send(409 if known else 201, {})
        if revision not in refs:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit", path
        return self._commit(repository, revision, body)

    def _create(self, repository: str, asked: dict[str, Any]) -> None:
        url = {"url": f"{self.hub.endpoint}/{repository}"}
        if repository in self.hub._commits:
            return self._json({"error": "You already created this model repo"} | url, 409)
        self.hub.publish(repository, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repository)
        return self._json(url)

    def _batch(self, asked: dict[str, Any]) -> None:
        """Say, as Git LFS does, where each object goes; the storage already has some."""
        objects = []
        for entry in asked["objects"]:
            href = f"http://127.0.0.1:{self.hub._origins[1].server_port}/storage/{entry['oid']}"
            known = entry["oid"] in self.hub._blobs
            objects.append(entry if known else entry | {"actions": {"upload": {"href": href}}})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, revision: str, body: bytes) -> None:
        """Add files to those of the branch: small ones come along, large ones lie in the storage already."""
        files = dict(self.hub.files(repository, revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub._blobs[value["oid"]][1]
        commit = self.hub.publish(repository, files, revision)
        self._json({"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}", "commitOid": commit})

    def _json(self, answer: dict[str, Any], status: int = 200) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _answer(self) -> None:
        # The client may hang up at any time; that is its good right and no error of the server.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.path.startswith("/storage/"):
                file, body = self.hub._blobs[self.path.removeprefix("/storage/")]
                self.hub.requests.append((self.command, "storage", file))
                self._send(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, body, file)
            elif self.path.startswith("/api/models/"):
                self._describe(self.path.removeprefix("/api/models/").partition("?")[0])
            else:
                self._resolve()

    def _describe(self, path: str) -> None:
        repository = "/".join(path.split("/")[:2])
        if repository not in self.hub._commits:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        return self._json({"id": repository, "sha": self.hub._refs[repository]["main"]})

    def _resolve(self) -> None:
        hub = self.hub
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, file = (unquote(part) for part in rest.partition("/"))
        if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._send(401, {"X-Error-Message": "Invalid username or password."})
        if repository not in hub._commits:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        hub.before(self.command, revision, file)
        commit = hub._refs[repository].get(revision, revision)
        files = hub._commits[repository].get(commit)
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            return self._send(404, {**headers, "X-Error-Code": "EntryNotFound"})
        hub.requests.append((self.command, revision, file))
        body = files[file]
        if file.endswith(".safetensors"):
            sha256 = hashlib.sha256(body).hexdigest()
            headers["X-Linked-Etag"] = f'"{sha256}"'
            headers["X-Linked-Size"] = str(len(body))
            headers["Location"] = f"http://127.0.0.1:{hub._origins[1].server_port}/storage/{sha256}"
            self._send(302, headers)
        else:
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            self._send(200, headers, body, file)

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"", file: str = "") -> None:
        hub, start, end = self.hub, 0, len(body)
        range_header = self.headers["Range"]
        if status == 200 and range_header:
            start = int(range_header.removeprefix("bytes=").partition("-")[0])
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{end}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        if hub.spoil.get(file, 0):
            hub.spoil[file] -= 1
            body = bytes([body[0] ^ 255]) + body[1:]
        if hub.cuts and file in hub.cut:
            hub.cuts -= 1
            end = max(start, hub.cut[file])
            self.close_connection = True
        self.wfile.write(body[start:end])
