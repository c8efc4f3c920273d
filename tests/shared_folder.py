"""Mounts a folder as several machines see it that share it over a poor file system.

    python -m tests.shared_folder <folder> <mount point> <traits as JSON>

Each machine has a mount, and a process, of its own. There are no hard links and no locks, names cannot be exchanged,
and a rename is a slow copy, file after file, that all other machines see half-way.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import mfusepy

    Operations = mfusepy.Operations
else:
    Operations = object

ROOT = Path(__file__).parents[1]

_PIECES = 4
_NOW = (1 << 30) - 1  # UTIME_NOW, as nanoseconds


@dataclass(frozen=True)
class Traits:
    """How poor the file system is."""

    excludes: bool = True
    """Whether of two machines that create the same file only one may."""

    unseen_s: float = 0.5
    """Seconds for which other machines do not see a lock that was created, where it does not exclude."""

    rename_s: float = 0.02
    """Seconds for a piece of a file that is renamed; it is so many times as much in all."""

    remembers_s: float = 0.0
    """Seconds for which a machine holds what it knows of a file for true."""


class SharedFolder(Operations):  # type: ignore[misc, valid-type]
    """One machine's view of the folder."""

    use_ns = True

    def __init__(self, folder: Path, traits: Traits) -> None:
        self._folder = folder
        self._traits = traits
        self._own: set[str] = set()

    def _at(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    def _is_unseen(self, path: Path) -> bool:
        if self._traits.excludes or path.suffix != ".lock" or str(path) in self._own:
            return False
        return time.time() - path.stat().st_ctime < self._traits.unseen_s

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        file = self._at(path)
        if self._is_unseen(file):
            raise OSError(errno.ENOENT, "Not there yet")
        stat = file.lstat()
        wanted = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        times = {f"st_{kind}time": getattr(stat, f"st_{kind}time_ns") for kind in "amc"}
        return {name: getattr(stat, name) for name in wanted} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        names = []
        for file in self._at(path).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if not self._is_unseen(file):
                    names.append(file.name)
        return [".", "..", *names]

    def create(self, path: str, mode: int, fi: object = None) -> int:
        file = self._at(path)
        self._own.add(str(file))
        return os.open(file, os.O_RDWR | os.O_CREAT | (os.O_EXCL if self._traits.excludes else os.O_TRUNC), mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~(os.O_EXCL | os.O_CREAT | os.O_APPEND))  # offsets are told

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._at(path), length)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        raise OSError(errno.EINVAL, "Cannot be asked for")

    def mkdir(self, path: str, mode: int) -> None:
        self._at(path).mkdir(mode)

    def rmdir(self, path: str) -> None:
        self._at(path).rmdir()

    def unlink(self, path: str) -> None:
        self._at(path).unlink()

    def chmod(self, path: str, mode: int) -> None:
        self._at(path).chmod(mode)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        if times is None or _NOW in times:
            os.utime(self._at(path))
        else:
            os.utime(self._at(path), ns=times)

    def statfs(self, path: str) -> dict[str, int]:
        stat = os.statvfs(self._folder)
        return {name: getattr(stat, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")}

    def link(self, target: str, source: str) -> None:
        raise OSError(errno.ENOTSUP, "No hard links here")

    def lock(self, path: str, fh: int, cmd: int, lock: object) -> None:
        raise OSError(errno.ENOTSUP, "No locks here")

    def flock(self, path: str, fh: int, op: int) -> None:
        raise OSError(errno.ENOTSUP, "No locks here")

    def rename(self, old: str, new: str) -> None:
        self._move(self._at(old), self._at(new))

    def _move(self, old: Path, new: Path) -> None:
        if old.is_dir():
            new.mkdir(exist_ok=True)
            for file in sorted(old.iterdir(), reverse=True):  # graphs before what belongs to them
                self._move(file, new / file.name)
            old.rmdir()
            return
        content = old.read_bytes()
        size = -(-len(content) // _PIECES) or 1
        with new.open("wb", buffering=0) as target:
            for start in range(0, len(content), size):
                time.sleep(self._traits.rename_s)
                target.write(content[start : start + size])
        old.unlink()


@contextlib.contextmanager
def mounted(folder: Path, mount_point: Path, traits: Traits) -> Iterator[None]:
    """Have one more machine see the folder."""
    mount_point.mkdir()
    words = [str(folder), str(mount_point), json.dumps(asdict(traits))]
    with subprocess.Popen([sys.executable, "-m", __name__, *words], cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 30
            while not mount_point.is_mount():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(mount_point)], check=False)
            process.kill()


def main() -> None:
    class Fuse(mfusepy.FUSE):  # type: ignore[misc]
        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            return -errno.EINVAL if flags else self.rename_fuse_2(old, new)

    folder, mount_point, traits = Path(sys.argv[1]), sys.argv[2], Traits(**json.loads(sys.argv[3]))
    remembered = {f"{what}_timeout": traits.remembers_s for what in ("attr", "entry", "negative")}
    Fuse(SharedFolder(folder, traits), mount_point, foreground=True, **remembered)


if __name__ == "__main__":
    main()
