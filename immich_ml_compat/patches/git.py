"""One file's part of a patch, put in or taken out by `git apply`, in a folder of its own."""

import hashlib
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from .patch import Change, PatchError


class RejectedError(Exception):
    """A change does not fit a file; `hunks` are the numbers, from 1, of those that do not."""

    def __init__(self, hunks: list[int]) -> None:
        super().__init__(hunks)
        self.hunks = hunks


def blob_id(content: bytes | None) -> str | None:
    """Return git's id of a file's content; None where there is no file."""
    if content is None:
        return None
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def apply(content: bytes | None, change: Change, *, reverse: bool = False) -> bytes | None:
    """Return a file's content (None: no file) with a change put in, or taken out.

    Raises RejectedError where it does not fit, and PatchError without git.
    """
    with TemporaryDirectory(prefix="immich-ml-compat-") as name:
        folder = Path(name).resolve()
        file = folder / change.path
        if content is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if _git_apply(folder, change, reverse=reverse) == 0:
            return file.read_bytes() if file.exists() else None
        raise RejectedError(_rejected(file, change))


def _git_apply(folder: Path, change: Change, *, reverse: bool) -> int:
    # Neither the user's settings nor a repository around the folder may have a say in what comes out.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    command = ["git", "apply", "--reject", "--whitespace=nowarn", *(["--reverse"] if reverse else [])]
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, input=change.diff, capture_output=True, check=False
        ).returncode
    except FileNotFoundError as error:
        raise PatchError("git is not there, which puts patches in. Install it (Debian: apt install git)") from error


def _rejected(file: Path, change: Change) -> list[int]:
    try:
        lines = file.with_name(f"{file.name}.rej").read_bytes().split(b"\n")
    except OSError:  # no hunk was even tried: the file is missing, or there although it should be new
        return [*range(1, len(change.hunks) + 1)]
    refused = {line.decode(errors="surrogateescape") for line in lines if line.startswith(b"@@")}
    return [number for number, hunk in enumerate(change.hunks, 1) if hunk in refused]
