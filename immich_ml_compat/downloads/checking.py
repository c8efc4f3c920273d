"""Compares a model's files with the sums that are known of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..catalog import ModelType, Task
from ..errors import ModelUnavailableError
from ..store import GRAPH, ModelStore
from .batch_axis import is_published_but_for_batch_axis
from .downloader import Downloader
from .files import RemoteFile, sha256_of
from .manifest import MANIFEST, Manifest, ManifestFile, read_manifest
from .sources import checkpoint_name, sources

_FACE_RECOGNISER = f"{ModelType.RECOGNITION}/{GRAPH}"


class State(StrEnum):
    """What became of a file; the value is what is printed."""

    RIGHT = "ok"
    STOCK = "changed by stock Immich, fine"
    WRONG = "WRONG SUM"
    MISSING = "MISSING"
    OWN = "not from a hub, nothing to compare with"
    UNKNOWN = "not checked"

    @property
    def is_bad(self) -> bool:
        """Whether the file should be looked at."""
        return self in (State.WRONG, State.MISSING)


@dataclass(frozen=True, slots=True)
class Finding:
    """One file and what became of it; `note` says why where that is not plain."""

    path: str
    state: State
    note: str = ""


def check(store: ModelStore, downloader: Downloader, task: Task, name: str) -> list[Finding]:
    """Check every file of a model; those that no manifest has are compared with the hub, where it can be reached."""
    folder = store.model_folder(task, name)
    known = read_manifest(folder / MANIFEST) or Manifest()
    findings = [_check_downloaded(folder, task, path, file) for path, file in known.files.items()]
    if others := [path for path in files_in(folder) if path not in known.files]:
        findings += _check_others(folder, task, others, *_published(downloader, task, name))
    return sorted(findings, key=lambda finding: finding.path)


def files_in(folder: Path) -> list[str]:
    """Return the files of a model's folder, but for hidden ones and those that were set aside."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return sorted(path.as_posix() for path in visible if ".broken-" not in path.name)


def _published(downloader: Downloader, task: Task, name: str) -> tuple[Mapping[str, RemoteFile], str]:
    if not sources(task, name) or checkpoint_name(task, name):
        return {}, ""
    try:
        return {file.path: file for file in downloader.published(task, name)}, ""
    except ModelUnavailableError as error:
        return {}, error.detail


def _check_downloaded(folder: Path, task: Task, path: str, file: ManifestFile) -> Finding:
    if not (folder / path).is_file():
        return Finding(path, State.MISSING, f"downloaded from {file.address} on {file.date:%Y-%m-%d}")
    if file.is_at(folder / path):
        return Finding(path, State.RIGHT)
    return _differing(folder, task, path, file.sha256, file.address)


def _check_others(
    folder: Path, task: Task, paths: list[str], published: Mapping[str, RemoteFile], failure: str
) -> list[Finding]:
    findings = []
    for path in paths:
        file = published.get(path)
        if failure:
            findings.append(Finding(path, State.UNKNOWN, failure))
        elif file is None or (file.sha256 or file.blob_sha1) is None:
            findings.append(Finding(path, State.OWN))
        elif file.is_at(folder / path):
            findings.append(Finding(path, State.RIGHT))
        else:
            findings.append(_differing(folder, task, path, file.sha256, file.url))
    return findings


def _differing(folder: Path, task: Task, path: str, sha256: str | None, address: str) -> Finding:
    rewritten = task == Task.FACES and path == _FACE_RECOGNISER and sha256 is not None
    if rewritten and is_published_but_for_batch_axis((folder / path).read_bytes(), sha256 or ""):
        return Finding(path, State.STOCK)
    expected = f"{sha256 or 'another'} (from {address})"
    note = f"has {sha256_of(folder / path)} instead of {expected}: damaged, or another version"
    return Finding(path, State.WRONG, note)
