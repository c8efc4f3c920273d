"""A stand-in for CLIP: vectors with the geometry of its space, and a server that gives them to Immich for texts.

Real weights are not at hand. In CLIP's space pictures of one thing lie in a cluster, texts lie in a cone apart from all
pictures, and a text is far from every picture yet nearest to those of its thing. So a picture is `thing + noise`, the
text of a picture query `gap + affinity * thing + noise`, a photo of text is one of a thing of its own (signs), and the
text of what stands in a photo has no affinity to that photo. `blind`: it has none to anything; `misled`: it points at
pictures of some other thing.
"""

import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from numpy.typing import NDArray

from .labels import SUBJECTS, Photo

DIMENSIONS = 512
PICTURE_NOISE = 1.0
TEXT_AFFINITY = 0.35
TEXT_NOISE = 0.9

Vectors = NDArray[np.float32]


class Space:
    """The vectors of a library and of its queries. `misled`: words point at pictures of some thing."""

    def __init__(self, *, misled: bool) -> None:
        random = np.random.default_rng(7)
        self._things = _unit(random.normal(size=(len(SUBJECTS) + 1, DIMENSIONS)))
        self._gap = _unit(random.normal(size=(1, DIMENSIONS)))[0]
        self._misled = misled

    def pictures(self, photos: list[Photo]) -> Vectors:
        """Return unit vectors, float32 [photos, 512]; photos of text are all of the last thing."""
        noise = _unit(np.random.default_rng(8).normal(size=(len(photos), DIMENSIONS)))
        return _unit(self._things[[photo.subject for photo in photos]] + PICTURE_NOISE * noise)

    def text(self, query: str) -> Vectors:
        """Return the unit vector of a query, float32 [512], the same each time."""
        random = np.random.default_rng(zlib.crc32(query.encode()))
        noise = _unit(random.normal(size=(1, DIMENSIONS)))[0]
        affinity = TEXT_AFFINITY * self._thing(query, random)
        vector: Vectors = _unit((self._gap + affinity + TEXT_NOISE * noise)[None])[0]
        return vector

    def _thing(self, query: str, random: np.random.Generator) -> Vectors:
        for subject, names in enumerate(SUBJECTS):
            if query in names or any(query in name for name in names):
                return self._thing_vectors(subject)
        return self._thing_vectors(int(random.integers(len(SUBJECTS)))) * np.float32(self._misled)

    def _thing_vectors(self, subject: int) -> Vectors:
        vector: Vectors = self._things[subject]
        return vector


def _unit(vectors: NDArray[np.float64]) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def literal(vector: Vectors) -> str:
    """Write a vector as PostgreSQL and Immich read it."""
    return json.dumps([round(float(value), 6) for value in vector])


@contextmanager
def text_server(port: int) -> Iterator[list[Space]]:
    """Answer Immich's CLIP text requests on a port; the space is the first of the list that is given, to be set."""
    spaces = [Space(misled=False)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"pong")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            query = body.split('name="text"\r\n\r\n', 1)[1].split("\r\n--", 1)[0]
            self._answer(json.dumps({"clip": literal(spaces[0].text(query))}).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield spaces
    finally:
        server.shutdown()
        server.server_close()
