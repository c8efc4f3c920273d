"""Encoded photos to pixels: any format Pillow reads, to 8-bit RGB.

bytes → Photo (opened, its size checked) → whole, or at the scale that a task needs
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from .errors import InvalidInputError, OutOfMemoryError
from .timing import DECODE, during

MAX_PIXELS = 178_956_970
"""Larger pictures are refused as decompression bombs: Pillow's own limit, 2 × 1 GiB / 4 / 3 pixels."""

MAX_SLOW_PIXELS = 4_000_000
"""The same for formats that Pillow decodes in Python, pixel by pixel: compressed FITS, QOI, plain PPM and the like."""

# Beyond half of it Pillow warns; the limit above is checked here, on every picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Its words on odd metadata would be a line in the log for each of a file's 65,535 tags, and Python remembers them all.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# EPS runs Ghostscript, a program of its own, on what a stranger sent; IPTC opens a picture of any format inside.
_REFUSED_FORMATS = {"EPS", "IPTC"}

# What Pillow's decoders raise on files that are not what they say; they share no base class.
_DECODING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImageCms.PyCMSError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_BAND_PIXELS = 1 << 20

_SIXTEEN_BIT_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


_REDUCIBLE_FORMATS = {"JPEG", "MPO"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation: the first row and column of pixels are top and left at 1 (EXIF 2.32, tag 0x0112)."""

_SCALES = (8, 4, 2)  # libjpeg leaves out the higher frequencies of each block of 8 × 8


@dataclass(frozen=True)
class Reduced:
    """A photo decoded at a half, a quarter or an eighth of its size, or whole."""

    image: Image.Image
    """Mode RGB."""

    extent: tuple[float, float]
    """Width and height of the photo in pixels of the image: the photo may end in the middle of the last ones."""


class Photo:
    """An encoded photo. Its head was read and found in order; its pixels are decoded when they are asked for."""

    def __init__(self, data: bytes, most_pixels: int = MAX_PIXELS, *, upright: bool = False) -> None:
        """Open a photo, to be turned as its EXIF says where it is to be `upright`.

        Raises InvalidInputError for what is empty, no picture, of no size or over `most_pixels`.
        """
        if not data:
            raise InvalidInputError("The image is empty")
        self._data = data
        self._most_pixels = most_pixels
        self._whole: Image.Image | None = None
        with _refusals():
            image = self._open()
            self._turn = _turn(image) if upright else None
            # Turned, a photo would begin in the middle of a reduced one's first pixels.
            self._reducible, self._size = image.format in _REDUCIBLE_FORMATS and self._turn is None, image.size

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels as sent, whatever the scale of decoding. Decodes what may differ from its head."""
        return self._size if self._reducible else self.whole().size

    def whole(self) -> Image.Image:
        """Decode to mode RGB, once: the first frame, alpha over white, EXIF orientation left alone unless `upright`
        (but for TIFF, whose own orientation Pillow applies).

        16-bit and floating-point samples are scaled to 8 bits, CMYK and Lab converted. Raises
        InvalidInputError for what is cut short or broken.
        """
        if self._whole is None:
            with during(DECODE), _refusals():
                image = _to_rgb(_loaded(self._open()))
                self._whole = image if self._turn is None else image.transpose(self._turn)
        return self._whole

    def reduced(self, least_side: int) -> Reduced:
        """Decode at the smallest scale that leaves the shorter side `least_side` pixels; raises as `whole` does.

        Smaller than whole only where the format makes it cheaper (JPEG), and where no one asked for the whole before.
        """
        width, height = self._size
        scale = next((scale for scale in _SCALES if min(width, height) >= scale * least_side), 1)
        if self._whole is not None or not self._reducible or scale == 1:
            return Reduced(self.whole(), self.size)
        with during(DECODE), _refusals():
            image = self._open()
            image.draft(None, (width // scale, height // scale))
            return Reduced(_to_rgb(_loaded(image)), (width / scale, height / scale))

    def _open(self) -> Image.Image:
        image = Image.open(BytesIO(self._data), formats=_formats())
        _check_size(image, self._most_pixels)
        return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an image upright, by its EXIF; None for nothing."""
    if image.format == "TIFF":
        return None
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODING_ERRORS:  # damaged notes do not make the picture worse
        return None
    return _TURNS.get(orientation)


def decode(data: bytes) -> Image.Image:
    """Decode a photo whole. Raises InvalidInputError."""
    return Photo(data).whole()


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what Pillow raises into InvalidInputError."""
    try:
        yield
    except UnidentifiedImageError:
        raise InvalidInputError("The image is in no format that can be read") from None
    except Image.DecompressionBombError as error:
        raise InvalidInputError(f"The image is too large: {error}") from None
    except MemoryError:
        raise OutOfMemoryError("The image cannot be decoded: it takes more memory than there is") from None
    except _DECODING_ERRORS as error:
        # An assertion of Pillow's has no words: a palette's colours without the palette, for one.
        raise InvalidInputError(f"The image cannot be decoded: {str(error) or 'it is damaged'}") from None


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _check_size(image: Image.Image, most_pixels: int) -> None:
    if image.width == 0 or image.height == 0:
        raise InvalidInputError("Image has zero width or height")
    slow = any(tile.codec_name in Image.DECODERS for tile in getattr(image, "tile", ()))
    most = min(MAX_SLOW_PIXELS, most_pixels) if slow else most_pixels
    if image.width * image.height > most:
        what = f"{image.format} images may have" if slow else "the most is"
        raise InvalidInputError(f"The image is too large: {image.width} x {image.height} pixels, {what} {most} in all")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, band by band where the way there needs more room than the picture."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        return _in_bands(image, _from_sixteen_bits)
    if image.mode == "F":
        _, highest = image.getextrema()
        return _in_bands(image, partial(_from_floats, scale=1.0 if cast(float, highest) > 1.0 else 255.0))
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return ImageCms.applyTransform(image, to_rgb) or image
    if image.has_transparency_data:
        return _in_bands(image, _over_white)
    return image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(band), (0, top))
    return result


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied; Pillow goes no further in one step
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit: 65535 becomes 255. (Pillow's own conversion clips at 255 instead.)"""
    samples = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
    return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _from_floats(image: Image.Image, scale: float) -> Image.Image:
    """Floating-point grey to 8-bit: 0…1 where nothing is beyond 1, else 0…255."""
    samples = np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0) * scale
    return Image.fromarray(np.clip(np.rint(samples), 0, 255).astype(np.uint8)).convert("RGB")
