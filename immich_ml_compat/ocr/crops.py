"""Cutting lines of text out of a photo, upright and of the recogniser's height."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..tensors import to_bgr, to_pixels

LINE_HEIGHT = 48
"""Height of the recogniser's input (pixels)."""

MAX_ASPECT_RATIO = 48.0
"""Width / height of the longest strip that is read in one piece: longer lines are cut, so that memory is bounded."""

TALL_RATIO = 1.5
"""A box this much taller than wide holds a line that runs downwards."""

_MAX_CROP_PIXELS = 4_000_000
_MAX_WARP_SIDE = 32_000  # OpenCV's remapping counts pixels in 16 bits

_MARGIN = 2  # pixels that cubic interpolation sees beyond the corners

# A cut falls in the last quarter of a strip, at the middle of its widest gap between words.
_CUT_ZONE = 0.25

_GAP_CONTRAST = 0.15
"""A column of a gap varies no more than so much of the way from the strip's calmest column to its liveliest."""

_CALM = 2
"""So many per cent of the columns may be calmer than that: in a photo, gaps hold noise."""


def is_tall(quad: NDArray[np.float32]) -> bool:
    """Tell whether the text of a box [4, 2] runs downwards."""
    width, height = _sides(quad)
    return height >= TALL_RATIO * width


def aspect_ratio(quad: NDArray[np.float32]) -> float:
    """Return the length of the line in a box [4, 2] by its height."""
    width, height = _sides(quad)
    return height / width if is_tall(quad) else width / height


def cut_line(image: Image.Image, quad: NDArray[np.float32], *, half_turn: bool = False) -> NDArray[np.uint8]:
    """Cut a box [4, 2] out of an RGB image and scale it: BGR, as PP-OCR was trained, uint8 [48, W', 3].

    Text that runs downwards is laid on its side. With `half_turn` the line is read from the other end,
    as on a page that lies upside down.
    """
    corners = np.roll(quad, -1, axis=0) if is_tall(quad) else quad
    if half_turn:
        corners = np.roll(corners, -2, axis=0)
    pixels, corners = _region(image, corners)
    width, height = _sides(corners)
    shrink = min(1.0, (_MAX_CROP_PIXELS / (width * height)) ** 0.5, _MAX_WARP_SIDE / max(width, height))
    width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
    line = cv2.resize(_rectify(pixels, corners, width, height), (-(-LINE_HEIGHT * width // height), LINE_HEIGHT))
    return line.astype(np.uint8, copy=False)


def _rectify(image: NDArray[np.uint8], corners: NDArray[np.float32], width: int, height: int) -> NDArray[Any]:
    """Return a quadrilateral as an upright rectangle of that size."""
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    left, top = (int(coordinate) for coordinate in corners[0])
    inside = min(left, top) >= 0 and left + width <= image.shape[1] and top + height <= image.shape[0]
    if inside and (corners - target == [left, top]).all():  # it is one already, of whole pixels
        return image[top : top + height, left : left + width]
    matrix = cv2.getPerspectiveTransform(corners, target)
    return cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def split_line(line: NDArray[np.uint8]) -> list[tuple[NDArray[np.uint8], int]]:
    """Cut a line [48, W, 3] into strips of at most MAX_ASPECT_RATIO, between words where it can be.

    Returns each strip with the width (pixels) of the gap in which it was cut from the one before, 0 for the first.
    """
    longest = int(MAX_ASPECT_RATIO * LINE_HEIGHT)
    strips: list[tuple[NDArray[np.uint8], int]] = []
    gap = 0
    while line.shape[1] > longest:
        cut, width = _best_cut(line[:, :longest])
        strips.append((line[:, :cut], gap))
        line, gap = line[:, cut:], width
    strips.append((line, gap))
    return strips


def _best_cut(strip: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the column at which to end a strip [48, W, 3], and the width of the gap it lies in."""
    variation = np.ptp(cv2.cvtColor(strip, cv2.COLOR_BGR2GRAY).astype(np.int16), axis=0)
    start = int(len(variation) * (1 - _CUT_ZONE))
    zone = variation[start:]
    calm = float(np.percentile(variation, _CALM))
    quiet = zone <= max(calm + _GAP_CONTRAST * (variation.max() - calm), zone.min())
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    gap_starts, gap_stops = edges[::2], edges[1::2]
    widest = int(np.argmax(gap_stops - gap_starts))
    middle = int(gap_starts[widest] + gap_stops[widest]) // 2
    return max(1, start + middle), int(gap_stops[widest] - gap_starts[widest])


def _region(image: Image.Image, quad: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the part of the image around a quadrilateral, of a size that can be warped, and the corners in it."""
    left, top = np.maximum(np.floor(quad.min(axis=0)).astype(int) - _MARGIN, 0)
    right, bottom = np.minimum(np.ceil(quad.max(axis=0)).astype(int) + _MARGIN + 1, image.size)
    region = to_bgr(to_pixels(image.crop((left, top, right, bottom))))
    corners = (quad - (left, top)).astype(np.float32)
    shrink = _MAX_WARP_SIDE / max(region.shape[:2])
    if shrink >= 1:
        return region, corners
    size = [max(1, int(side * shrink)) for side in region.shape[1::-1]]
    scaled = cv2.resize(region, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return scaled, corners * np.float32(shrink)


def _sides(quad: NDArray[np.float32]) -> tuple[float, float]:
    """Return the longer of the two widths and of the two heights, each at least one pixel."""
    top, right, bottom, left = np.linalg.norm(quad[[1, 2, 3, 0]] - quad, axis=1)
    return max(1.0, float(max(top, bottom))), max(1.0, float(max(right, left)))
