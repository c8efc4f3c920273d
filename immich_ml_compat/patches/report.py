"""What is said of a tree that is none of the known versions, or has a patch in part."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from .collection import Collection
from .git import RejectedError, apply, blob_id
from .patch import Change
from .state import State
from .tree import claimed_version


def describe_difference(root: Path, state: State, collections: list[Collection]) -> str:
    """Say in one sentence why a tree cannot be worked on, with every file that is to blame, and what to do."""
    if not state.differing:
        return " ".join(_describe_part(root, name, lacking) for name, lacking in state.in_part.items())
    versions = ", ".join(collection.version for collection in collections)
    stock = [path for path, patches in state.collection.touching().items() if patches[0].by_path[path].before]
    if all(state.contents[path] is None for path in stock):
        return (
            f"{root}: has none of the files that the patches change. Give the folder with Immich's source ({versions})"
        )
    claim = claimed_version(root)
    calls = f" (calls itself {claim})" if claim else ""
    files = ", ".join(_describe_file(state, path) for path in state.differing)
    nearest = f"Immich {state.collection.version}, the nearest of those that there are patches for ({versions})"
    return f"{root}{calls}: cannot be patched, for these files are not those of {nearest}: {files}. {_remedy(state)}"


def _describe_part(root: Path, name: str, lacking: list[str]) -> str:
    return (
        f"{root}: {name} is there in part: not in {', '.join(lacking)}. Restore all files that it touches from "
        f"Immich's release (`git checkout -- FILE`), then apply it."
    )


def _describe_file(state: State, path: str) -> str:
    content = state.contents[path]
    if content is None:
        return f"{path} (missing)"
    if _change(state, path).before is None:
        return f"{path} (there already, with other content)"
    return f"{path} (Windows line endings)" if _has_windows_lines(state, path) else path


def _remedy(state: State) -> str:
    if any(_has_windows_lines(state, path) for path in state.differing):
        return "Clone Immich anew with `git clone -c core.autocrlf=false`"
    return "Take the source of such a version, or undo what was changed in these files"


def _change(state: State, path: str) -> Change:
    return state.collection.touching()[path][0].by_path[path]


def _has_windows_lines(state: State, path: str) -> bool:
    content, stock = state.contents[path], _change(state, path).before
    return content is not None and stock is not None and blob_id(content.replace(b"\r\n", b"\n")) == stock


def describe_patches(state: State, names: Iterable[str]) -> Iterator[str]:
    """Say of each patch whether it would go into a tree of another version, and which of its hunks would not."""
    for patch in state.collection.patches:
        if patch.name not in names:
            continue
        if patch.name in state.applied:
            yield f"{patch.name} for Immich {patch.version}: applied"
            continue
        misfits = [line for change in patch.changes for line in _misfits(state, patch.name, change)]
        verdict = "would not apply:" if misfits else "would apply, but was never tried with this version"
        yield f"{patch.name} for Immich {patch.version}: {verdict}"
        yield from (f"  {line}" for line in misfits)


def _misfits(state: State, name: str, change: Change) -> Iterator[str]:
    if name in state.inside.get(change.path, ()):
        return
    content = state.contents[change.path]
    try:
        apply(content, change)
    except RejectedError as error:
        if change.before is None:
            yield f"{change.path}: there already, with other content"
            return
        cause = " (no such file)" if content is None else ""
        for number in error.hunks:
            yield f"{change.path}: hunk {number} of {len(change.hunks)}, line {change.line(number)}{cause}"
