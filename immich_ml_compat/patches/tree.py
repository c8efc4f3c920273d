"""A tree of Immich's source: its files, read without following a link out of it."""

import json
import stat
from pathlib import Path

from .patch import PatchError, require_safe


def locate(root: Path, path: str) -> Path:
    """Return where a file of a tree lies, whether it is there or not.

    Raises PatchError for a path that leads out of the tree or over a link, or to what is no plain file.
    """
    require_safe(path)
    place = root
    parts = path.split("/")
    for number, part in enumerate(parts, 1):
        place = place / part
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return root / path
        is_last = number == len(parts)
        if stat.S_ISLNK(mode):
            raise PatchError(f"{place}: is a link, which no patch follows. Put what it leads to there itself")
        if not (stat.S_ISREG(mode) if is_last else stat.S_ISDIR(mode)):
            raise PatchError(f"{place}: is no {'plain file' if is_last else 'folder'}, as it is in Immich's source")
    return place


def read(root: Path, path: str) -> bytes | None:
    """Return a file's content, or None where there is none. Raises PatchError, as `locate` or for want of a right."""
    place = locate(root, path)
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PatchError(f"{place}: cannot be read ({error.strerror})") from error


def claimed_version(root: Path) -> str | None:
    """Return the version that a tree's server gives itself, or None."""
    try:
        version = json.loads(read(root, "server/package.json") or b"{}").get("version")
    except (PatchError, ValueError, AttributeError):
        return None
    return version if isinstance(version, str) and version.isprintable() else None
