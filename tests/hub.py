"""A hub of models on 127.0.0.1: as much of Hugging Face and of ModelScope as their clients use, and faults at will.

Files whose names end in `.onnx` or `.pt` are in LFS, and are redirected to another host name, as on Hugging Face.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_PIECE = 4096
_WAIT_S = 60
_LFS = (".onnx", ".pt")


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `where`; `times` of them, then no more."""

    where: str
    times: int
    status: int = 0
    """Answer with this error status."""

    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    """Drop the connection after this many bytes of the answer."""

    spoil: bool = False
    """Send other bytes than there are."""

    hold_at: int | None = None
    """Say so after this many bytes, and wait for `release`."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_download(self) -> bool:
        """Whether a file's content was asked for, and not where it is."""
        if self.path.startswith(("/cdn/", "/models/")):
            return True
        return "/resolve/" in self.path and not self.path.endswith(_LFS)

    @property
    def first_byte(self) -> int:
        """Where the request's range begins; 0 without one."""
        found = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


class TestHub:
    """What the hub has, what goes wrong, and what it was asked."""

    __test__ = False  # no test, for all its name

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        """Hugging Face: repository → file → content."""
        self.modelscope: dict[str, bytes] = {}
        """ModelScope: `<repository>/resolve/<revision>/<file>` → content."""
        self.sums = True
        """Whether ModelScope's list has sums."""
        self.token: str | None = None
        """Needed to read anything on Hugging Face, if there is one."""
        self.ranges = True
        self.lengths = True
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def fault(self, where: str, times: int = 1, **what: Any) -> Fault:
        """Have something go wrong."""
        fault = Fault(where, times, **what)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """End all faults, and forget what was asked."""
        with self._lock:
            for fault in self._faults:
                fault.release.set()
            self._faults.clear()
            self.requests.clear()

    def downloads(self, name: str = "") -> list[Request]:
        """Return the requests for files' contents whose path contains `name`."""
        return [request for request in self.requests if request.is_download and name in request.path]

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.where in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: TestHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, {name.lower(): value for name, value in self.headers.items()})
        )
        if path.startswith("/api/v1/models/"):
            self._list_modelscope(path)
        elif path.startswith("/api/models/"):
            self._list(path)
        else:
            self._resolve(path)

    def _list(self, path: str) -> None:
        fault = self.hub.take_fault(path)
        if fault is not None and fault.status:
            return self._answer(fault.status, b"{}", fault.headers)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/\w+", path)
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None:
            # As the real one does for what it does not show.
            return self._answer(
                401 if "authorization" not in self.headers else 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            )
        if self._is_refused():
            return self._answer(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        siblings = [_sibling(name, content) for name, content in repository.items()]
        body = {"id": path, "modelId": path, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _list_modelscope(self, path: str) -> None:
        fault = self.hub.take_fault(path)
        if fault is not None and fault.status:
            return self._answer(fault.status, b"{}", fault.headers)
        query = parse_qs(urlsplit(self.path).query)
        found = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path)
        start = f"{found[1]}/resolve/{query['Revision'][0]}/" if found else "nothing"
        files = {name.removeprefix(start): it for name, it in self.hub.modelscope.items() if name.startswith(start)}
        if not files:
            return self._answer(404, b'{"Code":10010205001,"Message":"not found","Success":false}')
        if query["Recursive"] != ["true"]:
            files = {name: content for name, content in files.items() if "/" not in name}
        entries: list[dict[str, Any]] = [{"Path": "assets", "Name": "assets", "Size": 0, "Type": "tree", "Sha256": ""}]
        for name, content in files.items():
            entry = {"Path": name, "Name": name.rpartition("/")[2], "Size": len(content), "Type": "blob"}
            entries.append(entry | ({"Sha256": hashlib.sha256(content).hexdigest()} if self.hub.sums else {}))
        body = {"Code": 200, "Data": {"Files": entries, "IsVisual": 0}, "Message": "success", "Success": True}
        return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        if path.startswith("/models/"):
            content = self.hub.modelscope.get(path.removeprefix("/models/"))
            return self._answer(404, b"{}") if content is None else self._send(path, content)
        found = re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        content = self.hub.repositories.get(found[1], {}).get(found[3]) if found else None
        if content is None:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if path.startswith("/cdn/"):
            assert "authorization" not in self.headers, "a token went to another host"
        elif self._is_refused():
            return self._answer(401, b"{}")
        elif path.endswith(_LFS):
            return self._answer(302, b"", {"Location": f"http://localhost:{self.hub.port}/cdn{path}"})
        return self._send(path, content)

    def _is_refused(self) -> bool:
        return self.hub.token is not None and self.headers.get("authorization") != f"Bearer {self.hub.token}"

    def _send(self, path: str, content: bytes) -> None:
        fault = self.hub.take_fault(path)
        if fault is not None and fault.status:
            return self._answer(fault.status, b"{}", fault.headers)
        if fault is not None and fault.spoil:
            content = bytes(byte ^ 0xFF for byte in content)
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found and self.hub.ranges else 0
        if start and start >= len(content):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.hub.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        return self._write(content[start:], fault)

    def _write(self, content: bytes, fault: Fault | None) -> None:
        try:
            for offset in range(0, len(content), _PIECE):
                piece = content[offset : offset + _PIECE]
                if fault is not None and fault.hold_at is not None and offset >= fault.hold_at:
                    fault.reached.set()
                    fault.release.wait(_WAIT_S)
                if fault is not None and fault.cut_at is not None and offset + len(piece) > fault.cut_at:
                    self.wfile.write(content[offset : fault.cut_at])
                    self._drop()
                    return
                self.wfile.write(piece)
        except OSError:
            self.close_connection = True  # the client went away: tests kill it

    def _drop(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(_LFS):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
    return entry


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that are killed


@contextmanager
def running_hub() -> Iterator[TestHub]:
    """Run a hub in a thread."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        hub = TestHub(server.server_address[1])
        Handler.hub = hub
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.heal()
            server.shutdown()
            thread.join()
