"""What was downloaded into a model's folder: `.manifest.json`.

A folder without one was filled by the stock server or by a person, and is a model all the same.
"""

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ..disk import flush
from ..store import MANIFEST
from .files import RemoteFile, sha256_of
from .presence import this_process

__all__ = ["MANIFEST", "Manifest", "ManifestFile", "describe", "read_manifest", "write_manifest"]

log = logging.getLogger(__name__)


class ManifestFile(BaseModel, frozen=True):
    """One file as it was downloaded."""

    size: int
    """Bytes."""

    sha256: str
    address: str
    date: datetime

    half: bool = False
    """Whether it was converted to float16."""

    stamp: int = 0
    """When it changed last, in ns as its file system counts; a file of another length that is younger is another."""

    def is_at(self, path: Path) -> bool:
        """Tell whether the file at `path` is still this one. Raises OSError where it cannot be read."""
        return path.is_file() and path.stat().st_size == self.size and sha256_of(path) == self.sha256


class Manifest(BaseModel, frozen=True):
    """The files of one model that were downloaded, by their path in its folder."""

    files: dict[str, ManifestFile] = {}

    def updated(self, other: "Manifest") -> "Manifest":
        """Return this manifest with another's files added."""
        return Manifest(files=self.files | other.files)

    def has(self, other: "Manifest") -> bool:
        """Tell whether another's files are all in this one; when they came and changed is no matter."""
        return all(path in self.files and _same(self.files[path], file) for path, file in other.files.items())

    def stamped(self, folder: Path) -> "Manifest":
        """Return this manifest with the stamps of the files in a folder."""
        stamps = {path: _stamp(folder / path) for path in self.files}
        return Manifest(
            files={path: file.model_copy(update={"stamp": stamps[path]}) for path, file in self.files.items()}
        )

    def as_json(self) -> str:
        """Return what `read_manifest` reads."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), indent=1)


def _same(one: ManifestFile, other: ManifestFile) -> bool:
    return one.model_copy(update={"date": other.date, "stamp": other.stamp}) == other


def _stamp(path: Path) -> int:
    return max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) if path.is_file() else 0


def describe(files: Iterable[RemoteFile], folder: Path, *, half: bool = False) -> Manifest:
    """Make a manifest of files that have just been downloaded into a folder, or made there, `half` in float16."""
    now = datetime.now(UTC).replace(microsecond=0)
    entries = {}
    for file in files:
        path = folder / file.path
        # The hub's sum has just been compared with the file; another is computed only where there was none.
        sha256 = file.sha256 or sha256_of(path)
        size = path.stat().st_size
        entries[file.path] = ManifestFile(size=size, sha256=sha256, address=file.url, date=now, half=half)
    return Manifest(files=entries)


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None where there is none or it is not one."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s is not readable and counts as missing: %s", path, str(error).splitlines()[0])
        return None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest so that a reader sees the old one or the new one. Raises OSError.

    Where the file system cannot put a file into another's place at once, a reader may see a part, which is none.
    """
    new = path.with_name(f"{path.name}.{this_process()}")
    new.write_text(manifest.as_json(), encoding="utf-8")
    flush(new)
    new.replace(path)


def unfinished_manifests(path: Path) -> dict[str, Path]:
    """Return what was to become the manifest at `path`, by the process that was at it."""
    start = f"{path.name}."
    return {new.name.removeprefix(start): new for new in path.parent.glob(f"{start}*")}
