"""Pictures gone wrong: a good file with a few of its bytes, lengths, sizes or parts changed.

The same seed and number give the same picture.
"""

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .layout import Field, Layout, layout
from .seeds import FORMATS, png_chunk, seeds

HUGE_SHARE = 0.004
"""The share of pictures whose head states a great size: each of these takes as long as a hundred others."""

_HUGE = ((13_377, 13_377), (65_535, 2_730), (2, 65_535), (16_383, 9_000), (4_000, 4_000), (20_000, 20_000))


@dataclass(frozen=True)
class Picture:
    """A mutated file."""

    name: str
    """Its format, its kind, its seed and number: what makes it again."""

    form: str
    data: bytes


def pictures(seed: int, count: int) -> Iterator[Picture]:
    """Make so many pictures, in turn of every format."""
    for number in range(count):
        yield picture(seed, number)


def picture(seed: int, number: int) -> Picture:
    """Make one picture."""
    chance = random.Random(f"{seed}/{number}")
    form = FORMATS[number % len(FORMATS)]
    kind, data = chance.choice(seeds(form))
    parts = layout(form, data)
    if chance.random() < HUGE_SHARE:
        data = _huge(chance, data, parts)
    elif chance.random() < 0.6:
        data = chance.choice(_STRUCTURAL)(chance, data, parts)
    else:
        data = _anywhere(chance, data, form)
    while data and chance.random() < 0.3:
        data = _anywhere(chance, data, form)
    if form == "PNG" and chance.random() < 0.7:
        data = with_right_sums(data)
    return Picture(f"{form}, {kind}, seed {seed}, number {number}", form, data)


# ---------------------------------------------------------------- changes that know the format


def _huge(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    for fields in parts.sizes:
        for place, value in zip(fields, chance.choice(_HUGE), strict=True):
            data = place.write(data, value)
    return data


def _lengths(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    for place in chance.sample(parts.lengths, min(len(parts.lengths), chance.choice((1, 1, 1, 2, 4)))):
        data = place.write(data, _other(chance, place, data))
    return data


def _sizes(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    for place in chance.choice(parts.sizes):
        if chance.random() < 0.7:
            value = place.read(data)
            data = place.write(data, chance.choice((0, 1, value - 1, value + 1, 2 * value, 31 * value, value // 2)))
    return data


def _other(chance: random.Random, place: Field, data: bytes) -> int:
    value, bits = place.read(data), 8 * struct.calcsize(place.format)
    edges = (0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, len(data), len(data) - place.offset)
    near = (value - 1, value + 1, value + 4, 2 * value, value ^ (1 << chance.randrange(bits)), value // 2)
    return chance.choice((*edges, *near, chance.getrandbits(bits)))


def _repeat(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    pieces = _pieces(data, parts)
    number = chance.randrange(len(pieces))
    pieces[number] *= chance.choice((2, 2, 3, 50))
    return b"".join(pieces)


def _drop(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    pieces = _pieces(data, parts)
    del pieces[chance.randrange(len(pieces))]
    return b"".join(pieces)


def _swap(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    pieces = _pieces(data, parts)
    one, other = (chance.randrange(len(pieces)) for _ in range(2))
    pieces[one], pieces[other] = pieces[other], pieces[one]
    return b"".join(pieces)


def _inside_a_part(chance: random.Random, data: bytes, parts: Layout) -> bytes:
    pieces = _pieces(data, parts)
    number = chance.randrange(len(pieces))
    pieces[number] = pieces[number][:4] + _flip(chance, pieces[number][4:60]) + pieces[number][60:]
    return b"".join(pieces)


def _pieces(data: bytes, parts: Layout) -> list[bytes]:
    cuts = [0, *sorted(parts.cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


_STRUCTURAL: tuple[Callable[[random.Random, bytes, Layout], bytes], ...] = (
    *(_lengths, _lengths, _sizes, _repeat, _drop, _swap, _inside_a_part),
)

# ---------------------------------------------------------------- changes that do not


def _anywhere(chance: random.Random, data: bytes, form: str) -> bytes:
    change = chance.randrange(6)
    if change == 0:
        return data[: chance.randrange(len(data))]
    if change == 1:
        _, other = chance.choice(seeds(form))
        return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]
    if change == 2:
        start, length = chance.randrange(len(data)), chance.choice((1, 2, 4, 16, 200))
        return data[:start] + chance.choice((b"\0", b"\xff", b"")) * length + data[start + length :]
    if change == 3:
        start, length = chance.randrange(len(data)), chance.choice((1, 8, 300))
        return data[:start] + data[start : start + length] + data[start:]
    reach = chance.choice((40, 300, len(data)))
    return _flip(chance, data[:reach]) + data[reach:]


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20)) if data else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def with_right_sums(data: bytes) -> bytes:
    """Return a PNG whose chunks have the sums that fit them: else a decoder looks no further."""
    whole, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        whole.append(png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(whole) + data[at:]
