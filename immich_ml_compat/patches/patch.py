"""A patch file: `Key: value` lines, an empty line, and what `git diff --full-index` prints.

Only new text files and changes within text files are understood: no renamed, removed or binary file, no change of mode.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

KEYS = ("Patch", "Immich", "Needs", "Summary", "License")
OPTIONAL_KEYS = ("Needs",)
LICENSE = "AGPL-3.0-only"
JOURNAL = ".immich-ml-compat"
"""Where a tree's files lie while they are replaced; no patch may touch it."""

_NO_FILE = "0" * 40
_DIFF = re.compile(r"diff --git a/(?P<path>.+) b/(?P=path)")
_INDEX = re.compile(r"index (?P<before>[0-9a-f]{40})\.\.(?P<after>[0-9a-f]{40})(?P<mode> 100644| 100755)?")
_HUNK = re.compile(r"@@ -(?P<line>\d+)(,\d+)? \+\d+(,\d+)? @@")


class PatchError(Exception):
    """What stands in the way of a patch, in one line: the thing, the cause and the remedy."""


@dataclass(frozen=True)
class Change:
    """What a patch does to one file.

    `before` and `after` are git's ids of the stock file (None: there is none) and of the stock file with this patch
    alone; `hunks` are the `@@` lines.
    """

    path: str
    before: str | None
    after: str
    hunks: tuple[str, ...]
    diff: bytes

    def line(self, number: int) -> int:
        """Return the line of the stock file at which a hunk, counted from 1, begins."""
        match = _HUNK.match(self.hunks[number - 1])
        assert match is not None
        return int(match["line"])


@dataclass(frozen=True)
class Patch:
    """A patch for one version of Immich; `needs` are the names of those that must be there for it to make sense."""

    name: str
    version: str
    needs: tuple[str, ...]
    summary: str
    changes: tuple[Change, ...]

    @cached_property
    def by_path(self) -> dict[str, Change]:
        """The changes by the path of their file."""
        return {change.path: change for change in self.changes}


def read_patch(path: Path) -> Patch:
    """Read a patch file. Raises PatchError where it is not of the form that this module's docstring gives."""
    try:
        return parse_patch(path.read_bytes())
    except OSError as error:
        raise PatchError(f"{path}: cannot be read ({error.strerror})") from error
    except PatchError as error:
        raise PatchError(f"{path}: {error}. Install this program again, or restore the file") from error


def parse_patch(content: bytes) -> Patch:
    """Read a patch file's content. Raises PatchError."""
    head, found, diff = content.partition(b"\n\n")
    if not found:
        raise PatchError("has no empty line between its header and its diff")
    try:
        header = _header(head.decode())
        parts = [_change(part) for part in re.split(rb"^(?=diff --git )", diff, flags=re.MULTILINE) if part]
    except UnicodeDecodeError as error:
        raise PatchError("is not UTF-8 where it must be") from error
    if not parts:
        raise PatchError("changes no file")
    paths = [change.path for change in parts]
    if len({*paths}) < len(paths):
        raise PatchError("has two parts for one file")
    needs = tuple(re.split(r"[,\s]+", header["Needs"])) if header.get("Needs") else ()
    return Patch(header["Patch"], header["Immich"], needs, header["Summary"], tuple(parts))


def _header(text: str) -> dict[str, str]:
    header: dict[str, str] = {}
    for line in text.split("\n"):
        key, found, value = line.partition(":")
        if not found or key not in KEYS or key in header:
            raise PatchError(f"has a header line that is none: {line!r}")
        header[key] = value.strip()
    for key in KEYS:
        if not header.get(key) and key not in OPTIONAL_KEYS:
            raise PatchError(f"lacks the header line {key!r}")
    if header["License"] != LICENSE:
        raise PatchError(f"has the licence {header['License']!r}, which must be {LICENSE}, Immich's own")
    return header


def _change(diff: bytes) -> Change:
    # Split at line feeds alone: a carriage return or a form feed is part of its line.
    lines = diff.split(b"\n")
    first = next((number for number, line in enumerate(lines) if line.startswith(b"@@")), len(lines))
    head = [line.decode() for line in lines[:first] if line]
    hunks = tuple(line.decode(errors="surrogateescape") for line in lines[first:] if line.startswith(b"@@"))
    opening = _DIFF.fullmatch(head[0]) if head else None
    if opening is None:
        raise PatchError(f"has a part that is none of `git diff`'s: {''.join(head[:1])!r}")
    path = opening["path"]
    require_safe(path)
    is_new = "new file mode 100644" in head
    index = next((match for line in head if (match := _INDEX.fullmatch(line))), None)
    if index is None or (index["before"] == _NO_FILE) != is_new or index["after"] == _NO_FILE:
        raise PatchError(f"{path}: its index line does not have the full ids of both files")
    expected = [head[0], *(["new file mode 100644"] if is_new else []), index[0]]
    if hunks:  # an empty new file has none
        expected += ["--- /dev/null" if is_new else f"--- a/{path}", f"+++ b/{path}"]
    if [line.rstrip("\t") for line in head] != expected or not (hunks or is_new):
        raise PatchError(f"{path}: is more than new text or a change of text in a file that stays where it is")
    if any(_HUNK.match(hunk) is None for hunk in hunks):
        raise PatchError(f"{path}: has a damaged hunk")
    return Change(path, None if is_new else index["before"], index["after"], hunks, diff)


def require_safe(path: str) -> None:
    """Raise PatchError for a path that might lead out of a tree, or into git's or this program's own folder there."""
    parts = PurePosixPath(path).parts
    own = path.startswith(JOURNAL) or ".git" in path.lower().split("/")
    outside = path.startswith("/") or ".." in parts or "/".join(parts) != path
    if own or outside or "\\" in path or not path.isprintable():
        raise PatchError(f"{path!r}: is no path for a patch to touch")
