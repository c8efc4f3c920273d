"""What a tree is: the version whose files it has once the patches in it are taken out, and which patches those are.

Nothing about that is written down anywhere. A file is known where taking a set of patches out of it leaves the stock
file of a version, by git's id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .collection import Collection
from .git import RejectedError, apply, blob_id
from .patch import Change, PatchError
from .tree import read

Content = bytes | None
"""A file's, or None where there is none."""


@dataclass(frozen=True)
class State:
    """A tree beside one version.

    `contents` are the touched files as they are; `stock` those without the patches in them, and `inside` the names of
    these, both for the known files only; `differing` are the others.
    """

    collection: Collection
    contents: Mapping[str, Content]
    stock: Mapping[str, Content]
    inside: Mapping[str, frozenset[str]]

    @property
    def differing(self) -> list[str]:
        """The files that are not this version's, whichever patches are taken out."""
        return [path for path in self.contents if path not in self.stock]

    @property
    def applied(self) -> set[str]:
        """The patches that are in all of their files."""
        return {patch.name for patch in self.collection.patches if all(self._has(patch.name, c) for c in patch.changes)}

    @property
    def in_part(self) -> dict[str, list[str]]:
        """The patches that are in some of their files only, with those that lack them."""
        lacking: dict[str, list[str]] = {}
        for patch in self.collection.patches:
            there = [change.path for change in patch.changes if self._has(patch.name, change)]
            if 0 < len(there) < len(patch.changes):
                lacking[patch.name] = [change.path for change in patch.changes if change.path not in there]
        return lacking

    @property
    def is_known(self) -> bool:
        """Whether the tree is this version, with some of its patches or none."""
        return not self.differing and not self.in_part

    def _has(self, name: str, change: Change) -> bool:
        return name in self.inside.get(change.path, ())

    def with_patches(self, names: set[str]) -> dict[str, Content]:
        """Return all touched files with these patches and no others; the tree must be known.

        What comes out depends on the stock files and the names alone, never on what was there before. Raises PatchError
        where patches stand in each other's way, or could not be taken out again exactly.
        """
        contents: dict[str, Content] = {}
        for path, patches in self.collection.touching().items():
            wanted = {patch.name: patch.by_path[path] for patch in patches if patch.name in names}
            try:
                contents[path] = _with_changes(self.stock[path], [*wanted.values()])
            except RejectedError as error:
                raise PatchError(f"{path}: {' and '.join(wanted)} do not go together") from error
            every = {patch.name: patch.by_path[path] for patch in patches}
            if take_out(contents[path], every) != (self.stock[path], frozenset(wanted)):
                raise PatchError(f"{path}: {' and '.join(wanted)} could not be taken out again")
        return contents


def compare(root: Path, collection: Collection) -> State:
    """Compare a tree with a version. Raises PatchError for touched files that are links or cannot be read."""
    contents, stock, inside = {}, {}, {}
    for path, patches in collection.touching().items():
        contents[path] = read(root, path)
        found = take_out(contents[path], {patch.name: patch.by_path[path] for patch in patches})
        if found is not None:
            stock[path], inside[path] = found
    return State(collection, contents, stock, inside)


def nearest(states: list[State]) -> State:
    """Return the first state that is known, else the first with the smallest share of files that differ."""
    return min(states, key=lambda state: (not state.is_known, len(state.differing) / len(state.contents)))


def take_out(content: Content, changes: Mapping[str, Change]) -> tuple[Content, frozenset[str]] | None:
    """Return a file's stock content and the names of the changes that were in it; None where there is no such set.

    They are tried from the last to the first, against the order in which they are put in, each taken out where
    it can be; and left in where that leads to no stock file.
    """
    stock_id = next(iter(changes.values())).before
    return _take_out(content, [*changes.items()], stock_id)


def _take_out(
    content: Content, changes: list[tuple[str, Change]], stock: str | None
) -> tuple[Content, frozenset[str]] | None:
    if blob_id(content) == stock:
        return content, frozenset()
    if not changes:
        return None
    *others, (name, change) = changes
    try:
        without = apply(content, change, reverse=True)
    except RejectedError:
        return _take_out(content, others, stock)
    if found := _take_out(without, others, stock):
        return found[0], found[1] | {name}
    return _take_out(content, others, stock)


def _with_changes(content: Content, changes: list[Change]) -> Content:
    for change in changes:
        content = apply(content, change)
    if len(changes) == 1 and blob_id(content) != changes[0].after:
        raise RejectedError([])
    return content
