"""Encoded pictures of every kind."""

import io
import struct
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image, features

from immich_ml_compat.errors import InvalidInputError
from immich_ml_compat.images import decode

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "TGA", "PPM", "JPEG2000", "PCX", "SGI", "DDS", "QOI"]
AVIF = ["AVIF"] if features.check("avif") else []
FORMATS += AVIF


@cache
def photo() -> Image.Image:
    """Smooth colours, which every format keeps nearly."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, row: bytes, *extra: bytes) -> bytes:
    """A PNG of equal rows, which Pillow cannot write itself."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    data = zlib.compress((b"\0" + row) * size[1], 1)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInputError) as caught:
        decode(data)
    assert caught.value.status == 400
    return caught.value.detail
