"""Checkpoints as `torch.save` writes them, made without torch: any pickle can be put into one."""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo


@dataclass(frozen=True)
class Global:
    """What a pickle imports."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What a pickle calls."""

    function: Global
    arguments: Any


@dataclass(frozen=True)
class Persistent:
    """What a pickle leaves to its reader."""

    identity: Any


@dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def assemble(value: Any) -> bytes:
    """Return the instructions that put a value on the stack, those of protocol 2."""
    match value:
        case Raw():
            return value.code
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return assemble(value.function) + assemble(value.arguments) + b"R"
        case Persistent():
            return assemble(value.identity) + b"Q"
        case tuple():
            return b"(" + b"".join(map(assemble, value)) + b"t"
        case list():
            return b"](" + b"".join(map(assemble, value)) + b"e"
        case dict():
            return b"}(" + b"".join(assemble(key) + assemble(item) for key, item in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]  # without its start and its end


def pickled(value: Any) -> bytes:
    """Return the whole pickle of a value."""
    return b"\x80\x02" + assemble(value) + b"."


def storage(key: str, numel: int, kind: str = "FloatStorage") -> Persistent:
    return Persistent(("storage", Global("torch", kind), key, "cpu", numel))


def tensor(place: Any, shape: Any, strides: Any, offset: Any = 0) -> Call:
    """What torch writes for a tensor."""
    return Call(REBUILD, (place, offset, shape, strides, False, Call(ORDERED_DICT, ())))


def vector(key: str, numel: int, kind: str = "FloatStorage") -> Call:
    """What torch writes for a tensor of one dimension that has a storage of its own."""
    return tensor(storage(key, numel, kind), (numel,), (1,))


def write_archive(path: Path, root: bytes, storages: Mapping[str, bytes], byte_order: str = "little") -> Path:
    """Write a checkpoint in torch's zip container."""
    with ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", root)
        archive.writestr("archive/byteorder", byte_order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_checkpoint(path: Path, root: Any) -> Path:
    """Write that pickle with storage 0, ten float32 elements."""
    return write_archive(path, pickled(root), {"0": struct.pack("<10f", *range(10))})


def change_entry(path: Path, name: str, change: dict[str, Any]) -> Path:
    """Let an archive's directory say something else of a file in it; the file's own header stays as it is."""
    with ZipFile(path, "a") as archive:
        entry: ZipInfo = archive.getinfo(name)
        for field, value in change.items():
            setattr(entry, field, value)
        archive.comment = b" "  # the directory is written again
    return path
