"""A small stand-in for the Hugging Face hub on 127.0.0.1, just enough for ``hf_hub_download``.

Like the real one it answers ``/{owner}/{name}/resolve/{revision}/{file}`` and sends safetensors by a redirect
to a second origin, the storage, that knows nothing of repositories.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from urllib.parse import unquote


class HubServer:
    """Serves repositories that live in memory, and misbehaves on demand.

    Attributes:
        requests: ``(method, revision, file)`` of every request for a file of a repository that was there, and
            ``(method, "storage", file)`` of every request to the storage.
        cut: File names and the byte at which their bodies break off.
        cuts: How many times bodies break off before the server behaves again.
        spoil: File names and how many of their bodies still get a wrong first byte.
        token: If set, what a client has to show as its bearer token.
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

    def _answer(self) -> None:
        # The client may hang up at any time; that is its good right and no error of the server.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.path.startswith("/storage/"):
                file, body = self.hub._blobs[self.path.removeprefix("/storage/")]
                self.hub.requests.append((self.command, "storage", file))
                self._send(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, body, file)
            else:
                self._resolve()

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
