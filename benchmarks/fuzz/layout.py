"""Where a good file's parts begin, and where it says how long and how large they are."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Field:
    """A number in a file."""

    offset: int
    format: str
    """As `struct` writes it."""

    def read(self, data: bytes) -> int:
        """Return the number."""
        (value,) = struct.unpack_from(self.format, data, self.offset)
        return int(value)

    def write(self, data: bytes, value: int) -> bytes:
        """Return the file with another number there, cut to the bits that it has."""
        width = struct.calcsize(self.format)
        number = (value % (1 << 8 * width)).to_bytes(width, "little" if self.format.startswith("<") else "big")
        return data[: self.offset] + number + data[self.offset + width :]


@dataclass
class Layout:
    """What a file is made of."""

    cuts: list[int] = field(default_factory=list)
    """Where parts begin that can be moved about."""

    lengths: list[Field] = field(default_factory=list)
    """Lengths, counts and offsets."""

    sizes: list[tuple[Field, Field]] = field(default_factory=list)
    """Widths and heights."""


def layout(form: str, data: bytes) -> Layout:
    """Take a file of `seeds` apart."""
    found = Layout()
    _READERS[form](data, found)
    return found


def _pair(offset: int, form: str) -> tuple[Field, Field]:
    return Field(offset, form), Field(offset + struct.calcsize(form), form)


def _png(data: bytes, found: Layout) -> None:
    at = 8
    while at < len(data):
        found.cuts.append(at)
        found.lengths.append(Field(at, ">I"))
        kind = data[at + 4 : at + 8]
        if kind in (b"IHDR", b"fcTL"):
            found.sizes.append(_pair(at + (8 if kind == b"IHDR" else 12), ">I"))
        at += 12 + found.lengths[-1].read(data)


_START_OF_FRAME = (0xC0, 0xC1, 0xC2)
_START_OF_SCAN, _END = 0xDA, 0xD9


def _jpeg(data: bytes, found: Layout) -> None:
    at = 2
    while at < len(data) - 1 and data[at] == 0xFF and data[at + 1] != _END:
        found.cuts.append(at)
        found.lengths.append(Field(at + 2, ">H"))
        if data[at + 1] in _START_OF_FRAME:
            found.sizes.append(_pair(at + 5, ">H"))
        scan = data[at + 1] == _START_OF_SCAN
        at += 2 + found.lengths[-1].read(data)
        while scan and not (data[at] == 0xFF and data[at + 1] not in (0, *range(0xD0, 0xD8))):
            at += 1


def _webp(data: bytes, found: Layout) -> None:
    found.lengths.append(Field(4, "<I"))
    at = 12
    while at < len(data):
        kind = data[at : at + 4]
        found.cuts.append(at)
        found.lengths.append(Field(at + 4, "<I"))
        if kind == b"VP8 ":
            found.sizes.append(_pair(at + 14, "<H"))
        elif kind in (b"VP8X", b"ANMF"):  # 24 bits each, of which the lower 16
            start = at + (12 if kind == b"VP8X" else 14)
            found.sizes.append((Field(start, "<H"), Field(start + 3, "<H")))
        elif kind == b"VP8L":  # 14 bits each, from the second byte on
            found.sizes.append((Field(at + 9, "<H"), Field(at + 11, "<H")))
        length = found.lengths[-1].read(data)
        at += 8 + length + length % 2


def _gif(data: bytes, found: Layout) -> None:
    found.sizes.append(_pair(6, "<H"))
    at = 13 + _gif_palette(data[10])
    while data[at] != 0x3B:
        found.cuts.append(at)
        if data[at] == 0x2C:
            found.sizes.append(_pair(at + 5, "<H"))
            found.lengths += _pair(at + 1, "<H")
            at += 10 + _gif_palette(data[at + 9]) + 1
        else:
            at += 2
        while data[at]:
            found.lengths.append(Field(at, "B"))
            at += 1 + data[at]
        at += 1


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


_TIFF_SIZES = {256: 0, 257: 1, 322: 2, 323: 3}


def _tiff(data: bytes, found: Layout) -> None:
    order = "<" if data[:2] == b"II" else ">"
    big = Field(2, f"{order}H").read(data) == 43
    first, count, step = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}I", f"{order}H", 12)
    found.lengths.append(Field(8 if big else 4, first))
    at = found.lengths[-1].read(data)
    found.lengths.append(Field(at, count))
    at += struct.calcsize(count)
    sizes: dict[int, Field] = {}
    for entry in range(at, at + found.lengths[-1].read(data) * step, step):
        found.cuts.append(entry)
        tag, kind = Field(entry, f"{order}H").read(data), Field(entry + 2, f"{order}H").read(data)
        found.lengths += [Field(entry + 2, f"{order}H"), Field(entry + 4, first)]
        found.lengths.append(Field(entry + 4 + struct.calcsize(first), f"{order}H" if kind == 3 else first))
        if tag in _TIFF_SIZES:
            sizes[_TIFF_SIZES[tag]] = found.lengths[-1]
    found.sizes += [(sizes[i], sizes[i + 1]) for i in (0, 2) if i in sizes]


def _bmp(data: bytes, found: Layout) -> None:
    found.cuts += [14, 14 + Field(14, "<I").read(data), Field(10, "<I").read(data)]
    found.lengths += [Field(2, "<I"), Field(10, "<I"), Field(14, "<I")]
    if found.lengths[-1].read(data) == 12:
        found.sizes.append(_pair(18, "<H"))
        found.lengths.append(Field(24, "<H"))
    else:
        found.sizes.append(_pair(18, "<I"))
        found.lengths += [Field(28, "<H"), Field(30, "<I"), Field(34, "<I"), Field(46, "<I")]


_READERS: dict[str, Callable[[bytes, Layout], None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "TIFF": _tiff,
    "BMP": _bmp,
}
