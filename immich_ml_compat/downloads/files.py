"""One file of a model on a hub, and the sums by which a copy is known to be the same."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CHUNK = 1 << 20

LARGEST = 64 * 10**9
"""The most bytes a file of a model may have: a hub that speaks of more is none."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Where a file is on a hub and where it belongs in the model's folder."""

    path: str
    """In the model's folder, with `/`."""

    url: str

    size: int | None = None
    """Bytes, where the hub says so beforehand."""

    sha256: str | None = None

    blob_sha1: str | None = None
    """Git's name for the content; hubs have it for small files that are not in LFS."""

    def __post_init__(self) -> None:
        """Raises ValueError for a path that would leave the model's folder, and for sums and sizes that are none."""
        path = PurePosixPath(self.path)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in self.path:
            raise ValueError(f"{self.url}: {self.path!r} is no path inside a model's folder")
        for known, digits in ((self.sha256, 64), (self.blob_sha1, 40)):
            if known is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", known):
                raise ValueError(f"{self.url}: {known!r} is no sum")  # it would become a file name
        if self.size is not None and not 0 <= self.size <= LARGEST:
            # Taken for true, it would be the disk that is too small, and no other hub would be asked.
            raise ValueError(f"{self.url}: {self.size} bytes is no size of a model's file")

    @property
    def identity(self) -> str:
        """A name for the content: equal for equal content, and fit for a file name."""
        known = self.sha256 or self.blob_sha1 or hashlib.sha256(self.url.encode()).hexdigest()
        return known[:40]

    def is_at(self, path: Path) -> bool:
        """Tell whether the file at `path` has this content. Raises OSError where it cannot be read."""
        if not path.is_file() or self.size not in (None, path.stat().st_size):
            return False
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        return self.blob_sha1 is None or _blob_sha1_of(path) == self.blob_sha1


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _blob_sha1_of(path: Path) -> str:
    # Git hashes a content with its kind and length in front.
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
