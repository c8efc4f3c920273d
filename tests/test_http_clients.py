"""Clients that behave badly, and answerers that are slow or broken."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from immich_ml_compat.messages import Answer, PredictRequest

from .http_face import (
    BAD_FORMS,
    CHARSETS,
    GOOD,
    IMAGE,
    MULTIPART,
    Face,
    Recorder,
    field,
    form,
    serving,
)
from .model_folders import CLIP
from .server import Server


@pytest.fixture(scope="module")
def face() -> Iterator[Face]:
    recorder = Recorder()
    with serving(recorder) as url:
        yield Face(url, recorder)


# ---------------------------------------------------------------- clients that behave badly


def raw(url: str, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)
    connection.sendall(request)
    return connection


def head(length: str, extra: str = "") -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\n{length}\r\n{extra}\r\n".encode()


@pytest.mark.parametrize(
    "request_bytes",
    [
        head("Content-Length: nonsense") + form(GOOD),
        head("Content-Length: -1") + form(GOOD),
        head("Content-Length: 5", "Content-Length: 6\r\n") + form(GOOD),
        head("Transfer-Encoding: chunked") + b"ZZZ\r\n",
        head("Transfer-Encoding: nonsense") + form(GOOD),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"nonsense\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=lambda request: ascii(request[60:110]),
)
def test_what_is_not_http(face: Face, request_bytes: bytes) -> None:
    with raw(face.url, request_bytes) as connection, suppress(ConnectionResetError):
        assert connection.recv(65536).split(b" ", 2)[1].startswith(b"4")
    face.still_answers()


def test_no_length_at_all_is_an_empty_body(face: Face) -> None:
    with raw(face.url, head("X: y")) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 422")


def test_clients_that_leave_in_the_middle_of_an_upload(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    face.recorder.requests.clear()
    body = form(GOOD, IMAGE)
    for cut in (0, 3, 40, 100, len(body) - 1):
        raw(face.url, head(f"Content-Length: {len(body)}") + body[:cut]).close()
        raw(face.url, head("Transfer-Encoding: chunked") + b"%x\r\n" % len(body) + body[:cut]).close()
    face.still_answers()
    time.sleep(0.3)
    assert face.recorder.requests == []
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


def test_clients_that_leave_before_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def slow(_: PredictRequest) -> Answer:
        entered.release()
        assert go_on.wait(30)
        return Answer(200, b"{}" * 1_000_000)

    with serving(slow) as url:
        face = Face(url, Recorder())
        for _ in range(2):
            with raw(url, head(f"Content-Length: {len(form(GOOD))}") + form(GOOD)):
                assert entered.acquire(timeout=30)
        go_on.set()
        for _ in range(3):
            assert face.post(form(GOOD), MULTIPART).status_code == 200, "both threads are free again"
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


# ---------------------------------------------------------------- the answerer


@pytest.mark.parametrize("status", [200, 400, 422, 500])
def test_an_answer_is_passed_on_as_it_is(status: int) -> None:
    body = '{"detail":"海"}'.encode()
    with serving(lambda _: Answer(status, body)) as url:
        response = Face(url, Recorder()).post(form(GOOD), MULTIPART)
    assert (response.status_code, response.content) == (status, body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(body))


def test_ping_answers_while_every_thread_is_busy_and_requests_wait() -> None:
    entered, go_on, lock, running = threading.Semaphore(0), threading.Event(), threading.Lock(), [0, 0]

    def slow(_: PredictRequest) -> Answer:
        with lock:
            running[0] += 1
            running[1] = max(running)
        entered.release()
        assert go_on.wait(30)
        with lock:
            running[0] -= 1
        return Answer(200, b"{}")

    with serving(slow, threads=3) as url, ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(Face(url, Recorder()).post, form(GOOD, IMAGE), MULTIPART) for _ in range(12)]
        try:
            assert all(entered.acquire(timeout=30) for _ in range(3))
            start = time.monotonic()
            Face(url, Recorder()).still_answers()
            assert time.monotonic() - start < 1
        finally:
            go_on.set()
        assert [request.result().status_code for request in waiting] == [200] * 12, "they queue; none is turned away"
    assert running == [0, 3]


def test_an_unexpected_exception_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: PredictRequest) -> Answer:
        raise RuntimeError("a bug")

    with serving(broken) as url:
        face = Face(url, Recorder())
        for _ in range(5):
            assert face.post(form(GOOD), MULTIPART).status_code == 500
        face.still_answers()
    assert "a bug" in caplog.text


# ---------------------------------------------------------------- the whole server


def test_the_whole_server_takes_it_too(server: Server) -> None:
    before = len(server.log.read_text())
    face = Face(server.url, Recorder())
    for content_type, body in BAD_FORMS.values():
        assert face.post(body, content_type).status_code in (400, 422)
    for charset in CHARSETS:
        textual = field("entries", json.dumps({"clip": {"textual": {"modelName": CLIP}}}))
        body = form(textual, field("text", b"+2AA- \\ud800 \xff"))
        assert face.post(body, f"{MULTIPART}; charset={charset}").status_code in (200, 400, 422)
    raw(server.url, head("Content-Length: 1000") + form(GOOD)[:30]).close()
    face.still_answers()
    time.sleep(0.3)
    assert "Traceback" not in server.log.read_text()[before:]
