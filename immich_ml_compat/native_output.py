"""What libraries in C write to a worker's standard error: logged, but not without end.

A damaged fax of 1 MB has libtiff write 24 MB: a line for each line of the picture.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

MOST_LINES, SPAN_S = 100, 60.0
"""So many lines in so many seconds are logged."""

_LONGEST = 500
_PIECE = 1 << 16


async def log_output(stream: asyncio.StreamReader, pid: int) -> None:
    """Log what a worker's libraries write, until it has ended; say how much was left out."""
    clock = asyncio.get_running_loop().time
    since, told, left_out = clock(), 0, 0
    async for lines in _lines(stream):
        if clock() - since >= SPAN_S:
            _tell_omission(pid, left_out)
            since, told, left_out = clock(), 0, 0
        fitting = lines[: MOST_LINES - told]
        for line in fitting:
            log.warning("Inference worker %d: %s", pid, _plain(line))
        told += len(fitting)
        left_out += len(lines) - len(fitting)
    _tell_omission(pid, left_out)


def _tell_omission(pid: int, left_out: int) -> None:
    if left_out:
        log.warning("Inference worker %d: and %d lines more", pid, left_out)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    """Yield the lines that are there, empty ones left out."""
    rest = b""
    while piece := await stream.read(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[:_LONGEST]
        yield [line for line in lines if line.strip()]
    if rest.strip():
        yield [rest]


def _plain(line: bytes) -> str:
    text = line[:_LONGEST].decode(errors="replace").rstrip()
    return "".join(character if character.isprintable() else " " for character in text)
