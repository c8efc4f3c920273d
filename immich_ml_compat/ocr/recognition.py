"""PP-OCR text recognition: strips of pixels to text.

lines [48, W, 3] → strips of bounded width → padded to one of few widths → CTC decoding → text and score
"""

import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine import Array, Engine, Session
from ..outputs import require_finite
from ..store import ModelFiles
from ..tensors import VALUES, look_up
from .crops import LINE_HEIGHT, split_line

MIN_WIDTH = 160
"""Narrower strips are padded (pixels). The recogniser was trained at 320, but padding is read as well: with less of it
213 of 214 sure lines of test photos and 248 of 249 short words came out alike, for a fifth less work."""

WIDTH_STEP, WIDE, WIDE_STEP = 32, 1024, 64
"""Strips are padded to a multiple of the first, from WIDE pixels on of the last: of each shape that comes an engine may
keep something, and strips of one shape can go in one batch (pixels)."""

_SPACE, _SPACE_BESIDE_WIDE, _SPACE_BETWEEN_WIDE = 7, 9, LINE_HEIGHT // 2
"""From so many pixels on a gap is a space, by what lies beside it: Latin letters, one Chinese character or Korean, two
Chinese characters. Seen in drawn lines: up to 6 pixels within words, 7 to 17 between them; in Korean up to 8.4 and from
9.3 on; beside one Chinese character up to 9 and from 9 on (95 % of either); up to 8 between two, 12 in Japanese."""

_HANGUL = "\uac00", "\ud7a3"
"""The first and the last syllable of Korean in Unicode."""

BLANK = 0

_NORMALISED = np.tile(VALUES / np.float32(127.5) - np.float32(1), (3, 1))


@dataclass(frozen=True, slots=True)
class Reading:
    """What stands in a line: its text, without control characters, and the mean score of its characters, 0…1."""

    text: str
    score: float


class TextRecognizer:
    """A CTC recognition graph and its character set, ready to use."""

    def __init__(self, name: str, session: Session, characters: Sequence[str]) -> None:
        self._name = name
        self._session = session
        self._characters = characters

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "TextRecognizer":
        """Load the graph and its characters. Raises EngineError, OSError or ValueError."""
        session = engine.load(files.graph)
        return cls(files.name, session, read_characters(session, files))

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once."""
        self.read([np.zeros((LINE_HEIGHT, MIN_WIDTH, 3), np.uint8)])

    def read(self, lines: Iterable[NDArray[np.uint8]], expected: int = 1) -> list[Reading]:
        """Read lines, each BGR uint8 [48, W, 3], taking the next ones while the first are read.

        `expected` is how many there will be. Raises ModelOutputError.
        """
        parts: list[list[tuple[int, Reading]]] = []
        places: deque[tuple[int, int]] = deque()

        def inputs() -> Iterator[Mapping[str, Array]]:
            name = self._session.inputs[0].name
            for index, line in enumerate(lines):
                parts.append([])
                for strip, gap in split_line(line):
                    places.append((index, gap))
                    yield {name: pad(strip)}

        for logits, *_ in self._session.run_many(inputs(), expected):
            index, gap = places.popleft()
            parts[index].append((gap, self._decode(logits)))
        return [_join(line) for line in parts]

    def _decode(self, logits: NDArray[np.float32]) -> Reading:
        """Decode the scores of one strip, [1, T, classes]."""
        classes = logits[0].argmax(axis=1)
        # The best score of every step: where one is not finite, neither is the one that argmax takes.
        best = np.take_along_axis(logits[0], classes[:, None], axis=1)[:, 0]
        return decode(classes, require_finite(best, self._name), self._characters)


def padded_width(width: int) -> int:
    """Return the width of the network's input for a strip of that width."""
    step = WIDTH_STEP if width <= WIDE else WIDE_STEP
    return max(MIN_WIDTH, -(-width // step) * step)


def pad(strip: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalise a strip uint8 [48, W, 3] to -1…1 and pad it with 0: float32 [1, 3, 48, padded_width(W)]."""
    padded = np.zeros((1, 3, LINE_HEIGHT, padded_width(strip.shape[1])), np.float32)
    look_up(strip, _NORMALISED, padded[0])
    return padded


def decode(steps: NDArray[np.intp], scores: NDArray[np.float32], characters: Sequence[str]) -> Reading:
    """Decode one strip greedily from its best class and score per step, both [T]: repeats, then blanks, go.

    Graves et al. 2006, "Connectionist Temporal Classification", section 3.2 (best path decoding).
    """
    chosen = steps != BLANK
    chosen[1:] &= steps[1:] != steps[:-1]
    text = "".join(characters[step] for step in steps[chosen])
    return Reading(without_controls(text), float(scores[chosen].mean()) if chosen.any() else 0.0)


def without_controls(text: str) -> str:
    """Drop control characters: PostgreSQL refuses a NUL, and with it Immich drops the photo's whole text."""
    return "".join(character for character in text if unicodedata.category(character) != "Cc")


def read_characters(session: Session, files: ModelFiles) -> list[str]:
    """Return the character of each class: blank, the listed ones, space.

    They stand in the graph's metadata or in a `charset.txt` beside it, one a line; some lists hold the blank
    and the space themselves. Raises OSError, or ValueError where their number is not the graph's.
    """
    listed = session.metadata.get("character") or files.beside("charset.txt").read_text(encoding="utf-8")
    characters = [line.removesuffix("\r") for line in listed.removesuffix("\n").split("\n")]
    classes = session.outputs[0].shape[-1]
    if classes != len(characters):
        characters = ["", *characters, " "]
    if classes not in (len(characters), None):
        raise ValueError(f"{files.graph} has {classes} classes, its character set {len(characters)}")
    return characters


def _join(parts: Sequence[tuple[int, Reading]]) -> Reading:
    """Put a line's strips together again; its score is the mean of theirs, weighted by length."""
    text = ""
    for gap, reading in parts:
        text += " " + reading.text if _are_words(text, reading.text, gap) else reading.text
    length = sum(len(reading.text) for _, reading in parts)
    score = sum(reading.score * len(reading.text) for _, reading in parts) / length if length else 0.0
    return Reading(text, score)


def _are_words(left: str, right: str, gap: int) -> bool:
    """Tell whether a gap of so many pixels between two pieces of text is a space."""
    if not left or not right:
        return False
    beside = left[-1] + right[0]
    wide = [character for character in beside if unicodedata.east_asian_width(character) in "WF"]
    if any(unicodedata.category(character).startswith("P") for character in wide):
        return False  # half of the place of such a comma is empty
    if any(_HANGUL[0] <= character <= _HANGUL[1] for character in wide):
        return gap >= _SPACE_BESIDE_WIDE
    return gap >= (_SPACE, _SPACE_BESIDE_WIDE, _SPACE_BETWEEN_WIDE)[len(wide)]
