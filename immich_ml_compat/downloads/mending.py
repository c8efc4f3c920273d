"""What is wrong with the folder of a model that is made here, and which files put it right.

A file that is as the manifest says is right. Of small files, which this package has, those that are none are wrong;
one that a person wrote is the last to be blamed, and one that lacks is no matter, as the package's stands in for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..catalog import ModelType
from ..chinese_clip.configuration import small_paths
from ..store import CONFIG, GRAPH
from .manifest import MANIFEST, Manifest, ManifestFile, read_manifest
from .origin import Origin, is_small, origin_of

Files = Mapping[str, ManifestFile]


class Folder:
    """A model's folder as it is now."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.known: Files = (read_manifest(path / MANIFEST) or Manifest()).files
        """What its manifest has."""
        self._small = small_paths(name)

    @property
    def origin(self) -> Origin | None:
        """What its graphs were made from; None where nothing is known."""
        return origin_of(self.known)

    def has(self, path: str) -> bool:
        """Tell whether a file is there."""
        return (self.path / path).exists()

    def lost(self) -> list[str]:
        """Return the files that the manifest has and the folder lacks."""
        return [path for path in self.known if not self.has(path)]

    def changed(self, kind: ModelType) -> list[str]:
        """Return a tower's files that are not as the manifest has them. Raises OSError."""
        files = _of_tower(self.known, kind)
        return [path for path, file in files.items() if not file.is_at(self.path / path)]

    def broken(self, kind: ModelType) -> list[str]:
        """Return a tower's small files that are none, and those that were lost. Raises OSError."""
        scope = [path for path in sorted(self._small) if _belongs(path, kind)]
        return [path for path in scope if (not _parses(self.path / path) if self.has(path) else path in self.known)]

    def right(self, kind: ModelType, made: Files) -> Files:
        """Return what is in a tower as it is when `made` anew. Raises OSError."""
        return {path: file for path, file in _of_tower(made, kind).items() if file.is_at(self.path / path)}

    def wrong(self, kind: ModelType, made: Files) -> list[str]:
        """Return what may keep a tower from loading: graph and weights that are not as `made`, and broken files."""
        right = self.right(kind, made)
        graphs = [path for path in _of_tower(made, kind) if not is_small(path) and path not in right]
        return [*graphs, *self.broken(kind)]

    def lacking(self, kind: ModelType, made: Files) -> list[str]:
        """Return the files of a tower that are `made` and not there."""
        return [path for path in _of_tower(made, kind) if not self.has(path)]

    def missing(self, made: Files, interrupted: Files) -> tuple[list[str], list[str]]:
        """Return what the folder lacks of what is `made`, and those files of it that are in the way.

        A graph and its weights come together, or not at all beside others' own. Raises OSError.
        """

        def is_right(path: str) -> bool:
            return made[path].is_at(self.path / path)

        def is_lacking(path: str) -> bool:
            # What an interrupted installation left may be half a file, where the disk cannot rename at once.
            return not self.has(path) or (path in interrupted and not is_right(path))

        def is_wanted(path: str) -> bool:
            graph = _graph_of(path)
            return not is_right(path) and (is_lacking(graph) or (is_lacking(path) and is_right(graph)))

        chosen = [path for path in made if is_wanted(path)]
        return chosen, [path for path in chosen if not is_lacking(path)]  # weights whose graph is gone

    def strangers(self, chosen: list[str], made: Files) -> list[str]:
        """Return the graphs beside which another is `chosen` though nothing tells what they were made from."""
        graphs = [path for path in made if PurePosixPath(path).name == GRAPH]
        if not set(graphs) & set(chosen):
            return []
        return [path for path in graphs if path not in chosen and self.has(path) and not self._is_known(path, made)]

    def _is_known(self, path: str, made: Files) -> bool:
        return any(path in files and files[path].is_at(self.path / path) for files in (self.known, made))


def _of_tower(files: Files, kind: ModelType) -> Files:
    return {path: file for path, file in files.items() if _belongs(path, kind)}


def _belongs(path: str, kind: ModelType) -> bool:
    return path == CONFIG or path.startswith(f"{kind}/")


def _parses(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _graph_of(path: str) -> str:
    """Return the graph that a file holds weights of; for all others the path itself."""
    return path if is_small(path) else (PurePosixPath(path).parent / GRAPH).as_posix()
