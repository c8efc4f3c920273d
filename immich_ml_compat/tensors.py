"""Pixels to a network's input: what each value becomes is looked up, not computed for every pixel."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

VALUES = np.arange(256, dtype=np.float32)
"""What a sample of a picture can be."""


def look_up(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn uint8 [H, W, 3] into float32 [3, H, W], where a sample v of channel c becomes `table[c, v]`.

    `table` is float32 [3, 256].
    """
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    for samples, values, plane in zip(cv2.split(pixels), table, planes, strict=True):
        cv2.LUT(samples, values, dst=plane)
    return planes


_BAND_PIXELS = 1 << 22


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return an RGB image as uint8 [H, W, 3].

    A large one in bands: Pillow's own way is twice as fast, but takes twice the room in between.
    """
    rows = max(1, _BAND_PIXELS // image.width)
    if image.height <= rows:
        return np.asarray(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def to_bgr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB uint8 [H, W, 3] with blue first."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)
