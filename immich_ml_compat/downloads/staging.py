"""Where a model's files lie until they are complete and checked: `<cache>/.partial/<task>/<name>/<process>/`.

Each process writes in a folder of its own. What a process that ended left there is copied from, never written
to: it may only be asleep, and go on writing when it wakes.
"""

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

from .failures import DownloadError, Patience
from .files import RemoteFile
from .hub import Hub
from .progress import Progress
from .transfer import transfer

log = logging.getLogger(__name__)

_PROCESS = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Staging:
    """One model's files on their way, in this process."""

    def __init__(self, root: Path) -> None:
        """Take over what earlier processes left under `root`. Raises OSError."""
        self._root = root
        own = root / _PROCESS
        self._parts = own / "parts"
        self.folder = own / "model"
        """Complete files, each at its place in the model's folder."""
        for folder in (self._parts, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        for other in root.iterdir():
            if other != own:
                self._adopt(other)

    def obtain(self, hub: Hub, file: RemoteFile, progress: Progress, patience: Patience) -> None:
        """Have a complete, checked file in `folder`. Raises DownloadError, and OSError for what the disk refuses."""
        target = self.folder / file.path
        if file.is_at(target):
            return
        part = self._parts / file.identity
        self._fill(hub, file, part, progress, patience)
        with part.open("rb") as content:
            os.fsync(content.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def keep_only(self, files: Collection[str]) -> None:
        """Drop complete files that are not asked for any more."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in files:
                path.unlink()

    def remove_if_empty(self) -> None:
        """Leave nothing behind where nothing came."""
        if not any(path.is_file() for path in self._root.rglob("*")):
            self.remove()

    def remove(self) -> None:
        """Give the space back."""
        shutil.rmtree(self._root, ignore_errors=True)

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
        for path in sorted(other.rglob("*")):
            place = self._root / _PROCESS / path.relative_to(other)
            if path.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # its process lives and moved it on
                    shutil.copyfile(path, place)
                    path.unlink()
        shutil.rmtree(other, ignore_errors=True)
