"""Which checkpoint a folder that was made here may be mended with.

A model's two towers were trained together: what one makes of a photo can be compared with what the other makes of a
text only where both are of one checkpoint. So the manifest says what the graphs were made from, and only that mends
them:

    made from             mended with
    a person's own file   that file, or the one in CLIP_DOWNLOAD_ROOT; nothing else
    a hub's checkpoint    the one in CLIP_DOWNLOAD_ROOT; or a hub's, as all hubs have the same official one
    not known             the one in CLIP_DOWNLOAD_ROOT, or a hub's

A file on the disk may have become another one: it serves only if it makes the graphs that the manifest has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .manifest import Manifest, ManifestFile


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that a model's graphs were made from, and how."""

    address: str

    half: bool
    """Whether they are in float16."""

    graphs: Mapping[str, ManifestFile]
    """What was made from it, by path: graphs and their weights."""

    @property
    def own(self) -> Path | None:
        """The file, where it is a person's own; None for a hub's."""
        return Path(url2pathname(urlsplit(self.address).path)) if is_own(self.address) else None

    def makes(self, made: Manifest) -> bool:
        """Tell whether the graphs that were `made` from a checkpoint are those made from this one."""
        sums = {path: file.sha256 for path, file in made.files.items()}
        return all(sums.get(path) == file.sha256 for path, file in self.graphs.items())


def origin_of(files: Mapping[str, ManifestFile]) -> Origin | None:
    """Return where the graphs among the files of a manifest are from; None where it has none.

    Where they differ, a person's own checkpoint counts: the official one can be had again, and a tower with it.
    """
    graphs = {path: file for path, file in files.items() if not is_small(path)}
    if not graphs:
        return None
    first = min(graphs.values(), key=lambda file: not is_own(file.address))
    same = {path: file for path, file in graphs.items() if is_own(file.address) == is_own(first.address)}
    return Origin(first.address, first.half, same)


def is_own(address: str) -> bool:
    """Tell whether an address is that of a file on this machine."""
    return urlsplit(address).scheme == "file"


def is_small(path: str) -> bool:
    """Tell whether a file is one of those that are the same for every checkpoint: all but graphs and weights."""
    return path.endswith(".json")
