"""Where a model's files lie until they are complete and checked: `<cache>/.partial/<task>/<name>/<process>/`.

Each process writes in a folder of its own. What a process that is no more left there is taken over; what belongs to
one that lives stays as it is (`presence.py`).
"""

import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from ..disk import flush
from ..errors import ModelUnavailableError
from .failures import DISK_FULL, DownloadError, Patience
from .files import RemoteFile
from .hub import Hub
from .presence import Presence
from .progress import Progress
from .transfer import transfer

log = logging.getLogger(__name__)


class Staging:
    """One model's files on their way, in this process. As a context, it is gone where all went well.

    Otherwise what came stays for the next try, unless there is none because it is of no use (ModelUnavailableError),
    or the disk is full: that hurts more than a download that begins anew.
    """

    def __init__(self, presence: Presence) -> None:
        """Take over what processes that are no more left there. Raises OSError."""
        self._presence = presence
        self._own = own = presence.own
        self._parts = own / "parts"
        self._copy = own / "copy"
        self.folder = own / "model"
        """Complete files, each at its place in the model's folder."""
        self.made = own / "made"
        """What is made of them here, likewise; no later process takes it over."""
        for folder in (self._parts, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        for other in presence.root.iterdir():
            if other != own and other.is_dir() and not presence.is_alive(other.name):
                self._adopt(other)

    def __enter__(self) -> "Staging":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.made, ignore_errors=True)
        nothing_came = not any(path.is_file() for path in self._own.rglob("*"))
        disk_is_full = isinstance(error, OSError) and error.errno in DISK_FULL
        if error is None or nothing_came or disk_is_full or isinstance(error, ModelUnavailableError):
            self._presence.clear()

    def obtain(self, hub: Hub, file: RemoteFile, progress: Progress, patience: Patience) -> None:
        """Have a complete, checked file in `folder`. Raises DownloadError, and OSError for what the disk refuses."""
        target = self.folder / file.path
        if file.is_at(target):
            return
        part = self._parts / file.identity
        self._fill(hub, file, part, progress, patience)
        flush(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def keep_only(self, files: Collection[str]) -> None:
        """Drop complete files that are not asked for any more."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in files:
                path.unlink()

    def lacking(self, file: RemoteFile) -> int:
        """Return the bytes of a file that have not come yet, as far as its size is known."""
        part = self._parts / file.identity
        if file.size is None or (self.folder / file.path).is_file():
            return 0
        return max(0, file.size - (part.stat().st_size if part.is_file() else 0))

    def clear_made(self) -> Path:
        """Empty the folder `made`, and return it."""
        shutil.rmtree(self.made, ignore_errors=True)
        self.made.mkdir()
        return self.made

    def discard(self, path: Path) -> bool:
        """Drop a complete file that turned out to be of no use; tell whether it was one, and not from elsewhere."""
        if mine := path.is_relative_to(self.folder):
            path.unlink()
        return mine

    def _fill(self, hub: Hub, file: RemoteFile, part: Path, progress: Progress, patience: Patience) -> None:
        # Twice: what a former process or a bad connection left may be damaged. A hub that is wrong stays wrong.
        for attempt in (1, 2):
            transfer(hub, file, part, progress, patience)
            part.touch()  # a file of no bytes at all
            if file.is_at(part):
                return
            progress.advance(-part.stat().st_size)
            part.unlink()
            log.warning("%s: wrong sum (attempt %d of 2)", file.url, attempt)
        raise DownloadError(
            f"{file.url} has another sum than it should, twice",
            f"Something on the way changes files: check proxies and {hub.mirror_variable}",
        )

    def _adopt(self, other: Path) -> None:
        kept = [path for name in (self._parts.name, self.folder.name) for path in (other / name).rglob("*")]
        for path in sorted(kept):
            place = self._own / path.relative_to(other)
            with contextlib.suppress(FileNotFoundError):  # its process lives all the same and moved it on
                if path.is_file() and (not place.exists() or place.stat().st_size < path.stat().st_size):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, self._copy)  # under its own name only once it is whole
                    self._copy.replace(place)
                    path.unlink()
        shutil.rmtree(other, ignore_errors=True)
