"""Pages upside down or on their side.

Text that runs rightwards or downwards is read as it is; a page that has been turned the other way holds
the same boxes, only read from their other ends. So one question decides: does the page read better after
half a turn? It is put to the recogniser itself, and only where the usual reading went badly.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .crops import aspect_ratio, cut_line
from .recognition import Reading, TextRecognizer

GOOD_SCORE = 0.9
"""A page whose longest lines score this much is the right way up."""

READABLE_SCORE = 0.8
"""Below it a page is not read after half a turn either: it is in a script the model does not know."""

_SAMPLE = 8  # of the longest lines: enough to judge by, few enough to cost little
_MARGIN = 0.05  # by which half a turn must read better


def read_page(
    image: Image.Image, quads: NDArray[np.float32], recognizer: TextRecognizer, *, orientation: bool
) -> tuple[list[Reading], bool]:
    """Read the boxes [N, 4, 2] of an RGB image.

    Returns the readings in the boxes' order, and whether the page was read after half a turn; with
    `orientation` off it never is.
    """
    longest_first = sorted(range(len(quads)), key=lambda i: -aspect_ratio(quads[i]))

    widths: dict[int, int] = {}

    def cut(box: int, *, half_turn: bool) -> NDArray[np.uint8]:
        line = cut_line(image, quads[box], half_turn=half_turn)
        widths[box] = line.shape[1]
        return line

    def read(boxes: Sequence[int], *, half_turn: bool = False) -> dict[int, Reading]:
        lines = (cut(box, half_turn=half_turn) for box in boxes)
        return dict(zip(boxes, recognizer.read(lines, len(boxes)), strict=True))

    readings = read(longest_first)  # so that no long one is left when all others have been read
    usual = [readings[i] for i in range(len(quads))]
    if not orientation or not usual:
        return usual, False
    by_width = sorted(range(len(quads)), key=lambda i: -widths[i])
    sample, rest = by_width[:_SAMPLE], by_width[_SAMPLE:]
    score = _score([readings[i] for i in sample])
    if score >= GOOD_SCORE:
        return usual, False
    turned = read(sample, half_turn=True)
    if _score(list(turned.values())) < max(READABLE_SCORE, score + _MARGIN):
        return usual, False
    turned |= read(rest, half_turn=True)
    return [turned[i] for i in range(len(quads))], True


def _score(readings: Sequence[Reading]) -> float:
    """The mean score, weighted by length: an unreadable line often yields one sure wrong character."""
    length = sum(len(reading.text) for reading in readings)
    return sum(reading.score * len(reading.text) for reading in readings) / length if length else 0.0
