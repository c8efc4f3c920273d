"""Good pictures to start from: small files of every kind that each format has, drawn here."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageDraw

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


@cache
def seeds(form: str) -> tuple[tuple[str, bytes], ...]:
    """Return the files of a format, each with what is special about it."""
    return tuple(_DRAWN[form]())


@cache
def _photo(width: int = 96, height: int = 72) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    noise = np.random.default_rng(0).integers(0, 24, smooth.shape)
    image = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    ImageDraw.Draw(image).text((4, height // 2), "Immich 123", fill="white")
    return image


@cache
def _with_alpha() -> Image.Image:
    image = _photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _frames() -> list[Image.Image]:
    return [_photo().rotate(degrees).convert("RGB") for degrees in (90, 180)]


def _sixteen_bits(mode: str) -> Image.Image:
    samples = (np.asarray(_photo().convert("L")).astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, _photo().size, samples.tobytes())


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "Maker", "2026:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif


@cache
def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _jpeg() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    yield "baseline", _encode(photo, "JPEG")
    yield "progressive", _encode(photo, "JPEG", progressive=True)
    for subsampling in (0, 1):
        yield f"subsampling {subsampling}", _encode(photo, "JPEG", subsampling=subsampling, optimize=True)
    yield "grey", _encode(photo.convert("L"), "JPEG")
    yield "CMYK", _encode(photo.convert("CMYK"), "JPEG")
    yield "restart markers", _encode(photo, "JPEG", restart_marker_blocks=2)
    yield "EXIF, ICC and comment", _encode(photo, "JPEG", exif=_exif(), icc_profile=_profile(), comment=b"hello")
    yield "large", _encode(_photo(640, 480), "JPEG", quality=50)
    yield "large, progressive", _encode(_photo(400, 300), "JPEG", quality=30, progressive=True)
    yield "MPO", _encode(photo, "MPO", save_all=True, append_images=_frames())


def _png() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    for mode in ("1", "L", "LA", "P", "RGB"):
        yield mode, _encode(photo.convert(mode), "PNG")
    yield "RGBA", _encode(_with_alpha(), "PNG")
    yield "16 bits", _encode(_sixteen_bits("I;16"), "PNG")
    yield "16 bits of colour", _own_png(16, interlaced=False)
    yield "interlaced", _own_png(8, interlaced=True)
    yield "palette of 4", _encode(photo.quantize(4), "PNG", bits=2)
    yield "transparent palette", _encode(photo.convert("P"), "PNG", transparency=3)
    yield "transparent grey", _encode(photo.convert("L"), "PNG", transparency=3)
    yield "animated", _encode(photo, "PNG", save_all=True, append_images=_frames())
    yield "EXIF and ICC", _encode(photo, "PNG", exif=_exif(), icc_profile=_profile(), dpi=(72, 72))


def _own_png(depth: int, *, interlaced: bool) -> bytes:
    """A PNG that Pillow does not write: deep colour, or interlaced (Adam7)."""
    pixels = np.asarray(_photo())
    if depth == 16:
        pixels = (pixels.astype(np.uint16) * 257).astype(">u2")
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = (row for top, left, down, right in passes for row in pixels[top::down, left::right])
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, 2, 0, 0, interlaced)
    chunks = [
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its length and its sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _webp() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    yield "lossy", _encode(photo, "WEBP")
    yield "lossless", _encode(photo, "WEBP", lossless=True)
    yield "lossy with alpha", _encode(_with_alpha(), "WEBP")
    yield "lossless with alpha", _encode(_with_alpha(), "WEBP", lossless=True)
    yield "animated", _encode(photo, "WEBP", save_all=True, append_images=_frames())
    yield "EXIF and ICC", _encode(photo, "WEBP", exif=_exif(), icc_profile=_profile())


def _gif() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    yield "colour", _encode(photo, "GIF")
    yield "not interlaced", _encode(photo.convert("P"), "GIF", interlace=0)
    yield "grey", _encode(photo.convert("L"), "GIF", comment=b"hello")
    yield "transparent", _encode(_with_alpha(), "GIF")
    for disposal in (1, 2, 3):
        options = {"append_images": _frames(), "disposal": disposal, "loop": 0, "duration": 50}
        yield f"animated, disposal {disposal}", _encode(photo, "GIF", save_all=True, **options)


def _tiff() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "I", "F"):
        converted = _lab() if mode == "LAB" else photo.convert(mode)
        yield mode, _encode(converted, "TIFF")
    yield "RGBA", _encode(_with_alpha(), "TIFF")
    for mode in ("I;16", "I;16B"):
        yield mode, _encode(_sixteen_bits(mode), "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        yield compression, _encode(photo, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield compression, _encode(photo.convert("1"), "TIFF", compression=compression)
    yield "many strips", _encode(photo, "TIFF", compression="tiff_lzw", strip_size=1000)
    yield "tiled", _tiled_tiff(planar=1)
    yield "tiled, planar", _tiled_tiff(planar=2)
    yield "several pages", _encode(photo, "TIFF", save_all=True, append_images=_frames())
    yield "BigTIFF", _encode(photo, "TIFF", big_tiff=True)
    yield "EXIF and ICC", _encode(photo, "TIFF", exif=_exif(), icc_profile=_profile())


def _lab() -> Image.Image:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(_photo(), to_lab)
    assert image is not None
    return image


def _tiled_tiff(planar: int) -> bytes:
    """A TIFF of 32 × 32 tiles, deflated, which Pillow does not write."""
    side, pixels = 32, np.asarray(_photo())
    height, width = pixels.shape[:2]
    padded = np.zeros((-(-height // side) * side, -(-width // side) * side, 3), np.uint8)
    padded[:height, :width] = pixels
    planes = [padded] if planar == 1 else [padded[:, :, i] for i in range(3)]
    places = [(y, x) for y in range(0, padded.shape[0], side) for x in range(0, padded.shape[1], side)]
    tiles = [zlib.compress(plane[y : y + side, x : x + side].tobytes()) for plane in planes for y, x in places]
    longs = {256: [width], 257: [height], 258: [8, 8, 8], 259: [8], 262: [2], 277: [3], 284: [planar]}
    longs |= {322: [side], 323: [side], 325: [len(tile) for tile in tiles], 324: [0] * len(tiles)}
    at = 8 + 2 + 12 * len(longs) + 4
    tails: list[bytes] = []
    starts = at + sum(4 * len(values) for values in longs.values() if len(values) > 1)
    longs[324] = [starts + sum(map(len, tiles[:number])) for number in range(len(tiles))]
    entries = []
    for tag, values in sorted(longs.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            tails.append(packed)
            packed = struct.pack("<I", at + sum(map(len, tails[:-1])))
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + packed)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + b"".join(tails) + b"".join(tiles)


def _bmp() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "P", "RGB"):
        yield mode, _encode(_photo().convert(mode), "BMP")
    yield "RGBA", _encode(_with_alpha(), "BMP")
    yield "run lengths", _run_length_bmp()
    yield "OS/2", _os2_bmp()


def _run_length_bmp() -> bytes:
    """A BMP of 8-bit run lengths: runs, literal stretches, jumps and line ends."""
    line = bytes([40, 7, 0, 6, 1, 2, 3, 4, 5, 6, 0, 2, 2, 0, 20, 9, 0, 0])
    data = line * 20 + b"\0\1"
    palette = bytes(value for i in range(256) for value in (i, 255 - i, i, 0))
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 70, 20, 1, 8, 1, len(data), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + header + palette + data


def _os2_bmp() -> bytes:
    """A BMP with the old 12-byte header."""
    image = _photo(20, 12)
    rows = np.asarray(image)[::-1, :, ::-1].tobytes()
    header = struct.pack("<IHHHH", 12, 20, 12, 1, 24)
    return struct.pack("<2sIHHI", b"BM", 26 + len(rows), 0, 0, 26) + header + rows


_DRAWN = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "TIFF": _tiff, "BMP": _bmp}
