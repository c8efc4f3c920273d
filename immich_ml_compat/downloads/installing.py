"""Getting checked files into a model's folder so that a kill at any moment leaves a whole model or none.

A marker outside the folder names the files that are about to be put there, one marker for each process that does so.
While there is any the store does not see the folder, and whoever comes next goes on from those of processes that are
no more. No process touches a file that is as it should be, or another's. A move may be a slow copy that others see
half-way, and may meet another process's: so what was moved is read again, and only if it is right the manifest is
written, and last goes the marker.
"""

import contextlib
import errno
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from ..catalog import Task
from ..disk import flush
from ..store import ModelStore
from .manifest import MANIFEST, Manifest, read_manifest, unfinished_manifests, write_manifest
from .presence import Presence, this_process

log = logging.getLogger(__name__)

_SETTLE_S = 5.0
"""For how long a file system may show a file as it was before."""

_LONGEST_SETTLE_S = 60.0
"""The same where other processes write it, too."""

_LONGEST_MOVE_S = 600.0
"""For how long another process may be at moving the same file."""

_POLL_S = 0.1


class Installation:
    """Puts files into one model's folder, while this process is shown to be present."""

    def __init__(self, store: ModelStore, task: Task, name: str, presence: Presence) -> None:
        self.folder = store.model_folder(task, name)
        self._store = store
        self._task = task
        self._name = name
        self._presence = presence

    @property
    def is_open(self) -> bool:
        """Whether an earlier installation broke off, or another process is at one."""
        return bool(self._store.markers(self._task, self._name))

    @property
    def interrupted(self) -> Manifest:
        """The files that earlier installations were about to put in place; empty where none broke off.

        Waits for other processes that are at it.
        """
        return _plan(self._take_over())

    def install(self, staged: Path, new: Manifest, damaged: Collection[str] = ()) -> None:
        """Move the `new` files from `staged` into the folder, and set aside the `damaged` ones that are there.

        No other file is overwritten, renamed or deleted. Raises OSError.
        """
        taken_over = self._take_over()
        earlier = _plan(taken_over)
        plan = earlier.updated(new)
        # Never in the place of another, which would be lost if this broke off.
        marker = self._store.marker(self._task, self._name, f"{this_process()}.{uuid.uuid4().hex[:8]}")
        marker.write_text(plan.as_json(), encoding="utf-8")
        flush(marker)
        self._presence.keep_fresh(marker)
        self._clear_way(new, damaged, earlier)
        if not self._move_whole(staged):
            for path, file in new.files.items():
                if not marker.exists():
                    raise OSError(errno.ESTALE, "Another process took this for dead", str(marker))
                is_half = path in earlier.files and not file.is_at(self.folder / path)
                self._move(staged / path, self.folder / path, overwrite=is_half)
        mine = {path: file for path, file in plan.files.items() if self._is_mine(staged, path, path in earlier.files)}
        self._verify(Manifest(files=mine))
        self._finish(Manifest(files=mine), [*taken_over, marker])

    def resume(self) -> bool:
        """End an installation that broke off when all its files were in place; tell whether none is open now.

        Raises OSError.
        """
        if not (markers := self._take_over()):
            return True
        plan = _plan(markers)
        if self._wrong(plan):
            return False
        self._finish(plan, markers)
        return True

    def record(self, found: Manifest) -> None:
        """Take files that are in the folder already into the manifest. Raises OSError."""
        path, found = self.folder / MANIFEST, found.stamped(self.folder)
        for _ in _while_settling(_LONGEST_SETTLE_S):
            known = read_manifest(path)
            if known is not None and known.has(found):
                return
            self._write(path, (known or Manifest()).updated(found))  # again where another wrote its own

    def settle(self) -> None:
        """See to it that the store sees the folder, once others are done with it. Raises OSError.

        A file that is not as long as the manifest says may only look so, for a while: file systems remember what they
        saw. Where it stays so it is no longer what was downloaded, and counts as a person's own from now on.
        """
        torn: list[str] = []
        for _ in _while_settling():
            self._take_over()
            if not (torn := self._store.torn_files(self._task, self._name)):
                return
        log.warning("%s: %s changed since it was downloaded, and stays as it is", self.folder, ", ".join(torn))
        known = read_manifest(self.folder / MANIFEST) or Manifest()
        left = {path: file for path, file in known.files.items() if path not in torn}
        self._write(self.folder / MANIFEST, Manifest(files=left))

    def _markers(self) -> dict[Path, str]:
        """Return the markers that are there, and whose each is."""
        return {path: tag.partition(".")[0] for path, tag in self._store.markers(self._task, self._name).items()}

    def _markers_left(self) -> list[Path]:
        """Return the markers of this process, and those that other processes left."""
        return [path for path, process in self._markers().items() if self._presence.is_over(path, process)]

    def _take_over(self) -> list[Path]:
        """Wait for others that are at it; return the markers of those who are no more, and this process's.

        Never to be done by who is at it: they would wait for each other.
        """
        self._presence.wait_for(self._markers)
        return self._markers_left()

    def _is_mine(self, staged: Path, path: str, interrupted: bool) -> bool:
        # What still lies in `staged` found somebody else's file in its place.
        return (self.folder / path).is_file() and (interrupted or not (staged / path).exists())

    def _wrong(self, plan: Manifest) -> list[str]:
        return [path for path, file in plan.files.items() if not file.is_at(self.folder / path)]

    def _clear_way(self, new: Manifest, damaged: Collection[str], earlier: Manifest) -> None:
        for path in self._wrong(Manifest(files={path: new.files[path] for path in damaged})):
            self._set_aside(path, "does not load", "is replaced by a fresh copy")
        for path in self._wrong(earlier):
            if path not in new.files:  # the hub has it no longer
                self._set_aside(path, "is there in half", "cannot be had any more")

    def _finish(self, plan: Manifest, markers: list[Path]) -> None:
        """Write the manifest and remove those markers; who died since they were looked for may have done harm."""
        if self.folder.is_dir():
            self.record(plan)
        _sync(self.folder.parent)
        self._presence.clear()
        for marker in markers:
            marker.unlink(missing_ok=True)

    def _verify(self, plan: Manifest) -> None:
        """Wait until all files are in place as planned: another process may be moving its own there just now."""
        wrong = self._wrong(plan)
        start = time.monotonic()
        while wrong:
            is_last = len(self._markers_left()) == len(self._markers())
            if time.monotonic() - start > (_SETTLE_S if is_last else _LONGEST_MOVE_S):
                raise OSError(errno.EIO, "It is not what was written there", str(self.folder / wrong[0]))
            time.sleep(_POLL_S)
            wrong = self._wrong(Manifest(files={path: plan.files[path] for path in wrong}))

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

    def _set_aside(self, name: str, cause: str, outcome: str) -> None:
        path = self.folder / name
        if path.exists():
            aside = path.with_name(f"{path.name}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
            path.rename(aside)
            log.error("%s %s; it is kept as %s and %s", path, cause, aside.name, outcome)

    def _write(self, path: Path, manifest: Manifest) -> None:
        write_manifest(manifest, path)
        for process, unfinished in unfinished_manifests(path).items():
            if not self._presence.is_alive(process):
                unfinished.unlink(missing_ok=True)


def _plan(markers: Iterable[Path]) -> Manifest:
    plan = Manifest()
    for marker in markers:
        plan = plan.updated(read_manifest(marker) or Manifest())
    return plan


def _while_settling(seconds: float | None = None) -> Iterator[None]:
    """Yield at once and again and again, until the file system must show things as they are."""
    end = time.monotonic() + (_SETTLE_S if seconds is None else seconds)
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(_POLL_S * random.uniform(0.5, 2))  # not in step with another process


def _sync(folder: Path) -> None:
    """Have the disk remember the names in a folder, where the file system can do that."""
    with contextlib.suppress(OSError):
        flush(folder)
