"""How much a client may send, and how long it may take."""

import socket
import threading
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import httpx
import pytest

from immich_ml_compat.body import BodyLimits
from immich_ml_compat.messages import Answer, PredictRequest

from .http_face import GOOD, MULTIPART, URLENCODED, Face, Recorder, form, serving
from .server import exchange, running_server
from .test_http_clients import head, raw

MEGABYTE = 1_000_000
TOO_LARGE = {"detail": "The body is larger than 1 MB, the most that MACHINE_LEARNING_MAX_BODY_MB allows"}
SILENT = b'{"detail":"No byte of the body came for 1 s, the most that MACHINE_LEARNING_HEADER_TIMEOUT_S allows"}'
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def face() -> Iterator[Face]:
    recorder = Recorder()
    with serving(recorder, limits=BodyLimits(most_mb=1, patience_s=1)) as url:
        yield Face(url, recorder)


def port(face: Face) -> int:
    return int(face.url.rsplit(":", 1)[1])


def of_length(length: int) -> bytes:
    image = b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    padding = length - len(form(GOOD, image))
    return form(GOOD, image + bytes(padding))


def until(end: bytes, connection: socket.socket) -> bytes:
    """Receive what ends like this."""
    answer = b""
    while not answer.endswith(end):
        received = connection.recv(65536)
        assert received, answer
        answer += received
    return answer


def drip(connection: socket.socket, piece: bytes) -> None:
    """Send a little again and again, until the server has closed."""
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            connection.sendall(piece)
            time.sleep(0.05)
    except ConnectionError:
        return
    raise AssertionError("the server would have gone on for ever")


# ---------------------------------------------------------------- how much


@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_itself_is_taken(face: Face, chunked: bool) -> None:
    body = of_length(MEGABYTE)
    assert len(body) == MEGABYTE
    assert face.asked(iter([body]) if chunked else body).entries
    larger = of_length(MEGABYTE + 1)
    answer = face.post(iter([larger]) if chunked else larger, MULTIPART)
    assert (answer.status_code, answer.json()) == (413, TOO_LARGE)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("content_type", [MULTIPART, URLENCODED, "text/plain"])
@pytest.mark.parametrize("length", [MEGABYTE + 1, 10**15])
def test_a_length_that_is_too_much_is_refused_before_the_body(face: Face, length: int, content_type: str) -> None:
    request = head(f"Content-Length: {length}").replace(MULTIPART.encode(), content_type.encode())
    for extra in (b"", b"Expect: 100-continue\r\n"):
        with raw(face.url, request.removesuffix(b"\r\n") + extra + b"\r\n") as connection:
            assert until(b'allows"}', connection).startswith(b"HTTP/1.1 413 "), "and no 100: it need not send it"


def test_then_the_connection_is_closed(face: Face) -> None:
    body = b"x" * 100_000
    assert exchange(port(face), head(f"Content-Length: {10**9}"), body, body, body).endswith(b'allows"}')


@pytest.mark.parametrize("content_type", [MULTIPART, URLENCODED])
def test_a_body_without_a_length_is_counted(face: Face, content_type: str) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        start = form(GOOD, b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n', end=b"")
        yield start[:-2] if content_type == MULTIPART else b"entries=%7B%7D&a="
        for piece in repeat(b"a" * 10_000, 10**6):  # 10 GB
            sent += len(piece)
            yield piece

    face.recorder.requests.clear()
    answer = face.post(pieces(), content_type)
    if content_type == MULTIPART:
        assert (answer.status_code, answer.json()) == (413, TOO_LARGE)
    else:
        assert answer.status_code in (400, 413), "a field has a limit of its own"
    assert sent < 2 * 10**9
    assert face.recorder.requests == []
    face.still_answers()


# ---------------------------------------------------------------- how long


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", PING],
    ids=["nothing", "a letter", "a head without end"],
)
def test_a_head_that_is_not_finished(face: Face, sent: bytes) -> None:
    assert exchange(port(face), sent) == b""


def test_a_head_that_comes_drop_by_drop(face: Face) -> None:
    with socket.create_connection(("127.0.0.1", port(face)), timeout=60) as connection:
        connection.sendall(PING)
        drip(connection, b"X: y\r\n")


def test_a_slow_head_after_an_answer(face: Face) -> None:
    with socket.create_connection(("127.0.0.1", port(face)), timeout=60) as connection:
        connection.sendall(PING + b"\r\n")
        assert until(b"pong", connection)
        connection.sendall(b"GET /")
        drip(connection, b"x")


def test_an_idle_connection_is_not_timed_by_this(face: Face) -> None:
    with httpx.Client(base_url=face.url) as client:
        assert client.get("/ping").text == "pong"
        stream = client._transport._pool.connections[0]  # type: ignore[attr-defined]
        time.sleep(1.5)  # the face keeps it for 5
        assert client.get("/ping").text == "pong"
        assert client._transport._pool.connections == [stream]  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("started", [False, True])
def test_a_body_that_stops(face: Face, length: str, started: bool) -> None:
    body = (b"5\r\n--B\r\n\r\n" if "chunked" in length else b"--B\r\n") if started else b""
    with raw(face.url, head(length) + body) as connection:
        answer = until(SILENT, connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer


def test_a_body_that_comes_slowly_is_taken() -> None:
    def pieces() -> Iterator[bytes]:
        body = form(GOOD)
        for start in range(0, len(body), 8):
            time.sleep(0.3)
            yield body[start : start + 8]

    assert len(form(GOOD)) / 8 * 0.3 > 3
    recorder = Recorder()
    with serving(recorder, limits=BodyLimits(patience_s=3)) as url:
        assert Face(url, recorder).asked(pieces()).entries


def test_a_body_that_nobody_waits_for_is_not_received_for_ever(face: Face) -> None:
    request = head("Content-Length: 1000000").replace(MULTIPART.encode(), b"text/plain")
    with socket.create_connection(("127.0.0.1", port(face)), timeout=60) as connection:
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")
        drip(connection, b"x")


def test_a_request_that_is_worked_on_has_all_the_time() -> None:
    go_on = threading.Event()

    def slow(_: PredictRequest) -> Answer:
        assert go_on.wait(60)
        return Answer(200, b"{}")

    with serving(slow, threads=1, limits=BodyLimits(patience_s=1)) as url:
        request = head(f"Content-Length: {len(form(GOOD))}") + form(GOOD)
        with raw(url, request + PING) as first, raw(url, request) as second:
            time.sleep(2)
            go_on.set()
            for connection in (first, second):
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


# ---------------------------------------------------------------- the whole server


def test_the_settings_are_the_limits(tmp_path: Path) -> None:
    variables = {"MACHINE_LEARNING_MAX_BODY_MB": "1", "MACHINE_LEARNING_HEADER_TIMEOUT_S": "1"}
    with running_server(tmp_path, tmp_path, variables) as server:
        answer = httpx.post(
            f"{server.url}/predict", content=of_length(MEGABYTE + 1), headers={"Content-Type": MULTIPART}
        )
        assert (answer.status_code, answer.json()) == (413, TOO_LARGE)
        assert exchange(server.port, PING) == b""
        with raw(server.url, head("Content-Length: 1000")) as connection:
            assert until(SILENT, connection)
        assert httpx.get(f"{server.url}/ping").text == "pong"
        assert "Traceback" not in server.log.read_text()


def test_nonsense_after_the_answer_closes_the_connection_and_is_no_error(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: %b\r\n"
    nonsense = chunked % MULTIPART.encode() + b"Connection: close\r\n\r\n4\r\nnope\r\n"
    answer = exchange(port(face), nonsense, b"ZZ\r\n")  # answered by then: that is no form
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    too_large = head("Transfer-Encoding: chunked") + b"%x\r\n" % (MEGABYTE + 1) + bytes(MEGABYTE + 1)
    assert exchange(port(face), too_large, b"ZZ\r\n").count(b"HTTP/1.1") == 1  # the answer is being ended
    face.still_answers()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
