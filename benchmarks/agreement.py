"""Whether two servers give the same answers, photo by photo: the reference's count as right."""

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .forms import CONTENT_TYPE, QUERIES, form
from .servers import Server

SURE = 0.9
"""Lines that the reference scores lower are not compared: they are garbage as often as text."""

_TIMEOUT_S = 300

Answer = dict[str, Any]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """What was compared, how much of it, and the outcome beside its bar."""

    what: str
    of: int
    outcome: str
    bar: str
    holds: bool


def compare(ours: Server, reference: Server, photos: Sequence[tuple[str, bytes]]) -> list[Figure]:
    """Ask both servers everything once and compare."""
    images = [data for _, data in photos]

    def both(task: str, payloads: Sequence[bytes | str]) -> list[tuple[Answer, Answer]]:
        return [(ask(ours, task, payload), ask(reference, task, payload)) for payload in payloads]

    return [
        compare_clip("CLIP image, least cosine", both("clip", images)),
        compare_clip("CLIP text, least cosine", both("search", QUERIES)),
        *compare_faces(both("faces", images)),
        compare_ocr(both("ocr", images)),
    ]


def ask(server: Server, task: str, payload: bytes | str) -> Answer:
    """Return a server's answer. Raises HTTPError for any but a 200."""
    url = f"http://127.0.0.1:{server.port}/predict"
    request = urllib.request.Request(url, form(task, payload), {"Content-Type": CONTENT_TYPE})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        answer: Answer = json.load(response)
    return answer


def compare_clip(what: str, answers: Sequence[tuple[Answer, Answer]]) -> Figure:
    """Compare embeddings."""
    least = min(cosine(json.loads(a["clip"]), json.loads(b["clip"])) for a, b in answers)
    return Figure(what, len(answers), f"{least:.6f}", "≥ 0.999", least >= 0.999)


def compare_faces(answers: Sequence[tuple[Answer, Answer]]) -> list[Figure]:
    """Compare faces: as many, each box within a pixel, embeddings alike."""
    total, farthest, least = 0, 0.0, 1.0
    for ours, theirs in answers:
        found, expected = ours["facial-recognition"], theirs["facial-recognition"]
        total += len(expected)
        if len(found) != len(expected):
            farthest = float("inf")
        for face in expected:
            distances = [_distance(face, other) for other in found]
            if distances:
                nearest = found[int(np.argmin(distances))]
                farthest = max(farthest, min(distances))
                least = min(least, cosine(json.loads(face["embedding"]), json.loads(nearest["embedding"])))
    return [
        Figure("face boxes, farthest edge", total, f"{farthest:.0f} px", "≤ 1 px", total > 0 and farthest <= 1),
        Figure("face embeddings, least cosine", total, f"{least:.6f}", "≥ 0.998", total > 0 and least >= 0.998),
    ]


def compare_ocr(answers: Sequence[tuple[Answer, Answer]]) -> Figure:
    """Compare the text of lines that the reference is sure of, each with ours at the same place."""
    total = equal = 0
    for ours, theirs in answers:
        expected, found = lines(theirs["ocr"]), lines(ours["ocr"])
        for centre, text, score in expected:
            if score < SURE:
                continue
            total += 1
            nearest = min(found, key=lambda line: float(np.hypot(*(line[0] - centre))), default=None)
            equal += nearest is not None and nearest[1] == text
    share = equal / total if total else 0.0
    return Figure(f"OCR lines that score ≥ {SURE}, equal", total, f"{share:.1%}", "≥ 98 %", share >= 0.98)


def lines(ocr: Answer) -> list[tuple[Vector, str, float]]:
    """Return each line's centre (parts of the photo's sides), text and score."""
    boxes = np.array(ocr["box"], np.float64).reshape(-1, 4, 2)
    return list(zip(boxes.mean(axis=1), ocr["text"], ocr["textScore"], strict=True))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of two vectors."""
    x, y = np.array(a, np.float64), np.array(b, np.float64)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def _distance(face: Answer, other: Answer) -> float:
    """Return how far two boxes' edges are apart at most, in pixels."""
    ours, theirs = face["boundingBox"], other["boundingBox"]
    return max(abs(float(ours[edge]) - float(theirs[edge])) for edge in ("x1", "y1", "x2", "y2"))
