"""The graphs that engines keep on disk in forms of their own: which folder, and when it goes.

<cache>/.compiled/<engine>-<what its forms depend on>/<task>_<model>_…
"""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

COMPILED = ".compiled"
"""The folder of all forms, inside the cache folder."""

_FORGET_S = 30 * 24 * 3600.0


def compiled_folder(cache_folder: Path, kind: str) -> Path:
    """Return the folder of a kind of form, and note that it is in use.

    Those beside it that nobody has used for a month are removed: an older engine's, or another machine's.
    """
    folder = cache_folder / COMPILED / kind
    with suppress(OSError):  # not there yet, or not ours to write
        os.utime(folder)
        for other in folder.parent.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > _FORGET_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def forget_forms(cache_folder: Path, model_folder: Path) -> None:
    """Remove all forms of a model's graphs; where they are needed again they are made again."""
    task, name = model_folder.parts[-2:]
    for form in (cache_folder / COMPILED).glob("*/*"):
        if form.name.startswith(f"{task}_{name}_"):
            shutil.rmtree(form, ignore_errors=True)
