"""The patches that come with this project: `patches/` in a checkout, within the package where it is installed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .patch import Patch, PatchError, read_patch

SIDES = ("server", "web")


def shipped() -> Path:
    """Return the folder with the patches."""
    installed = Path(__file__).with_name("shipped")
    return installed if installed.is_dir() else Path(__file__).parents[2] / "patches"


@dataclass(frozen=True)
class Collection:
    """All patches for one version of Immich, sorted by name: the order in which they are put in."""

    version: str
    patches: tuple[Patch, ...]

    def names(self) -> list[str]:
        """Return the patches' names."""
        return [patch.name for patch in self.patches]

    def named(self, given: Sequence[str]) -> set[str]:
        """Return the names meant: `web/regenerate`, or `regenerate` for both sides'; all where none is given.

        Raises LookupError with the name that is none.
        """
        found = set() if given else {*self.names()}
        for name in given:
            matching = {known for known in self.names() if name in (known, known.partition("/")[2])}
            if not matching:
                raise LookupError(name)
            found |= matching
        return found

    def with_needs(self, names: Iterable[str]) -> set[str]:
        """Return these patches with all that they need."""
        needs = {patch.name: patch.needs for patch in self.patches}
        return _closure(names, needs)

    def with_needing(self, names: Iterable[str]) -> set[str]:
        """Return these patches with all that need them."""
        needing = {name: [patch.name for patch in self.patches if name in patch.needs] for name in self.names()}
        return _closure(names, needing)

    def touching(self) -> dict[str, list[Patch]]:
        """Return the paths that are touched, each with the patches that do so, in their order."""
        touching: dict[str, list[Patch]] = {}
        for patch in self.patches:
            for change in patch.changes:
                touching.setdefault(change.path, []).append(patch)
        return touching


def _closure(names: Iterable[str], steps: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    open_ends = [*names]
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += steps[name]
    return found


def read_collections(folder: Path) -> list[Collection]:
    """Read `<side>/<version>/<name>.patch`; the newest version comes first. Raises PatchError."""
    versions: dict[str, list[Patch]] = {}
    for file in sorted(path for side in SIDES for path in folder.glob(f"{side}/*/*.patch")):
        patch = read_patch(file)
        side, version, name = file.parts[-3], file.parts[-2], file.stem
        if (patch.name, patch.version) != (f"{side}/{name}", version):
            raise PatchError(f"{file}: calls itself {patch.name} for Immich {patch.version}. Restore it, or its place")
        versions.setdefault(version, []).append(patch)
    newest_first = sorted(versions, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])[::-1]
    collections = [Collection(version, tuple(sorted(versions[version], key=_name))) for version in newest_first]
    for collection in collections:
        _require_needs(collection)
        _require_one_stock(collection)
    return collections


def _name(patch: Patch) -> str:
    return patch.name


def _require_needs(collection: Collection) -> None:
    for patch in collection.patches:
        for need in patch.needs:
            if need not in collection.names():
                raise PatchError(
                    f"{patch.name} for Immich {collection.version} needs {need}, which is not there. Install this "
                    f"program again, or restore the file"
                )


def _require_one_stock(collection: Collection) -> None:
    for path, patches in collection.touching().items():
        stock = {patch.by_path[path].before for patch in patches}
        if len(stock) > 1 or (None in stock and len(patches) > 1):
            names = " and ".join(patch.name for patch in patches)
            raise PatchError(f"{names} for Immich {collection.version} are not made for one and the same {path}")
