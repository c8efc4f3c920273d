"""Pixels to a network's input: what each value becomes is looked up, not computed for every pixel."""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

VALUES = np.arange(256, dtype=np.float32)
"""What a sample of a picture can be."""


def look_up(
    pixels: NDArray[np.uint8], table: NDArray[np.float32], planes: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Turn uint8 [H, W, 3 or more] into float32 [3, H, W], where a sample v of channel c becomes `table[c, v]`.

    Only three channels are looked at. `table` is float32 [3, 256]. The result is written to the top left of
    `planes` [3, ≥ H, ≥ W], where given.
    """
    height, width = pixels.shape[:2]
    if planes is None:
        planes = np.empty((3, height, width), np.float32)
    for samples, values, plane in zip(cv2.split(pixels)[:3], table, planes, strict=True):
        cv2.LUT(samples, values, dst=plane[:height, :width])
    return planes


_BAND_PIXELS = 1 << 21


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return an RGB image as uint8 [H, W, 3].

    A large one in bands: Pillow holds it in several places.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    if not _copy(image, pixels):
        rows = max(1, _BAND_PIXELS // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            band = image.crop((0, top, image.width, bottom))
            if not _copy(band, pixels[top:bottom]):
                pixels[top:bottom] = np.asarray(band)
    return pixels


@contextmanager
def pixels_of(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Lend the pixels of an RGB image to be read: uint8 [H, W, 3 or 4], where a fourth channel means nothing.

    They are Pillow's own where they lie in one place, and a copy of a large image's.
    """
    with ExitStack() as stack:
        try:
            pixels = stack.enter_context(_lent(image))
        except _InPiecesError:
            pixels = to_pixels(image)
        yield pixels


class _InPiecesError(Exception):
    """An image lies in several places."""


@contextmanager
def _lent(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Lend an RGB image's own memory, uint8 [H, W, 4], to be read. Raises _InPiecesError."""
    try:
        _, capsule = image.__arrow_c_array__()  # it holds the image's memory: four bytes for each pixel
    except ValueError:
        raise _InPiecesError from None
    array = ctypes.cast(_capsule_pointer(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    memory = _memory_at(array.children[0].contents.buffers[1], 4 * image.width * image.height, _TO_READ)
    yield np.frombuffer(memory, np.uint8).reshape(image.height, image.width, 4)


class _ArrowArray(ctypes.Structure):
    """What `ArrowArray` is in Arrow's C data interface: an image's is a list of four bytes for each pixel."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes, _capsule_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes, _memory_at.restype = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int], ctypes.py_object
_TO_READ = 0x100  # PyBUF_READ


def _copy(image: Image.Image, pixels: NDArray[np.uint8]) -> bool:
    """Copy an RGB image into uint8 [H, W, 3], and tell whether it could be: that it lies in one place.

    Pillow's own way copies it twice, and takes three times as long for a photo.
    """
    try:
        with _lent(image) as held:
            cv2.cvtColor(held, cv2.COLOR_RGBA2RGB, dst=pixels)
    except _InPiecesError:
        return False
    return True


def to_bgr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB uint8 [H, W, 3] with blue first."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)
