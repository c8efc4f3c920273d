"""Files of a tree replaced all or none, whatever happens meanwhile: a full disk, a signal, a kill.

Everything is written to a folder in the tree first, `.immich-ml-compat.new`: the new contents in `after/`, copies of
the old ones in `before/`, and a list of what comes and goes. Renamed to `.immich-ml-compat` it is a journal: from then
on whoever comes next and finds it puts everything back. When the last file is in place it is renamed once more, to
`.immich-ml-compat.old`, and the replacement is done. At every moment, then, a kill leaves one of the two trees or a
journal that leads back, by renaming copies that are on disk already: on a full disk too.
"""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .patch import JOURNAL, PatchError
from .tree import locate, read

_NEW, _OLD = f"{JOURNAL}.new", f"{JOURNAL}.old"
_LIST = "list.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Contents = Mapping[str, bytes | None]
"""Files' by path; None where there is no file."""


@contextmanager
def alone(root: Path) -> Iterator[bool]:
    """Wait until no other call works on a tree and keep others off it; put back what one that was killed has left.

    Gives whether there was such a thing. Raises PatchError where it cannot be put back.
    """
    # The folder itself is locked: no file is left behind, and a killed process holds nothing.
    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:
            raise PatchError(f"{root}: cannot be locked ({error.strerror}). Work on a copy on a local disk") from error
        yield _recover(root)
    finally:
        os.close(folder)


def replace(root: Path, before: Contents, after: Contents) -> None:
    """Give files of a tree new contents, or none where these are None; folders come and go with them.

    Modes and owners stay. `before` is what the files have been read as. Raises PatchError, with all as it was, where
    one has changed since, where something cannot be written, and on SIGINT and SIGTERM.
    """
    changing = sorted(path for path in after if before[path] != after[path])
    with _signals_noted() as noted:
        try:
            _prepare(root, changing, before, after)
            for path in changing:
                _require_none(noted)
                _put(root, path, gone=after[path] is None)
            _require_none(noted)
            (root / JOURNAL).rename(root / _OLD)  # done
        except OSError as error:
            name = error.filename2 or error.filename or root
            raise _put_back(root, f"{name}: cannot be written ({error.strerror})") from error
        except PatchError as error:
            raise _put_back(root, str(error)) from error
        with suppress(OSError):  # else the next call does it
            _finish(root)


def _prepare(root: Path, changing: list[str], before: Contents, after: Contents) -> None:
    new = root / _NEW
    new.mkdir()
    for path in changing:
        place = locate(root, path)
        if read(root, path) != before[path]:
            raise PatchError(f"{place}: has changed just now. Try again")
        for name, content in (("before", before[path]), ("after", after[path])):
            if content is not None:
                _write(new / name / path, content, like=place)
    come = [path for path in changing if before[path] is None]
    listed = {
        "come": come,
        "folders": sorted({folder for path in come for folder in _folders(path) if not (root / folder).exists()}),
        "go": [path for path in changing if after[path] is None],
    }
    _write(new / _LIST, json.dumps(listed).encode(), like=root)
    new.rename(root / JOURNAL)


def _write(file: Path, content: bytes, *, like: Path) -> None:
    """Write a file, with the owner and the mode of the one that it is to replace, if any."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    _give_owner(file, like)
    if like.is_file():
        shutil.copymode(like, file)


def _give_owner(place: Path, like: Path) -> None:
    """Have what root writes belong to the owner of a file, or of the folder where it will be."""
    owner = next(path for path in (like, *like.parents) if path.exists()).stat()
    if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (place.stat().st_uid, place.stat().st_gid):
        os.chown(place, owner.st_uid, owner.st_gid)


def _put(root: Path, path: str, *, gone: bool) -> None:
    place = locate(root, path)
    if gone:
        place.unlink()
        return
    for folder in reversed(_folders(path)):
        if not (root / folder).exists():
            (root / folder).mkdir()
            _give_owner(root / folder, (root / folder).parent)
    (root / JOURNAL / "after" / path).replace(place)


def _folders(path: str) -> list[str]:
    """Return the folders above a file of the tree, the nearest first."""
    return [folder.as_posix() for folder in Path(path).parents][:-1]


def _put_back(root: Path, cause: str) -> PatchError:
    try:
        _recover(root)
    except PatchError as error:
        return PatchError(f"{cause}; and {error}")
    return PatchError(f"{cause}. Nothing was changed")


def _recover(root: Path) -> bool:
    """Put back what a journal has, and remove this module's folders; return whether there was a journal.

    May be cut off and begun again at any moment. Raises PatchError.
    """
    journal = root / JOURNAL
    try:
        found = _is_own(journal)
        if found:
            _roll_back(root, journal)
            if _is_own(root / _OLD):
                shutil.rmtree(root / _OLD)
            journal.rename(root / _OLD)
        if _is_own(root / _NEW):
            shutil.rmtree(root / _NEW)
        if _is_own(root / _OLD):
            _finish(root)
    except (OSError, ValueError, KeyError, TypeError, PatchError) as error:
        raise PatchError(
            f"{journal}: what a call that was cut off has changed cannot be put back ({error}). Call again when that "
            f"is mended; or remove this folder, and restore Immich's source"
        ) from error
    return found


def _is_own(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def _roll_back(root: Path, journal: Path) -> None:
    listed = json.loads((journal / _LIST).read_bytes())
    for path in listed["come"]:
        locate(root, path).unlink(missing_ok=True)
    _remove_empty(root, listed["folders"])
    copies = journal / "before"
    for copy in sorted(copies.rglob("*")):
        path = copy.relative_to(copies).as_posix()
        # What was not reached is left alone: it may be the very file that could not be replaced.
        if copy.is_file() and not copy.is_symlink() and read(root, path) != copy.read_bytes():
            copy.replace(locate(root, path))


def _finish(root: Path) -> None:
    """Remove the folders in which no file is left, and then what has become of the journal."""
    file = root / _OLD / _LIST
    if file.is_file():
        gone = json.loads(file.read_bytes())["go"]
        _remove_empty(root, {folder for path in gone for folder in _folders(path)})
    shutil.rmtree(root / _OLD, ignore_errors=True)


def _remove_empty(root: Path, folders: Iterable[str]) -> None:
    for folder in sorted(folders, reverse=True):  # what is inside another one comes before it
        place = locate(root, f"{folder}/x").parent
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Have SIGINT and SIGTERM only noted down, so that they end nothing halfway."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)

    handlers = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _require_none(noted: list[int]) -> None:
    if noted:
        raise PatchError(f"Interrupted by {signal.Signals(noted[0]).name}")
