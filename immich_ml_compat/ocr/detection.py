"""PP-OCR text detection: a photo to the boxes of its lines.

image → scaled to a multiple of 32 → probability map (in tiles where large) → boxes
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engine import Engine, Session
from ..outputs import require_finite
from ..store import ModelFiles
from ..tensors import VALUES, look_up, to_bgr
from .boxes import TextBoxes, boxes_from_map
from .scaling import scale

MIN_IMAGE_SIDE = 32
"""Nothing is found in an image with a shorter side (pixels)."""

SIDE_MULTIPLE = 32

MAX_TILE_SIDE = 1536
"""Larger inputs go through the network in tiles, so that its memory does not grow with them (pixels)."""

TILE_OVERLAP = 256
"""Half of it is thrown away on each side of a seam: more than the network sees around a pixel of text."""

MAX_INPUT_PIXELS = 16_000_000
"""Whatever `maxResolution` says, the scaled image has no more pixels, but for rounding to SIDE_MULTIPLE."""

_NORMALISED = np.tile(VALUES / np.float32(127.5) - np.float32(1), (3, 1))


class TextDetector:
    """A DB detection graph, ready to use."""

    def __init__(self, name: str, session: Session) -> None:
        self._name = name
        self._session = session

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "TextDetector":
        """Load the graph. Raises EngineError, or ValueError for a graph that gives no map."""
        session = engine.load(files.graph)
        shape = session.outputs[0].shape
        if len(session.outputs) != 1 or len(shape) != 4:
            raise ValueError(f"{files.graph} gives {shape}, a text detector one map [batch, 1, height, width]")
        return cls(files.name, session)

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once, on a page of the usual size."""
        self.detect(Image.new("RGB", (1104, 736)), 1.0, 736)

    def detect(self, image: Image.Image, min_score: float, max_resolution: int, min_resolution: int = 0) -> TextBoxes:
        """Find the lines of an RGB image that score at least `min_score`.

        The image's shorter side is scaled down to `max_resolution` pixels, and up to `min_resolution` as far as that
        is no more than one tile. Raises ModelOutputError.
        """
        if min(image.size) < MIN_IMAGE_SIDE:
            return TextBoxes.none()
        size = input_size(*image.size, max_resolution, min_resolution)
        scaled = scale(image, size, self._session.spare_threads)
        return boxes_from_map(self._probabilities(scaled), image.size, min_score)

    def _probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network on RGB uint8 [H, W, 3], tile by tile: float32 [H, W]."""
        height, width = pixels.shape[:2]
        probabilities = np.empty((height, width), np.float32)
        whole = height * width <= MAX_TILE_SIDE**2
        rows = [Span(0, height, 0, height)] if whole else tile_spans(height)
        columns = [Span(0, width, 0, width)] if whole else tile_spans(width)
        for row in rows:
            for column in columns:
                tile = self._run(pixels[row.start : row.stop, column.start : column.stop])
                probabilities[row.keep_start : row.keep_stop, column.keep_start : column.keep_stop] = tile[
                    row.keep_start - row.start : row.keep_stop - row.start,
                    column.keep_start - column.start : column.keep_stop - column.start,
                ]
        return probabilities

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        (output, *_) = self._session.run({self._session.inputs[0].name: normalise(pixels)})
        return require_finite(output[0, 0], self._name)


def input_size(width: int, height: int, max_resolution: int, min_resolution: int = 0) -> tuple[int, int]:
    """Return the (width, height) at which an image goes into the network."""
    shorter, pixels = min(width, height), width * height
    larger = min(min_resolution / shorter, MAX_TILE_SIDE / pixels**0.5)
    ratio = min(max_resolution / shorter, (MAX_INPUT_PIXELS / pixels) ** 0.5, max(1.0, larger))
    longest = MAX_INPUT_PIXELS // SIDE_MULTIPLE  # all that is left to bound where the other side cannot shrink
    return _to_multiple(min(width * ratio, longest)), _to_multiple(min(height * ratio, longest))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB uint8 [H, W, 3] to BGR float32 [1, 3, H, W] in -1…1."""
    return look_up(to_bgr(pixels), _NORMALISED)[None]


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis: the pixels it covers and the part of its result that is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def tile_spans(length: int) -> list[Span]:
    """Cover `length` pixels, a multiple of 32, with equal overlapping tiles; the kept parts join without gaps."""
    if length <= MAX_TILE_SIDE:
        return [Span(0, length, 0, length)]
    count = -(-(length - TILE_OVERLAP) // (MAX_TILE_SIDE - TILE_OVERLAP))
    tile = SIDE_MULTIPLE * -(-(length + (count - 1) * TILE_OVERLAP) // (count * SIDE_MULTIPLE))
    last = length - tile
    starts = [round(last * i / (count - 1) / SIDE_MULTIPLE) * SIDE_MULTIPLE for i in range(count)]
    seams = [0, *((start + tile + after) // 2 for start, after in pairwise(starts)), length]
    return [Span(start, start + tile, seams[i], seams[i + 1]) for i, start in enumerate(starts)]


def _to_multiple(side: float) -> int:
    return max(SIDE_MULTIPLE, round(int(side) / SIDE_MULTIPLE) * SIDE_MULTIPLE)
