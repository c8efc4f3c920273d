"""Real Immich requests, byte for byte, down a socket."""

import json
import re
import socket
from pathlib import Path

import pytest

from .model_folders import FACES, OCR
from .oracles import packaged
from .pages import edit_distance
from .server import Server

REQUESTS = Path(__file__).parent / "recorded"


def replay(server: Server, name: str, models: dict[bytes, bytes] | None = None) -> tuple[int, dict[str, str], bytes]:
    """Send a recorded request as it is, but for model names of the same length; return what comes back."""
    request = (REQUESTS / f"{name}.http").read_bytes()
    for recorded, here in (models or {}).items():
        request = request.replace(recorded, here)
    return exchange(server, request)


def exchange(server: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes down a socket; return the status, the headers and the body of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
    return int(status.split()[1]), headers, body


def test_ping(server: Server) -> None:
    status, headers, body = replay(server, "ping")
    assert (status, body) == (200, b"pong")
    assert headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("name", ["clip-textual", "clip-textual-web", "clip-visual"])
def test_clip(server: Server, name: str) -> None:
    status, headers, body = replay(server, name)
    assert (status, headers["content-type"]) == (200, "application/json")
    answer = json.loads(body)
    assert len(json.loads(answer["clip"])) == 512
    assert set(answer) == ({"clip", "imageHeight", "imageWidth"} if "visual" in name else {"clip"})


def test_faces(server: Server) -> None:
    request = (REQUESTS / "face.http").read_bytes()
    assert request.count(b"buffalo_l") == 2
    status, _, body = replay(server, "face", {b"buffalo_l": FACES.encode()})
    assert status == 200
    assert body == b'{"facial-recognition":[],"imageHeight":700,"imageWidth":1000}', "the photo shows none"


def test_ocr(server: Server) -> None:
    status, _, body = replay(server, "ocr")
    assert status == 200
    ocr = json.loads(body)["ocr"]
    assert list(ocr) == ["box", "text", "boxScore", "textScore"]
    # The stock server pads the second line to the first one's width, this one does not: a letter may differ.
    assert len(ocr["text"]) == 2
    assert edit_distance(" ".join(ocr["text"]), "Invoice 2026-0417 ACME Corp.") <= 1
    assert len(ocr["box"]) == 16


def test_faces_in_the_recorded_form(server: Server) -> None:
    """The same request with a photo of faces in place of the recorded one."""
    photo = packaged("insightface", "data/images/t1.jpg").read_bytes()
    request = (REQUESTS / "face.http").read_bytes().replace(b"buffalo_l", FACES.encode())
    head, _, body = request.partition(b"\r\n\r\n")
    start = body.index(b"octet-stream\r\n\r\n") + len(b"octet-stream\r\n\r\n")
    body = body[:start] + photo + body[body.rindex(b"\r\n------") :]
    head = re.sub(rb"content-length: \d+", b"content-length: %d" % len(body), head)
    status, _, answer = exchange(server, head + b"\r\n\r\n" + body)
    faces = json.loads(answer)["facial-recognition"]
    assert status == 200
    assert len(faces) == 6
    for face in faces:
        assert len(json.loads(face["embedding"])) == 512
        assert all(corner == round(corner) for corner in face["boundingBox"].values())


def test_answers_are_compact_json_with_text_as_it_is(server: Server) -> None:
    entries = {"ocr": {kind: {"modelName": OCR} for kind in ("detection", "recognition")}}
    body = server.predict(entries, (Path(__file__).parents[1] / "docs/invoice.jpg").read_bytes()).content
    assert "电子发票Invoice".encode() in body
    assert b'": ' not in body
    assert b', "' not in body
