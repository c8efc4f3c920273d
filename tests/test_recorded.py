"""Real Immich requests, byte for byte, down a socket."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from .model_folders import CLIP, FACES, OCR
from .server import Server

REQUESTS = Path(__file__).parent / "recorded"


def replay(server: Server, name: str, models: dict[bytes, bytes] | None = None) -> tuple[int, dict[str, str], bytes]:
    """Send a recorded request as it is, but for model names of the same length; return what comes back."""
    request = (REQUESTS / f"{name}.http").read_bytes()
    for recorded, here in (models or {}).items():
        request = request.replace(recorded, here)
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
    answer: dict[str, Any] = json.loads(body)
    assert status == 200
    for face in answer["facial-recognition"]:
        assert len(json.loads(face["embedding"])) == 512
        assert all(corner == round(corner) for corner in face["boundingBox"].values())


def test_ocr(server: Server) -> None:
    status, _, body = replay(server, "ocr")
    assert status == 200
    ocr = json.loads(body)["ocr"]
    assert list(ocr) == ["box", "text", "boxScore", "textScore"]
    assert len(ocr["box"]) == 8 * len(ocr["text"])


def test_answers_are_compact_json_with_text_as_it_is(server: Server) -> None:
    _, _, body = replay(server, "clip-visual")
    assert not re.search(rb"[,:] ", body)
    assert CLIP not in body.decode()
    assert OCR not in body.decode()
