"""The two containers of a PyTorch checkpoint, both of which `torch.save` writes:

    <any>/data.pkl            a zip archive, nothing compressed (torch 1.6 and later)
    <any>/data/<key>          the elements of a storage
    <any>/byteorder           `little` or `big`; little where it is missing

    magic, version, system, object, keys           pickles one after the other (before that)
    length (int64), elements; length, elements...  in the order of `keys`

The file may come from anyone: every length in it is held against the file's own, and what has a CRC is checked when it
is read.
"""

import io
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from .tensors import ELEMENTS, Storage
from .unpickling import Unpickler

_CHUNK = 1 << 20

# The most that is read in one go into memory of its own: a zip archive's directory of some 50,000 files.
_MOST_AT_ONCE = 4 << 20
_MOST_PICKLE = 8 << 20

_ENCRYPTED = 1
_LOCAL_HEADER = struct.Struct("<4s22xHH")

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DAMAGED = "It is cut off or damaged: download it again"
OFFICIAL = "Take an official clip_cn_*.pt"


class CheckpointError(Exception):
    """A file that is not a checkpoint, or not the one that is wanted: the file, the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where something lies in the file: bytes, and their CRC-32 where the file has one."""

    start: int
    length: int
    crc: int | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a container holds: the pickle's object and the places of the storages it names."""

    root: Any
    extents: Mapping[str, Extent]
    byte_order: Literal["<", ">"] = "<"


class File(io.BufferedReader):
    """The file; whoever believes a length in it gets no more than a little at once."""

    def __init__(self, path: Path) -> None:
        if not path.is_file() and not path.is_dir() and path.exists():  # to open a pipe is to wait for a writer
            raise CheckpointError(f"{path}: it is no regular file. {OFFICIAL}")
        super().__init__(io.FileIO(path))
        self.path = path
        self.size = os.fstat(self.fileno()).st_size
        self._checked: set[Extent] = set()

    def error(self, cause: str, remedy: str) -> CheckpointError:
        """Return the error that says so of this file."""
        return CheckpointError(f"{self.path}: {cause}. {remedy}")

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual. Raises ValueError for too much."""
        if size is None or size < 0:
            size = _MOST_AT_ONCE
        if size > _MOST_AT_ONCE:
            raise ValueError(f"it asks for {size} bytes at once")
        return super().read(size)

    def take(self, extent: Extent, offset: int = 0, length: int | None = None) -> NDArray[np.uint8]:
        """Return bytes of an extent, all of them unless told otherwise.

        Raises CheckpointError where the extent's CRC is not that of its bytes; a part is not trusted before all is.
        """
        buffer = np.empty(extent.length if length is None else length, np.uint8)
        if buffer.size == extent.length:
            self._compare(extent, self._fill(buffer, extent.start))
            return buffer
        if extent.crc is not None and extent not in self._checked:
            scratch, crc = np.empty(_CHUNK, np.uint8), 0
            for start in range(0, extent.length, _CHUNK):
                crc = self._fill(scratch[: extent.length - start], extent.start + start, crc)
            self._compare(extent, crc)
        self._fill(buffer, extent.start + offset)
        return buffer

    def _fill(self, buffer: NDArray[np.uint8], start: int, crc: int = 0) -> int:
        """Fill a buffer from a place in the file, and return the CRC that `crc` becomes."""
        self.seek(start)
        for first in range(0, buffer.size, _CHUNK):
            chunk = buffer[first : first + _CHUNK]
            if self.readinto(chunk.data) != chunk.size:
                raise self.error(f"it ends before byte {start + buffer.size}", _DAMAGED)
            crc = zlib.crc32(chunk.data, crc)
        return crc

    def _compare(self, extent: Extent, crc: int) -> None:
        if extent.crc not in (None, crc):
            raise self.error(f"the {extent.length} bytes at {extent.start} do not have the CRC they should", _DAMAGED)
        self._checked.add(extent)


def read_contents(file: File) -> Contents:
    """Read all but the elements. Raises CheckpointError for anything but a checkpoint of tensors."""
    head = file.read(256)
    if head.startswith(b"PK\3\4"):
        return _archive(file)
    if head.startswith(b"\x80"):
        return _stream(file)
    if head.startswith(b"version https://git-lfs"):
        raise file.error("it is a Git LFS pointer, not the file it stands for", "Fetch that with `git lfs pull`")
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < file.size:
        raise file.error("it is a safetensors file", OFFICIAL)
    if head.lstrip().startswith(b"<"):
        raise file.error("it is a web page", "Download the checkpoint itself; the page may say why it was not given")
    raise file.error("it is no PyTorch checkpoint" if head else "it is empty", OFFICIAL)


def _unpickled(file: File, unpickler: Unpickler) -> Any:
    try:
        return unpickler.load()
    except ValueError as error:
        raise file.error(str(error), f"It is damaged or means harm. {OFFICIAL}") from error


# ---------------------------------------------------------------- the zip archive


def _archive(file: File) -> Contents:
    entries = _entries(file)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise file.error(f"it is a zip archive with {len(roots)} times data.pkl, a checkpoint has it once", OFFICIAL)
    (root,) = roots
    if f"{root}constants.pkl" in entries or any(name.startswith(f"{root}code/") for name in entries):
        raise file.error("it is a TorchScript program, not a checkpoint of tensors", OFFICIAL)
    pickled = entries[f"{root}data.pkl"]
    if pickled.file_size > _MOST_PICKLE:
        raise file.error(f"its data.pkl has {pickled.file_size} bytes, a checkpoint's some 100,000", OFFICIAL)
    # torch can be told not to compute CRCs and then writes 0 for all.
    has_crc = any(entry.CRC for entry in entries.values())
    unpickler = Unpickler(io.BytesIO(file.take(_extent(file, pickled, has_crc)).tobytes()))
    contents = _unpickled(file, unpickler)
    extents = {}
    for key, storage in unpickler.storages.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise file.error(f"storage {key[:20]} is missing", _DAMAGED)
        extents[key] = _extent(file, entry, has_crc)
        _require_length(file, storage, extents[key].length)
    return Contents(contents, extents, _byte_order(file, entries.get(f"{root}byteorder"), has_crc))


def _entries(file: File) -> dict[str, ZipInfo]:
    try:
        with ZipFile(file) as archive:
            listed = archive.infolist()
    except (BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise file.error(f"its zip directory cannot be read ({error})", _DAMAGED) from error
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise file.error("it is a zip archive with two files of one name", OFFICIAL)
    return entries


def _extent(file: File, entry: ZipInfo, has_crc: bool) -> Extent:
    name = repr(entry.filename[-40:])
    if entry.flag_bits & _ENCRYPTED:
        raise file.error(f"{name} in it is encrypted", OFFICIAL)
    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
        raise file.error(f"{name} in it is compressed, which torch never does", OFFICIAL)
    header = b""
    if 0 <= entry.header_offset < file.size:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise file.error(f"{name} in it is not where it should be", _DAMAGED)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = file.tell() + name_length + extra_length
    if start + entry.file_size > file.size:
        raise file.error(f"{name} in it is longer than the file", _DAMAGED)
    return Extent(start, entry.file_size, entry.CRC if has_crc else None)


def _byte_order(file: File, entry: ZipInfo | None, has_crc: bool) -> Literal["<", ">"]:
    if entry is None:
        return "<"
    word = file.take(_extent(file, entry, has_crc)).tobytes() if entry.file_size < 10 else b""
    if word not in (b"little", b"big"):
        raise file.error("its byte order is neither little nor big", _DAMAGED)
    return "<" if word == b"little" else ">"


# ---------------------------------------------------------------- the stream of pickles


def _stream(file: File) -> Contents:
    file.seek(0)
    unpickler = Unpickler(file)
    for expected in (_MAGIC, _PROTOCOL):
        if _unpickled(file, unpickler) != expected:
            raise file.error("it is a pickle, but no checkpoint that torch.save wrote", OFFICIAL)
    _system, contents, keys = (_unpickled(file, unpickler) for _ in range(3))
    storages, extents = unpickler.storages, {}
    is_list = type(keys) is list and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise file.error("its storages are not those its pickle names", _DAMAGED)
    for key in keys:
        length = int.from_bytes(file.read(8), "little") * ELEMENTS[storages[key].kind].itemsize
        _require_length(file, storages[key], length)
        extents[key] = Extent(file.tell(), length)
        if file.tell() + length > file.size:
            raise file.error(f"storage {key[:20]} is longer than the file", _DAMAGED)
        file.seek(length, os.SEEK_CUR)
    return Contents(contents, extents)


def _require_length(file: File, storage: Storage, length: int) -> None:
    if storage.nbytes != length:
        raise file.error(f"storage {storage.key[:20]} has {length} bytes and should have {storage.nbytes}", _DAMAGED)
