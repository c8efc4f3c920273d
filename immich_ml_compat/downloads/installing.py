"""Getting checked files into a model's folder so that a kill at any moment leaves a whole model or none.

A marker outside the folder names the files that are about to be put there. While it exists the store does
not see the folder, and whoever comes next goes on from it. The manifest is written last; then go what is left
in the staging area and the marker.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from .manifest import MANIFEST, Manifest, read_manifest, write_manifest

log = logging.getLogger(__name__)


class Installation:
    """Puts files into one model's folder. Only one at a time may work on a folder."""

    def __init__(self, folder: Path, marker: Path, partial: Path) -> None:
        """`partial` is where files are staged, and has nothing of use any more once they are in place."""
        self.folder = folder
        self._marker = marker
        self._partial = partial

    @property
    def is_open(self) -> bool:
        """Whether an earlier installation broke off."""
        return self._marker.exists()

    @property
    def interrupted(self) -> Manifest:
        """The files that an earlier installation was about to put in place; empty where none broke off."""
        return read_manifest(self._marker) or Manifest()

    def install(self, staged: Path, new: Manifest, damaged: Collection[str] = ()) -> None:
        """Move the `new` files from `staged` into the folder, and set aside the `damaged` ones that are there.

        No other file is overwritten, renamed or deleted. Raises OSError.
        """
        earlier = self.interrupted
        plan = earlier.updated(new)
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(plan, self._marker)
        for path in damaged:
            self._set_aside(self.folder / path)
        if not self._move_whole(staged):
            for path in new.files:
                self._move(staged / path, self.folder / path, overwrite=path in earlier.files)
        mine = {path: file for path, file in plan.files.items() if self._is_mine(staged, path)}
        self._finish(Manifest(files=mine))

    def resume(self) -> bool:
        """End an installation that broke off when all its files were in place; tell whether none is open now."""
        if not self.is_open:
            return True
        plan = self.interrupted
        if not all(file.is_at(self.folder / path) for path, file in plan.files.items()):
            return False
        self._finish(plan)
        return True

    def record(self, found: Manifest) -> None:
        """Take files that are in the folder already into the manifest. Raises OSError."""
        known = read_manifest(self.folder / MANIFEST) or Manifest()
        write_manifest(known.updated(found), self.folder / MANIFEST)

    def _is_mine(self, staged: Path, path: str) -> bool:
        # What still lies in `staged` found somebody else's file in its place.
        return (self.folder / path).is_file() and not (staged / path).exists()

    def _finish(self, plan: Manifest) -> None:
        if self.folder.is_dir():
            self.record(plan)
        _sync(self.folder.parent)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._marker.unlink(missing_ok=True)

    def _move_whole(self, staged: Path) -> bool:
        """Rename the staged folder where the model has none yet; tell whether that could be done."""
        if self.folder.exists():
            return False
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(self.folder)
        except OSError as error:
            log.debug("%s cannot be renamed to %s (%s): moving its files", staged, self.folder, error)
            return False
        return True

    def _move(self, source: Path, target: Path, *, overwrite: bool) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            target.unlink(missing_ok=True)
        try:
            # Of all ways to give a file its name, only this one refuses where somebody was faster.
            os.link(source, target)
            source.unlink()
        except FileExistsError:
            log.info("%s is there already and stays", target)
        except OSError:  # no hard links here, or another disk
            if not target.exists():
                shutil.move(source, target)

    def _set_aside(self, path: Path) -> None:
        if path.exists():
            aside = path.with_name(f"{path.name}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
            path.rename(aside)
            log.error("%s does not load; it is kept as %s and replaced by a fresh copy", path, aside.name)


def _sync(folder: Path) -> None:
    """Have the disk remember the names in a folder, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
