"""What libraries in C write to a worker's standard error is logged, and bounded."""

import asyncio
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from immich_ml_compat.native_output import MOST_LINES, log_output

from .server import running_server

READ = {"ocr": {kind: {"modelName": "PP-OCRv6_small"} for kind in ("detection", "recognition")}}


def damaged_fax() -> bytes:
    """A TIFF on which libtiff writes a line for nearly every line of the picture."""
    width, height, data = 8, 20_000, random.Random(1).randbytes(50_000)
    entries = [(256, 4, width), (257, 4, height), (258, 3, 1), (259, 3, 3), (262, 3, 0)]
    entries += [(273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    tags = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + tags + bytes(4) + data


def test_a_photo_cannot_flood_the_log(cache: Path, tmp_path: Path) -> None:
    with running_server(cache, tmp_path) as server:
        for _ in range(3):
            assert server.predict(READ, damaged_fax()).status_code in (200, 400)
    told = server.log.read_text()
    assert told.count("Fax3Decode") == MOST_LINES, "the cause is there to be read"
    assert "lines more" in told, "and that this is not all of it"
    assert "INFO     Started inference worker" in told
    assert "Loaded ocr/PP-OCRv6_small/detection" in told, "the worker's own lines are"


def test_lines_are_cut_and_plain(caplog: pytest.LogCaptureFixture) -> None:
    async def read() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(b"a\x1b[31m\n\n" + b"b" * 200_000 + b"\nlast words")
        stream.feed_eof()
        await log_output(stream, 7)

    asyncio.run(read())
    assert [record.getMessage() for record in caplog.records] == [
        "Inference worker 7: a [31m",
        "Inference worker 7: " + "b" * 500,
        "Inference worker 7: last words",
    ]


def test_what_pillow_thinks_of_metadata_is_not_told(tmp_path: Path) -> None:
    tags = [(256, 3, 2, 8 | 8 << 16), (257, 3, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 200)]  # two widths
    tags += [(277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path = tmp_path / "odd.tif"
    path.write_bytes(head.ljust(200, b"\0") + bytes(64))

    def said(program: str) -> str:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "too many entries" in said("import sys; from PIL import Image; Image.open(sys.argv[1]).load()")
    photo = "Photo(open(sys.argv[1], 'rb').read()).whole()"
    assert said(f"import sys; from immich_ml_compat.images import Photo; {photo}") == ""
