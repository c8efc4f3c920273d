"""Scaling a photo for the text detector, on several threads where they would be idle."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..tensors import to_pixels

Size = tuple[int, int]
Span = tuple[int, int]

_MOST_THREADS = 4

_BAND_PIXELS = 1 << 19
"""Of the photo, taken out at a time: few enough to stay in the cache, and to be little beside the photo."""


def scale(image: Image.Image, size: Size, threads: int = 1) -> NDArray[np.uint8]:
    """Resize an RGB image to (width, height) by Lanczos's filter: uint8 [height, width, 3].

    Columns first, then rows, as the stock server's Pillow always does; newer ones choose by cost, and as each pass
    rounds and clips, not every pixel is the same then. The result does not depend on the number of threads.
    """
    if threads > 1:
        try:
            with ThreadPoolExecutor(min(threads, _MOST_THREADS), thread_name_prefix="scale") as pool:
                return _scale_on(pool, min(threads, _MOST_THREADS), image, size)
        except RuntimeError:  # the system has no more threads
            pass
    return to_pixels(_resized(_resized(image, (size[0], image.height)), size))


def _scale_on(pool: ThreadPoolExecutor, threads: int, image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Cut the photo between rows for the first pass, between columns for the second: neither looks across."""
    width, height = size

    def narrowed(rows: Span) -> Image.Image:
        top, bottom = rows
        return _resized(image.crop((0, top, image.width, bottom)), (width, bottom - top))

    def lowered(columns: Span) -> NDArray[np.uint8]:
        left, right = columns
        return to_pixels(_resized(narrow.crop((left, 0, right, image.height)), (right - left, height)))

    narrow = Image.new("RGB", (width, image.height), None)
    bands = _spans(image.height, max(threads, -(-image.width * image.height // _BAND_PIXELS)))
    for (top, _), band in zip(bands, pool.map(narrowed, bands), strict=True):
        narrow.paste(band, (0, top))
    return np.concatenate(list(pool.map(lowered, _spans(width, threads))), axis=1)


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _spans(length: int, count: int) -> list[Span]:
    """Cut a length into so many parts of much the same size, or fewer."""
    count = min(length, count)
    return list(pairwise(length * i // count for i in range(count + 1)))
