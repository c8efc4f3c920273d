"""The `models` command: what is on disk, and getting, checking and removing it."""

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from .catalog import CHINESE_CLIP_DIMENSIONS, Task, clean_name, short_name
from .compiled import forget_forms
from .downloads import Downloader
from .downloads.checking import State, check, files_in
from .downloads.converting import own, require_readable
from .downloads.failures import DownloadError
from .downloads.manifest import MANIFEST, Manifest, read_manifest
from .downloads.origin import is_small
from .downloads.sources import downloadable
from .errors import ModelUnavailableError
from .settings import ConfigurationError, Settings
from .store import GRAPH, PARTIAL, ModelStore

Model = tuple[Task, str]


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Do what the options say and return the exit code."""
    store = ModelStore(settings.cache_folder)
    downloader = Downloader(store, settings.model_source, checkpoints=settings.clip_download_root)
    command = _Command(store, downloader, options)
    actions = {
        "list": command.show,
        "download": command.download,
        "convert": command.convert,
        "verify": command.verify,
        "remove": command.remove,
    }
    return actions[options.action]()


class _Command:
    def __init__(self, store: ModelStore, downloader: Downloader, options: argparse.Namespace) -> None:
        self._store = store
        self._downloader = downloader
        self._options = options

    def show(self) -> int:
        models = self._on_disk()
        if self._options.all:
            models = sorted({*models, *self._downloadable()})
        rows = [("TASK", "NAME", "SIZE", "FROM", "STATE"), *(self._row(task, name) for task, name in models)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            print("  ".join([*cells, row[4]]))
        return 0

    def download(self) -> int:
        failed = 0
        for task, name in self._named(self._downloadable(), "a model that can be downloaded"):
            try:
                self._downloader.download(task, name)
            except ModelUnavailableError as error:
                print(error.detail, file=sys.stderr)
                failed = 1
            else:
                self._print_state(task, name)
        return failed

    def _print_state(self, task: Task, name: str) -> None:
        print(f"{task}/{name}: {self._state(task, name)}, {_megabytes(self._size(task, name))}")

    def convert(self) -> int:
        name = _chinese_clip_name(self._options.name)
        path = self._options.checkpoint
        if path.resolve().is_relative_to((self._store.folder / PARTIAL).resolve()):
            raise ConfigurationError(
                f"{path} is part of a download that was begun, which `models download {name}` goes on with. To convert "
                f"it, copy it to another folder first"
            )
        try:
            require_readable(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            with self._downloader.alone(Task.CLIP, name):
                self._require_absence(name)
                conversion = self._downloader.conversion(Task.CLIP, name)
                conversion.bring(lambda _: own(path), half=self._options.fp16)
        except ModelUnavailableError as error:
            print(error.detail, file=sys.stderr)
            return 1
        except DownloadError as error:
            print(error, file=sys.stderr)
            return 1
        self._print_state(Task.CLIP, name)
        return 0

    def _require_absence(self, name: str) -> None:
        folder = self._store.model_folder(Task.CLIP, name)
        # What is half in place is not there, and is put in place by what comes now; but not beside what was before.
        half_in_place = self._store.markers(Task.CLIP, name) and not (folder / MANIFEST).exists()
        if any(path.is_file() for path in folder.rglob("*")) and not half_in_place:
            raise ConfigurationError(
                f"{folder} is there already and stays as it is. Remove it first, with `models remove {name}` where "
                f"this program made it, or move it away"
            )

    def verify(self) -> int:
        models = self._named(self._on_disk(), f"in {self._store.folder}") if self._options.names else self._on_disk()
        bad, notes = False, set()
        for task, name in models:
            if not self._store.model_folder(task, name).is_dir():
                if not self._store.missing(task, name):
                    print(f"{task}/{name}: built in; its package was checked when it was installed")
                continue
            findings = check(self._store, self._downloader, task, name)
            bad |= any(finding.state.is_bad for finding in findings)
            for finding in findings:
                note = f" ({finding.note})" if finding.state.is_bad else ""
                print(f"{task}/{name}/{finding.path}: {finding.state}{note}")
                if finding.state == State.UNKNOWN:
                    notes.add(finding.note)  # the same for all files of a model: said once
        for note in sorted(notes):
            print(note, file=sys.stderr)
        return int(bad)

    def remove(self) -> int:
        models = self._named(self._on_disk(), f"in {self._store.folder}")
        for task, name in models:
            folder = self._store.model_folder(task, name)
            begun = self._begun(task, name)
            if not folder.exists() and not self._store.missing(task, name):
                raise ConfigurationError(f"{task}/{name} is built in: it is removed with the package that holds it")
            if read_manifest(folder / MANIFEST) is None and (folder.exists() or not begun):
                raise ConfigurationError(
                    f"{folder} was not downloaded by this program (the stock server or a person put it there): it is "
                    f"not removed. Delete the folder yourself"
                )
        if not self._options.yes and not _confirmed(models):
            raise ConfigurationError("Nothing was removed. Say --yes to remove without being asked")
        for task, name in models:
            with self._downloader.alone(task, name):
                self._remove(task, name)
        return 0

    def _remove(self, task: Task, name: str) -> None:
        folder = self._store.model_folder(task, name)
        entries = (read_manifest(folder / MANIFEST) or Manifest()).files
        freed = self._begun(task, name)
        shutil.rmtree(self._store.partial(task, name), ignore_errors=True)
        # Graphs first: what is left when this breaks off is no model, and the rest can be downloaded again.
        for path in sorted(entries, key=lambda path: not path.endswith(GRAPH)):
            file = folder / path
            if not file.is_file():
                continue
            if not entries[path].is_at(file):
                print(f"{file}: kept, it is not the file that was downloaded any more")
                continue
            freed += file.stat().st_size
            file.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)
        _remove_empty_folders(folder)
        forget_forms(self._store.folder, folder)
        kept = " (files of other origin stay)" if folder.exists() else ""
        print(f"{task}/{name}: {_megabytes(freed)} freed{kept}")

    def _row(self, task: Task, name: str) -> tuple[str, str, str, str, str]:
        size = self._size(task, name)
        return task, name, _megabytes(size) if size else "-", self._origin(task, name), self._state(task, name)

    def _origin(self, task: Task, name: str) -> str:
        folder = self._store.model_folder(task, name)
        known = (read_manifest(folder / MANIFEST) or Manifest()).files
        if graphs := [file for path, file in known.items() if not is_small(path)]:
            latest = max(graphs, key=lambda file: file.date)
            return f"{urlsplit(latest.address).netloc or 'own checkpoint'}, {latest.date:%Y-%m-%d}"
        if folder.is_dir():
            return "stock server or own"
        return "built in" if not self._store.missing(task, name) else "-"

    def _state(self, task: Task, name: str) -> str:
        missing = self._store.missing(task, name)
        if begun := self._begun(task, name):
            return f"{_megabytes(begun)} downloaded, not complete"
        if not self._store.model_folder(task, name).is_dir():
            return "not downloaded" if missing else "complete"
        if self._store.markers(task, name):
            return "being put in place (the next request or `models download` goes on)"
        return f"lacks {', '.join(missing)}" if missing else "complete"

    def _begun(self, task: Task, name: str) -> int:
        """Return the bytes of a download that was begun and not ended."""
        files = [path for path in self._store.partial(task, name).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def _size(self, task: Task, name: str) -> int:
        folder = self._store.model_folder(task, name)
        return sum((folder / path).stat().st_size for path in files_in(folder))

    def _on_disk(self) -> list[Model]:
        return [model for model in self._store.models() if self._options.task in (None, model[0])]

    def _downloadable(self) -> list[Model]:
        return [(task, name) for task in Task if self._options.task in (None, task) for name in downloadable(task)]

    def _named(self, models: list[Model], what: str) -> list[Model]:
        """Return the models that the options name. Raises ConfigurationError for a name that is none of them."""
        found: list[Model] = []
        for given in self._options.names:
            matching = [model for model in models if model[1] == clean_name(given)]
            if not matching:
                raise ConfigurationError(f"{given} is not {what}. `models list --all` shows the names")
            found += matching
        return found


def _chinese_clip_name(given: str) -> str:
    """Return the model's name, which may be given without its family. Raises ConfigurationError."""
    for name in CHINESE_CLIP_DIMENSIONS:
        if given in (name, short_name(name)):
            return name
    known = ", ".join(map(short_name, CHINESE_CLIP_DIMENSIONS))
    raise ConfigurationError(f"{given} is no Chinese-CLIP model. They are {known}")


def _confirmed(models: Iterable[Model]) -> bool:
    if not sys.stdin.isatty():
        return False
    names = ", ".join(f"{task}/{name}" for task, name in models)
    return input(f"Remove {names}? [y/N] ").strip().lower() in ("y", "yes")


def _remove_empty_folders(folder: Path) -> None:
    for path in [*sorted(_folders(folder), reverse=True), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_dir())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
