"""When, of what and where a figure was taken."""

import datetime
import subprocess

from ..machine import describe


def provenance() -> str:
    """Return the date, the commit (with a + where the files differ from it) and the machine."""
    commit = _git("rev-parse", "--short", "HEAD") or "no commit"
    changed = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
    machine = describe()
    return f"{datetime.date.today()}, {commit}{changed}, {machine['cores']} cores of {machine['cpu']}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
