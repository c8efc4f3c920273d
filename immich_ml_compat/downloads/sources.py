"""Which hub has which model: `sources.toml`, typed."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from ..catalog import IMMICH_NAMES, Task

HubName = Literal["huggingface", "modelscope"]
Converter = Literal["chinese-clip"]


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has one model."""

    hub: HubName
    repository: str
    revision: str
    ignore: tuple[str, ...] = ()
    """Patterns of files in the repository that are left out."""

    files: Mapping[str, str] | None = None
    """File in the model's folder → file in the repository; None where the repository is the folder.

    Where the model is converted, the one file is the checkpoint, which never comes into the folder.
    """

    convert: Converter | None = None
    """What makes the model's folder from the file; None where the files are the folder's own."""

    sha256: Mapping[str, str] | None = None
    """File in the repository → its sum, where it is known beforehand."""


def sources(task: Task, name: str, first: HubName = "huggingface") -> list[Source]:
    """Return the places that have a model, those on the hub `first` before the others."""
    found = [source for entry in _table()["source"] if (source := _source(entry, task, name)) is not None]
    return sorted(found, key=lambda source: source.hub != first)


def downloadable(task: Task) -> list[str]:
    """Return the names of a task's models that some source has."""
    explicit = {name for entry in _table()["source"] if entry["task"] == task for name in entry.get("models", ())}
    return sorted(name for name in IMMICH_NAMES[task] | explicit if sources(task, name))


def checkpoint_name(task: Task, name: str) -> str | None:
    """Return the file name of the checkpoint that a model is made from; None where its own files are published."""
    return next((path for source in sources(task, name) if source.convert for path in source.files or ()), None)


def modelscope_endpoint() -> str:
    """Return ModelScope's own address."""
    return str(_table()["endpoint"]["modelscope"])


def _source(entry: Mapping[str, Any], task: Task, name: str) -> Source | None:
    models = entry.get("models")
    if entry["task"] != task or name not in (IMMICH_NAMES[task] if models is None else models):
        return None
    repository = entry["repository"]
    return Source(
        hub=entry["hub"],
        repository=repository[name] if isinstance(repository, dict) else repository.format(name=name),
        revision=entry["revision"],
        ignore=tuple(entry.get("ignore", ())),
        files=None if models is None else models[name],
        convert=entry.get("convert"),
        sha256=entry.get("sha256"),
    )


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("sources.toml").read_text(encoding="utf-8"))
