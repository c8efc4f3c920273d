"""From a text probability map to boxes: the post-processing of Differentiable Binarization.

Liao et al. 2020, "Real-time Scene Text Detection with Differentiable Binarization", section 3.4, with the
constants of PP-OCR: binarise, dilate, find contours, score each, grow it by the Vatti clipping offset.
"""

import math
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

BINARY_THRESHOLD = 0.3
UNCLIP_RATIO = 1.6
MAX_CANDIDATES = 1000

_MIN_CONTOUR_SIDE = 3  # pixels of the map; anything thinner is noise
_MIN_BOX_SIDE = 5  # pixels of the map, once grown
_MIN_IMAGE_SIDE = 3  # pixels of the image
_DILATION = np.ones((2, 2), np.uint8)


@dataclass(frozen=True)
class TextBoxes:
    """N boxes around lines of text."""

    quads: NDArray[np.float32]
    """Top left, top right, bottom right, bottom left, as x, y in pixels of the image: [N, 4, 2]."""

    scores: NDArray[np.float32]
    """[N], 0…1."""

    @classmethod
    def none(cls) -> "TextBoxes":
        """No boxes at all."""
        return cls(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32))

    def __getitem__(self, chosen: NDArray[np.intp] | list[int]) -> "TextBoxes":
        """The boxes of these indices, in their order."""
        return TextBoxes(self.quads[chosen], self.scores[chosen])


def boxes_from_map(probabilities: NDArray[np.float32], image_size: tuple[int, int], min_score: float) -> TextBoxes:
    """Find the boxes that score at least `min_score` in a map [H, W] of an image of (width, height) pixels."""
    binary = cv2.dilate((probabilities > BINARY_THRESHOLD).astype(np.uint8), _DILATION)
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) > MAX_CANDIDATES:
        contours = sorted(contours, key=cv2.contourArea, reverse=True)[:MAX_CANDIDATES]
    scale = np.array(image_size) / (probabilities.shape[1], probabilities.shape[0])
    last_pixel = np.array(image_size) - 1
    quads: list[NDArray[np.float32]] = []
    scores: list[float] = []
    for contour in contours:
        core, side = _smallest_rectangle(contour)
        if side < _MIN_CONTOUR_SIDE:
            continue
        score = _mean_inside(probabilities, core)
        if score < min_score:
            continue
        quad, side = _smallest_rectangle(_grow(core))
        if side < _MIN_BOX_SIDE:
            continue
        quad = np.round(quad * scale).clip(0, last_pixel).astype(np.float32)
        if _is_large_enough(quad):
            quads.append(quad)
            scores.append(score)
    if not quads:
        return TextBoxes.none()
    return TextBoxes(np.stack(quads), np.array(scores, np.float32))


def _smallest_rectangle(points: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return the rotated rectangle of least area around points, and its shorter side."""
    rectangle = cv2.minAreaRect(points)
    return order_corners(cv2.boxPoints(rectangle)), min(rectangle[1])


def order_corners(points: NDArray[Any]) -> NDArray[np.float32]:
    """Order four corners [4, 2]: top left, top right, bottom right, bottom left.

    The two leftmost make the left side, the upper of each side comes first.
    """
    # For four points lists are several times faster than arrays.
    corners = sorted(points.tolist(), key=itemgetter(0))
    top_left, bottom_left = sorted(corners[:2], key=itemgetter(1))
    top_right, bottom_right = sorted(corners[2:], key=itemgetter(1))
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)


def _mean_inside(probabilities: NDArray[np.float32], quad: NDArray[np.float32]) -> float:
    """Return the mean probability inside a quadrilateral: the box's score."""
    xs, ys = quad.T.tolist()
    left, right = _pixels_between(xs, probabilities.shape[1])
    top, bottom = _pixels_between(ys, probabilities.shape[0])
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(mask, [(quad - (left, top)).astype(np.int32)], [1])
    return float(cv2.mean(probabilities[top : bottom + 1, left : right + 1], mask)[0])


def _pixels_between(coordinates: list[float], length: int) -> tuple[int, int]:
    """Return the first and the last pixel of an axis of that length that a shape with these corners touches."""
    first, last = math.floor(min(coordinates)), math.ceil(max(coordinates))
    return min(max(first, 0), length - 1), min(max(last, 0), length - 1)


def _grow(quad: NDArray[np.float32]) -> NDArray[np.int32]:
    """Offset a quadrilateral outwards: the map is trained on boxes shrunk by the same rule."""
    sides = quad[[1, 2, 3, 0]] - quad
    perimeter = float(np.linalg.norm(sides, axis=1).sum())
    area = abs(float(cv2.contourArea(quad)))
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(quad.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    polygons = offset.Execute(area * UNCLIP_RATIO / perimeter)
    # Clipper works on whole pixels: a sliver can vanish, and then stays as it was.
    return np.array([point for polygon in polygons for point in polygon] or quad, np.int32)


def _is_large_enough(quad: NDArray[np.float32]) -> bool:
    width = int(np.linalg.norm(quad[1] - quad[0]))
    height = int(np.linalg.norm(quad[3] - quad[0]))
    return width > _MIN_IMAGE_SIDE and height > _MIN_IMAGE_SIDE
