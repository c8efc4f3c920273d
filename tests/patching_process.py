"""A process that replaces a tree's files and is cut off: `python -m tests.patching_process HOW FOLDER`.

HOW is a signal's name or ENOSPC, which strikes before the first change to the tree, in another run before the second,
and so on until a run gets through. One line of JSON tells of every run: the exit code (None: killed; STRUCK: it got
through all the same), whether files had been changed, whether the next call put anything back, and which tree there was
in the end.
"""

import argparse
import errno
import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from immich_ml_compat.patches import PatchError
from immich_ml_compat.patches.patch import JOURNAL
from immich_ml_compat.patches.transaction import alone, replace

from .patch_trees import EDITS, STOCK, Snapshot, edited, put_stock, snapshot

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STRUCK = 3
PATCHED = edited(sorted(EDITS))


class Run(NamedTuple):
    """What became of one run."""

    code: int | None
    had_changed: bool
    put_back: bool
    tree: str


def strike_before(number: int, tree: Path, strike: Callable[[], None], events: tuple[str, ...] = CHANGES) -> None:
    """Have this process struck before its so manieth change to a tree: whatever Python asks of the system is seen."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        to_read = event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING)
        if event in events and not to_read and str(arguments[0]).startswith(f"{tree}/"):
            seen += 1
            if seen == number:
                strike()

    sys.addaudithook(hook)


def forked(work: Callable[[], int]) -> int | None:
    """Do work in a process of its own; return its exit code, or None where it was killed."""
    process = os.fork()
    if process == 0:
        gc.disable()  # an engine that an earlier test has left would wait for its threads, which are not here
        code = 99
        try:
            code = work()
        finally:
            if code == 99:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def work_on(tree: Path, *, apply: bool) -> int:
    """Put the example's files in place, or the stock ones; 1 where that failed in an orderly way."""
    with alone(tree):
        before, after = (STOCK, PATCHED) if apply else (PATCHED, STOCK)
        paths = sorted(before.keys() | after.keys())
        try:
            replace(tree, {path: before.get(path) for path in paths}, {path: after.get(path) for path in paths})
        except PatchError:
            return 1
    return 0


def recover(tree: Path) -> bool:
    """Do what the next call does first."""
    with alone(tree) as put_back:
        return put_back


def strike(how: str) -> None:
    """Strike this process."""
    if how == "ENOSPC":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), getattr(signal, how))


def runs(options: argparse.Namespace, folder: Path, *, apply: bool) -> Iterator[Run]:
    """Strike at every place, or every few with `stride`; with `tear` the call that puts things back is killed, too."""
    stock = put_stock(folder / "stock")
    patched = put_stock(folder / "patched", PATCHED)
    known = {"stock": snapshot(stock), "patched": snapshot(patched)}
    for number in count(1, options.stride):
        tree = folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(stock if apply else patched, tree)
        code = forked(partial(struck, number, tree, options.how, apply=apply))
        had_changed = changed(tree, known["stock" if apply else "patched"])
        if options.tear and (tree / JOURNAL).is_dir():
            tear_recovery(tree)
        put_back, now = recover(tree), snapshot(tree)
        yield Run(code, had_changed, put_back, next((name for name, other in known.items() if other == now), "another"))
        if code == 0:
            return


def struck(number: int, tree: Path, how: str, *, apply: bool) -> int:
    """Work on a tree and be struck."""
    times: list[str] = []

    def note_and_strike() -> None:
        times.append(how)
        strike(how)

    strike_before(number, tree, note_and_strike)
    return work_on(tree, apply=apply) or (STRUCK if times else 0)


def tear_recovery(tree: Path) -> None:
    """Kill one recovery after another, each a step later than the one before."""

    def torn(number: int) -> int:
        strike_before(number, tree, lambda: strike("SIGKILL"))
        recover(tree)
        return 0

    for number in count(1):
        if forked(partial(torn, number)) is not None:
            return


def changed(tree: Path, before: Snapshot) -> bool:
    """Tell whether anything but this program's own folders differs."""
    return {path: entry for path, entry in snapshot(tree).items() if not path.startswith(JOURNAL)} != before


def main() -> None:
    """Print the runs, in both directions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("how")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tear", action="store_true")
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    found = {
        direction: [*runs(options, options.folder / direction, apply=direction == "apply")]
        for direction in ("apply", "revert")
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
