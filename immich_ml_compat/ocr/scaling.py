"""Scaling a photo for the text detector, on several threads where they would be idle."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..tensors import to_pixels

Size = tuple[int, int]

_MOST_STRIPS = 4


def scale(image: Image.Image, size: Size, threads: int = 1) -> NDArray[np.uint8]:
    """Resize an RGB image to (width, height) by Lanczos's filter: uint8 [height, width, 3].

    Columns first, then rows, as the stock server's Pillow always does; newer ones choose by cost, and as each pass
    rounds and clips, not every pixel is the same then. The result does not depend on the number of threads.
    """
    count = _strips(size[0], threads)
    work = partial(_scale_strip, image, size, count)
    if count == 1:
        return work(0)
    with ThreadPoolExecutor(count - 1, thread_name_prefix="scale") as pool:
        try:
            others = [pool.submit(work, strip) for strip in range(1, count)]
        except RuntimeError:  # the system has no more threads
            return scale(image, size)
        return np.concatenate([work(0), *(other.result() for other in others)], axis=1)


def _strips(width: int, threads: int) -> int:
    """Return into how many equal strips a result of that width is cut.

    A power of two: so cut, the edges in the photo are exact in the single precision that Pillow takes them in.
    """
    count = 1
    while 2 * count <= min(threads, _MOST_STRIPS) and width % (2 * count) == 0:
        count *= 2
    return count


def _scale_strip(image: Image.Image, size: Size, count: int, strip: int) -> NDArray[np.uint8]:
    """Return one of `count` equal strips, side by side, of the scaled image."""
    width, height = size[0] // count, size[1]
    left, right = image.width * strip / count, image.width * (strip + 1) / count
    columns = image.resize((width, image.height), Image.Resampling.LANCZOS, box=(left, 0, right, image.height))
    return to_pixels(columns.resize((width, height), Image.Resampling.LANCZOS))
