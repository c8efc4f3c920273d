"""Does the hybrid search put the photo with the words first, and leave searches for pictures as they are?"""

import math
from collections.abc import Sequence
from pathlib import Path

from .drawing import read
from .immich import Database, Immich
from .labels import CONFLICTS, PICTURES_EACH, SUBJECTS, photos
from .space import Space

DEPTH = PICTURES_EACH


def measure_quality(immich: Immich, database: Database, spaces: list[Space], server: str, cache: Path) -> list[str]:
    """Fill the library with the labelled photos, search, and return a Markdown table's lines."""
    library = photos()
    texts = read(library, server, cache)
    spaces[:] = [Space(misled=False)]
    database.fill([photo.name for photo in library], texts, spaces[0].pictures(library))
    asked = [photo for photo in library if photo.query]
    exact = sum(
        "".join(photo.lines).replace(" ", "") == "".join(t).replace(" ", "")
        for photo, t in zip(library, texts, strict=True)
    )
    noise = sum(bool(t) for photo, t in zip(library, texts, strict=True) if not photo.lines)
    rows = [
        f"{len(library)} photos, {len(asked)} with text that is asked for; OCR read {exact} photos to the letter and "
        f"saw text in {noise} of {sum(not photo.lines for photo in library)} pictures without any.",
        "",
        "| query | measure | stock smart search | stock OCR search | hybrid |",
        "|---|---|---|---|---|",
    ]
    for kind, name in {"zh-": "Chinese words", "en-": "English words", "one-": "one Chinese character"}.items():
        group = [(photo.name, photo.query) for photo in asked if photo.name.startswith(kind)]
        for misled in (False, True):
            spaces[:] = [Space(misled=misled)]
            found = [_first(immich, query, name, f"misled-{misled}") for name, query in group]
            shares = " | ".join(f"{100 * sum(column) / len(group):.1f} %" for column in zip(*found, strict=True))
            rows.append(
                f"| {len(group)} × {name}, CLIP {'misled' if misled else 'blind'} | right photo first | {shares} |"
            )
    for label, queries in _picture_queries().items():
        gains = [[_ndcg(immich.search(q, hybrid=h), s) for q, s in queries] for h in (False, True)]
        stock, hybrid = (sum(values) / len(values) for values in gains)
        rows.append(
            f"| {len(queries)} × {label} | nDCG@{DEPTH} | {stock:.4f} | | {hybrid:.4f} ({hybrid / stock - 1:+.2%}) |"
        )
    return rows


def _first(immich: Immich, query: str, name: str, space: str) -> tuple[bool, bool, bool]:
    found = (
        immich.search(query, hybrid=False, language=space),
        immich.search_ocr(query),
        immich.search(query, hybrid=True, language=space),
    )
    stock, ocr, hybrid = (names[:1] == [name] for names in found)
    return stock, ocr, hybrid


def _picture_queries() -> dict[str, list[tuple[str, int]]]:
    whole = [(name, subject) for subject, names in enumerate(SUBJECTS) for name in names]
    words = [(word, subject) for word in CONFLICTS for subject, names in enumerate(SUBJECTS) if word in "".join(names)]
    return {"picture, as a phrase": whole, "picture, as one word that stands in 5 other photos": words}


def _ndcg(names: Sequence[str], subject: int) -> float:
    hits = [name.startswith(f"picture-{subject}-") for name in names[:DEPTH]]
    ideal = sum(1 / math.log2(i + 2) for i in range(DEPTH))
    return sum(hit / math.log2(i + 2) for i, hit in enumerate(hits)) / ideal
