"""What is no picture, and pictures that are dangerous."""

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from immich_ml_compat.errors import InvalidInputError
from immich_ml_compat.images import MAX_PIXELS, Photo, decode
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings

from .pictures import FORMATS, chunk, encode, photo, png, refused

# Pillow warns of odd metadata; the server's log may have that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


# ---------------------------------------------------------------- what is no picture


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"\0",
            b"hello world",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.4\n",
            b"PK\3\4",
            b"MZ" + bytes(99),
        ),
        *(b"\x89PNG\r\n\x1a\n" + bytes(64), b"\xff\xd8\xff\xe0" + bytes(range(256)) * 16, b"GIF89a", b"BM" + bytes(99)),
        *(b"RIFF\x10\0\0\0WEBPVP8 ", b"II*\0" + bytes(99), b"P6\n5 5\n255\n", b"\0\0\0\x18ftypheic" + bytes(99)),
    ],
    ids=lambda data: ascii(data[:9]),
)
def test_no_picture(data: bytes) -> None:
    assert refused(data).startswith("The image ")


def test_empty() -> None:
    assert refused(b"") == "The image is empty"


def test_zero_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"P6\n0 5\n255\n", b"P5\n5 0\n255\n", png((0, 1), 8, 0, b""), b"GIF89a" + bytes(7) + b";"):
        assert refused(data)
    for size in ((0, 5), (5, 0), (0, 0)):  # Pillow opens no such file, but does not promise it
        monkeypatch.setattr(Image, "open", lambda *_, size=size, **__: Image.new("RGB", size))
        assert refused(b"x") == "Image has zero width or height"


@pytest.mark.parametrize("form", [*FORMATS, "ICO"])
def test_cut_short(form: str) -> None:
    data = encode(photo(), form)
    for length in {*range(0, min(len(data), 64), 3), *range(0, len(data), max(1, len(data) // 60)), len(data) - 1}:
        decode_or_refuse(data[:length])
    if form in ("JPEG", "PNG", "WEBP", "TIFF", "JPEG2000", "AVIF"):
        assert refused(data[: len(data) // 2]), "half a photo is no photo"


def test_what_has_no_words_of_its_own_is_said_in_ours() -> None:
    colours_without_palette = png((1, 1), 8, 3, b"\0")
    assert refused(colours_without_palette) == "The image cannot be decoded: it is damaged"


def decode_or_refuse(data: bytes) -> None:
    try:
        image = decode(data)
    except InvalidInputError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0


@cache
def seeds() -> list[bytes]:
    """A file of every format that Pillow writes, in each of its modes."""
    Image.init()
    found = []
    for form in sorted(Image.SAVE.keys() - {"PDF", "EPS", "PALM", "IM"}):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"):
            try:
                found.append(encode(photo().resize((24, 20)).convert(mode), form))
            except (OSError, ValueError, KeyError):
                continue
    return [data for data in found if len(data) < 100_000]


def test_there_are_seeds() -> None:
    assert len(seeds()) > 60


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@settings(max_examples=600, deadline=None)
def test_mutated(data: st.DataObject) -> None:
    original = bytearray(data.draw(st.sampled_from(seeds())))
    reach = data.draw(st.sampled_from([40, 300, len(original)]))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, max(0, min(reach, len(original)) - 1)))
        length = data.draw(st.sampled_from([0, 1, 4]))
        original[place : place + length] = data.draw(st.binary(max_size=4))
    decode_or_refuse(bytes(original))


@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM", b"P6\n", b"8BPS"]),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_noise(data: bytes, magic: bytes) -> None:
    decode_or_refuse(magic + data)


# ---------------------------------------------------------------- dangerous pictures

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def iptc(inside: bytes) -> bytes:
    """An IPTC file, in which Pillow opens a picture of any format."""
    fields = [(3, 20, b"\0\n"), (3, 30, b"\0\n"), (3, 60, b"\1\0"), (3, 65, b"\0"), (3, 120, b"\0\5"), (8, 10, inside)]
    return b"".join(struct.pack(">BBBH", 0x1C, *tag, len(data)) + data for *tag, data in fields)


def test_ghostscript_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    for data in (EPS, iptc(EPS)):
        (tmp_path / "picture").write_bytes(data)
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        refusal = isolated(tmp_path / "picture", environment)
        assert "InvalidInputError" in refusal
        assert not marker.exists()


def isolated(picture: Path, environment: dict[str, str] | None = None) -> str:
    """Decode a picture in a process of its own; return the exception and by how much memory grew (MiB)."""
    program = r"""
import re, sys
from immich_ml_compat.images import decode
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024
before = peak()
try:
    decode(open(sys.argv[1], "rb").read())
except Exception as error:
    print(type(error).__name__, error)
print(peak() - before)
"""
    command = [sys.executable, "-c", program, str(picture)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return run.stdout


@cache
def bombs() -> dict[str, bytes]:
    wide = png((30_000, 1), 1, 0, bytes(3750))
    size = struct.pack(">II", 30_000, 30_000)
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x01\0\0\0\0")
    black = header + chunk(b"IDAT", zlib.compress(bytes(3751 * 30_000))) + chunk(b"IEND", b"")
    tiff = encode(Image.new("1", (8, 8)), "TIFF", compression="raw")
    for tag in (256, 257):
        entry = struct.pack("<HHI", tag, 4, 1)
        assert tiff.count(entry) == 1
        place = tiff.index(entry) + 8
        tiff = tiff[:place] + struct.pack("<I", 60_000) + tiff[place + 4 :]
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(black), 22) + black
    text = zlib.compress(bytes(100_000_000))
    return {
        "PNG": black,
        "GIF": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
        "TIFF": tiff,
        "icon": icon,
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM": b"P6 60000 60000 255\n" + bytes(100),
        "text in a PNG": wide[:33] + chunk(b"zTXt", b"a\0\0" + text) + wide[33:],
        "IPTC": iptc(black[:60_000]),
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("label", ["PNG", "GIF", "TIFF", "icon", "BMP", "PPM", "text in a PNG", "IPTC"])
def test_bombs_are_refused_in_little_memory(label: str, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(bombs()[label])
    error, _, grown = isolated(tmp_path / "bomb").strip().rpartition("\n")
    assert error.startswith("InvalidInputError"), error
    assert int(grown) < 100


def test_the_limit_of_pixels() -> None:
    assert MAX_PIXELS == 178_956_970 == Settings().max_image_pixels
    limit = 64 * 48
    assert Photo(encode(photo(), "PNG"), limit).whole().size == (64, 48)
    with pytest.raises(InvalidInputError) as caught:
        Photo(encode(photo().resize((64, 49)), "PNG"), limit)
    assert caught.value.detail == "The image is too large: 64 x 49 pixels, the most is 3072 in all"
    assert Photo(encode(Image.new("1", (3072, 1)), "PNG"), limit).whole().size == (3072, 1)


def test_an_icon_is_no_way_around_the_limit_of_pixels() -> None:
    """What its head says of the picture inside need not be so."""
    inner = encode(photo().resize((200, 200)), "PNG")
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 10, 10, 0, 0, 1, 32, len(inner), 22) + inner
    assert decode(icon).size == (200, 200)
    with pytest.raises(InvalidInputError, match="too large: 200 x 200 pixels, the most is 20000"):
        Photo(icon, 20_000)


def test_the_setting_is_the_limit_of_pixels(tmp_path: Path) -> None:
    ocr = {"modelName": "PP-OCRv6_small"}
    entries = json.dumps({"ocr": {"detection": ocr, "recognition": ocr}})
    service = Service(Settings(cache_folder=tmp_path, max_image_pixels=64 * 48))
    assert service.answer(PredictRequest(entries, encode(photo(), "PNG"))).status == 200
    answer = service.answer(PredictRequest(entries, encode(photo().resize((64, 49)), "PNG")))
    assert (answer.status, json.loads(answer.body)) == (
        400,
        {"detail": "The image is too large: 64 x 49 pixels, the most is 3072 in all"},
    )


def test_formats_that_are_decoded_in_python_have_a_lower_limit() -> None:
    """Half a megabyte of compressed FITS would keep a core busy for half a minute."""
    size = 3000
    cards = [
        *("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0"),
        "EXTEND  =                    T",
    ]

    def block(lines: list[str]) -> bytes:
        text = "".join(line.ljust(80) for line in [*lines, "END"])
        return text.ljust(-(-len(text) // 2880) * 2880).encode()

    table = [
        *("XTENSION= 'BINTABLE'", "BITPIX  =                    8", "NAXIS   =                    2"),
        *("NAXIS1  =                    8", f"NAXIS2  = {size:>20}", "ZIMAGE  =                    T"),
        *("ZCMPTYPE= 'GZIP_1  '", "ZBITPIX =                    8", "ZNAXIS  =                    2"),
        *(f"ZNAXIS1 = {size:>20}", f"ZNAXIS2 = {size:>20}"),
    ]
    picture = block(cards) + block(table) + gzip.compress(bytes(size * size))
    with pytest.raises(InvalidInputError, match="FITS images may have"):
        decode(picture)
