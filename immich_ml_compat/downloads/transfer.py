"""One file over HTTP, resumed where it broke off."""

import logging
import re
from pathlib import Path

import httpx2

from .failures import DownloadError, Patience, require_space
from .files import LARGEST, RemoteFile
from .hub import Hub
from .progress import Progress

log = logging.getLogger(__name__)


def transfer(hub: Hub, file: RemoteFile, part: Path, progress: Progress, patience: Patience) -> None:
    """Bring the file at `part` to its full length, beginning with what it has.

    Raises DownloadError, and OSError for what the disk refuses; what came stays for the next try.
    """
    failures = 0
    while file.size is None or _size(part) != file.size:
        before = _size(part)
        try:
            _append(hub, file, part, progress)
            return
        except DownloadError as error:
            failures = 1 if _size(part) > before else failures + 1
            patience.wait(failures, error)
            log.info("%s: %s; going on at byte %d", file.path, error, _size(part))


def _append(hub: Hub, file: RemoteFile, part: Path, progress: Progress) -> None:
    offset = _size(part)
    if file.size is not None and offset > file.size:
        offset = _start_over(part, progress)
    with hub.open(file.url, offset) as response:
        if response.status_code == 416:
            return _check_nothing_is_left(response, part, progress)
        if offset and _start(response) != offset:
            offset = _start_over(part, progress)
            if response.status_code == 206:
                raise DownloadError(f"{file.url}: not the part that was asked for", "Try again", transient=True)
        length = response.headers.get("Content-Length")
        expected = offset + int(length) if length else file.size
        if expected is not None and expected > LARGEST:
            raise DownloadError(f"{file.url}: {expected} bytes is no size of a model's file", "Do not use this hub")
        if expected is not None:
            progress.expect(file.path, expected)
            require_space(part.parent, expected - offset)
        with part.open("ab", buffering=0) as output:
            for chunk in response.iter_raw():
                output.write(chunk)
                progress.advance(len(chunk))
    if expected is not None and _size(part) < expected:
        raise DownloadError(f"{file.url} broke off at byte {_size(part)} of {expected}", "Try again", transient=True)
    return None


def _check_nothing_is_left(response: httpx2.Response, part: Path, progress: Progress) -> None:
    """Take "there is nothing at that place" as the end, where the file is as long as what is here."""
    if response.headers.get("Content-Range") != f"bytes */{_size(part)}":
        _start_over(part, progress)
        raise DownloadError(f"{response.url} is shorter than what came before", "Try again", transient=True)


def _start(response: httpx2.Response) -> int | None:
    """Return the byte a partial answer begins with; None for a whole one."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if response.status_code == 206 and found else None


def _start_over(part: Path, progress: Progress) -> int:
    progress.advance(-_size(part))
    part.unlink(missing_ok=True)
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
