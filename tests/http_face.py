"""An HTTP face over an answerer of the test's own, and the forms to send it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio.to_thread
import httpx
import pytest
import uvicorn

from immich_ml_compat.body import BodyLimits
from immich_ml_compat.connection import PatientConnection
from immich_ml_compat.http_api import create_app
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.room import BodyRoom

ENTRIES = '{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}'
MULTIPART = "multipart/form-data; boundary=B"
URLENCODED = "application/x-www-form-urlencoded"

LIMITS = BodyLimits()

UNFINISHED_PART = pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning")
"""Starlette forgets the in-memory file of a part that is cut short; nothing but memory is behind it."""


@contextmanager
def serving(
    answer: Callable[[PredictRequest], Answer],
    threads: int = 2,
    limits: BodyLimits = LIMITS,
    room: BodyRoom | None = None,
) -> Iterator[str]:
    """Serve an answerer from a thread, as the server does; yield the address."""
    limiter = anyio.CapacityLimiter(threads)

    async def in_thread(request: PredictRequest) -> Answer:
        return await anyio.to_thread.run_sync(answer, request, limiter=limiter)

    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(in_thread, lambda: None, limits=limits, room=room)
    connection = PatientConnection.with_patience(limits.patience_s)
    server = uvicorn.Server(uvicorn.Config(app, http=connection, ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


class Recorder:
    """An answerer that keeps what it is asked."""

    def __init__(self) -> None:
        self.requests: list[PredictRequest] = []

    def __call__(self, request: PredictRequest) -> Answer:
        self.requests.append(request)
        return Answer(200, b'{"ok":1}')


class Face:
    """The HTTP face with a recorder behind it."""

    def __init__(self, url: str, recorder: Recorder) -> None:
        self.url = url
        self.recorder = recorder

    def post(self, body: bytes | Iterator[bytes], content_type: str | bytes | None) -> httpx.Response:
        headers: list[tuple[bytes, bytes]] = []
        if content_type is not None:
            value = content_type if isinstance(content_type, bytes) else content_type.encode()
            headers.append((b"content-type", value))
        return httpx.post(f"{self.url}/predict", content=body, headers=headers, timeout=20)

    def asked(self, body: bytes | Iterator[bytes], content_type: str = MULTIPART) -> PredictRequest:
        """Post what is a good form, and return what the answerer got."""
        self.recorder.requests.clear()
        response = self.post(body, content_type)
        assert (response.status_code, response.content) == (200, b'{"ok":1}'), response.text
        assert response.headers["content-type"] == "application/json"
        (request,) = self.recorder.requests
        return request

    def still_answers(self) -> None:
        assert httpx.get(f"{self.url}/ping", timeout=20).text == "pong"


def field(name: str, value: bytes | str, extra: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode()
    return head + (value.encode() if isinstance(value, str) else value)


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


GOOD = field("entries", ENTRIES)
IMAGE = field("image", b"\xff\0\r\npixels", '; filename="blob"')


NESTED = b"Content-Type: multipart/mixed; boundary=C\r\n\r\n--C\r\n" + GOOD + b"\r\n--C--"
BAD_FORMS: dict[str, tuple[str | bytes, bytes]] = {
    "no boundary": ("multipart/form-data", form(GOOD)),
    "empty boundary": ("multipart/form-data; boundary=", form(GOOD)),
    "another boundary": ("multipart/form-data; boundary=C", form(GOOD)),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 300, form(GOOD)),
    "odd boundary": ("multipart/form-data; boundary=é".encode("latin-1"), form(GOOD)),
    "cut in the entries": (MULTIPART, form(GOOD)[:-20]),
    "cut in the image": (MULTIPART, b"--B\r\n" + IMAGE),
    "cut in a header": (MULTIPART, form(GOOD)[:20]),
    "cut after the boundary": (MULTIPART, b"--B"),
    "bare newlines": (MULTIPART, form(GOOD).replace(b"\r\n", b"\n")),
    "text before": (MULTIPART, b"hello\r\n" + form(GOOD)),
    "huge header": (MULTIPART, form(b"X-A: " + b"a" * 1_000_000 + b"\r\n" + GOOD)),
    "many headers": (MULTIPART, form(b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + GOOD)),
    "header without colon": (MULTIPART, form(b"nonsense\r\n" + GOOD)),
    "no name": (MULTIPART, form(b"Content-Disposition: form-data\r\n\r\nx")),
    "no disposition": (MULTIPART, form(b"X: y\r\n\r\nx")),
    "nested": (MULTIPART, form(NESTED)),
    "many fields": (MULTIPART, form(GOOD, *(field(f"a{i}", "") for i in range(5000)))),
    "many files": (MULTIPART, form(GOOD, *(field(f"a{i}", "", '; filename="a"') for i in range(5000)))),
    "long text": (MULTIPART, form(GOOD, field("text", "a" * 2_000_000))),
    "long entries": (MULTIPART, form(field("entries", "[" * 2_000_000))),
    "many fields, url-encoded": (URLENCODED, b"a=b&" * 5000),
    "long text, url-encoded": (URLENCODED, b"text=" + b"a" * 2_000_000),
    "long name, url-encoded": (URLENCODED, b"a" * 2_000_000),
}


CHARSETS = [
    "undefined",
    "punycode",
    "idna",
    "zlib",
    "utf-7",
    "unicode_escape",
    "raw_unicode_escape",
    "utf-16",
    "nonsense",
]
