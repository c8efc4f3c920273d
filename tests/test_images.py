"""Encoded photos to pixels: every mode and format."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from immich_ml_compat import images
from immich_ml_compat.images import Photo, decode

from .pictures import AVIF, FORMATS, chunk, encode, photo, png

Pixel = tuple[int, int, int]

# Pillow warns of odd metadata and of palettes with transparency; the server's log may have that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def near(found: object, expected: Pixel, tolerance: int) -> bool:
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------- modes

GREY_PALETTE = [value for grey in range(256) for value in (grey, 255 - grey, 7)]


def palette(mode: str, index: int) -> Image.Image:
    image = Image.new("P", (5, 3), index)
    image.putpalette(GREY_PALETTE)
    return image if mode == "P" else image.convert(mode)


MODES: dict[str, tuple[Image.Image, Pixel]] = {
    "1": (Image.new("1", (5, 3), 1), (255, 255, 255)),
    "L": (Image.new("L", (5, 3), 77), (77, 77, 77)),
    "LA": (Image.new("LA", (5, 3), (50, 100)), (175, 175, 175)),
    "La": (Image.new("LA", (5, 3), (50, 100)).convert("La"), (175, 175, 175)),
    "P": (palette("P", 9), (9, 246, 7)),
    "PA": (palette("PA", 9), (9, 246, 7)),
    "RGB": (Image.new("RGB", (5, 3), (1, 2, 3)), (1, 2, 3)),
    "RGBA": (Image.new("RGBA", (5, 3), (0, 50, 255, 100)), (155, 175, 255)),
    "RGBA clear": (Image.new("RGBA", (5, 3), (0, 50, 255, 0)), (255, 255, 255)),
    "RGBa": (Image.new("RGBA", (5, 3), (0, 50, 255, 100)).convert("RGBa"), (155, 175, 255)),
    "RGBX": (Image.new("RGBX", (5, 3), (1, 2, 3, 0)), (1, 2, 3)),
    "CMYK": (Image.new("CMYK", (5, 3), (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (Image.new("RGB", (5, 3), (200, 30, 60)).convert("YCbCr"), (200, 30, 60)),
    "HSV": (Image.new("HSV", (5, 3), (0, 255, 255)), (255, 0, 0)),
    "LAB": (Image.new("LAB", (5, 3), (138, 209, 198)), (252, 3, 2)),
    "I": (Image.new("I", (5, 3), 32_768), (128, 128, 128)),
    "I over": (Image.new("I", (5, 3), 70_000), (255, 255, 255)),
    "I under": (Image.new("I", (5, 3), -70_000), (0, 0, 0)),
    "I;16": (Image.new("I;16", (5, 3), 32_768), (128, 128, 128)),
    "I;16L": (Image.new("I;16L", (5, 3), 32_768), (128, 128, 128)),
    "I;16B": (Image.new("I;16B", (5, 3), 32_768), (128, 128, 128)),
    "I;16N": (Image.new("I;16N", (5, 3), 256), (1, 1, 1)),
    "I;16 white": (Image.new("I;16", (5, 3), 65_535), (255, 255, 255)),
    "F to 1": (Image.new("F", (5, 3), 0.5), (128, 128, 128)),
    "F to 255": (Image.new("F", (5, 3), 200.4), (200, 200, 200)),
    "F NaN": (Image.new("F", (5, 3), float("nan")), (0, 0, 0)),
    "F infinite": (Image.new("F", (5, 3), float("inf")), (0, 0, 0)),
}


@pytest.mark.parametrize("label", MODES)
def test_modes(label: str) -> None:
    image, expected = MODES[label]
    # No file has some of these modes, so this is asked of what decode() ends with.
    converted = images._to_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (5, 3))
    assert near(converted.getpixel((4, 2)), expected, 2)


@pytest.mark.parametrize(
    "label", [label for label in MODES if label.partition(" ")[0] not in ("La", "RGBa", "HSV", "I;16L", "I;16N")]
)
def test_modes_in_a_tiff(label: str) -> None:
    image, expected = MODES[label]
    decoded = decode(encode(image, "TIFF"))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 3))
    assert near(decoded.getpixel((4, 2)), expected, 2)


def test_premultiplied_alpha_in_a_tiff() -> None:
    for mode in ("LA", "RGBA"):
        data = encode(Image.new(mode, (5, 3), (50,) * (len(mode) - 1) + (100,)), "TIFF")
        entry = struct.pack("<HHIH", 338, 3, 1, 2)  # ExtraSamples: 2 is plain alpha, 1 premultiplied
        assert data.count(entry) == 1
        data = data.replace(entry, struct.pack("<HHIH", 338, 3, 1, 1))
        assert Image.open(io.BytesIO(data)).mode in ("La", "RGBA")
        assert near(decode(data).getpixel((0, 0)), (205, 205, 205), 1)  # 50 + white × 155 / 255


WHITE = (255, 255, 255)
PNGS: dict[str, tuple[bytes, Pixel, Pixel]] = {
    "1 bit": (png((2, 1), 1, 0, b"\x40"), (0, 0, 0), WHITE),
    "2 bits": (png((2, 1), 2, 0, b"\x60"), (85, 85, 85), (170, 170, 170)),
    "8 bits and tRNS": (png((2, 1), 8, 0, b"\0\x4d", chunk(b"tRNS", b"\0\0")), WHITE, (77, 77, 77)),
    "RGB and tRNS": (png((2, 1), 8, 2, b"\xff\0\0\0\0\xff", chunk(b"tRNS", b"\0\xff\0\0\0\0")), WHITE, (0, 0, 255)),
    "16 bits": (png((2, 1), 16, 0, b"\xff\xff\x80\0"), WHITE, (128, 128, 128)),
    "16 bits RGB": (png((2, 1), 16, 2, b"\xff\xff\x80\0\0\0\0\0\0\0\xff\xff"), (255, 128, 0), (0, 0, 255)),
    "16 bits LA": (png((2, 1), 16, 4, b"\0\0\0\0\x80\0\xff\xff"), WHITE, (128, 128, 128)),
    "16 bits RGBA": (png((2, 1), 16, 6, bytes(8) + b"\x80\0\0\0\0\0\xff\xff"), WHITE, (128, 0, 0)),
    "palette and tRNS": (
        png((2, 1), 8, 3, b"\0\1", chunk(b"PLTE", b"\1\2\3\4\5\6"), chunk(b"tRNS", b"\0")),
        WHITE,
        (4, 5, 6),
    ),
}


@pytest.mark.parametrize("label", PNGS)
def test_png(label: str) -> None:
    data, left, right = PNGS[label]
    decoded = decode(data)
    assert near(decoded.getpixel((0, 0)), left, 1)
    assert near(decoded.getpixel((1, 0)), right, 1)


# ---------------------------------------------------------------- formats


def difference(image: Image.Image) -> float:
    return float(np.abs(np.asarray(image, np.int16) - np.asarray(photo(), np.int16)).mean())


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str) -> None:
    decoded = decode(encode(photo(), form))
    assert (decoded.mode, decoded.size) == ("RGB", (64, 48))
    assert difference(decoded) < (14 if form == "GIF" else 3)


def test_jpeg() -> None:
    for options in ({"progressive": True}, {"quality": 95, "subsampling": 0}, {"optimize": True}):
        assert difference(decode(encode(photo(), "JPEG", **options))) < 3


def test_jpeg_of_other_colours() -> None:
    assert near(decode(encode(Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "JPEG")).getpixel((3, 3)), (254, 0, 0), 3)
    assert near(decode(encode(Image.new("L", (16, 8), 90), "JPEG")).getpixel((3, 3)), (90, 90, 90), 1)


@pytest.mark.parametrize("form", ["WEBP", "JPEG2000", "ICO", "TGA", *AVIF])
def test_alpha_is_laid_over_white(form: str) -> None:
    decoded = decode(encode(Image.new("RGBA", (32, 32), (0, 50, 255, 100)), form))
    assert decoded.size == (32, 32)
    assert near(decoded.getpixel((9, 9)), (155, 175, 255), 4)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO", *AVIF])
def test_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    decoded = decode(data)
    assert decoded.size == (32, 24)
    assert near(decoded.getpixel((9, 9)), (255, 0, 0), 6)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photo_that_is_to_be_upright_is_turned(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), form, exif=exif)
    turned = Photo(data, upright=True)
    seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(turned.whole()), np.asarray(seen))
    assert turned.size == seen.size
    reduced = turned.reduced(8)
    assert reduced.extent[0] / reduced.extent[1] == seen.width / seen.height


@pytest.mark.parametrize("notes", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"\0" * 9])
def test_damaged_notes_turn_nothing(notes: bytes) -> None:
    data = encode(photo(), "JPEG", exif=notes)
    assert np.array_equal(np.asarray(Photo(data, upright=True).whole()), np.asarray(decode(data)))


def test_tiff_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(), "TIFF", exif=exif)
    assert Photo(data, upright=True).size == Photo(data).size == photo().size[::-1]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", *AVIF])
def test_exif_orientation_is_left_alone(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(), form, exif=exif)
    assert difference(decode(data)) < 3


def test_a_turned_tiff_is_turned_by_pillow_as_in_the_stock_server() -> None:
    assert decode(encode(photo(), "TIFF", tiffinfo={274: 6})).size == (48, 64)
