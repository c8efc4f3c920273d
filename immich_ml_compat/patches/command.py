"""The `patches` command: list, check, apply and revert patches to Immich's own source."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..settings import ConfigurationError
from .collection import Collection, read_collections, shipped
from .patch import PatchError
from .report import describe_difference, describe_patches
from .state import State, compare, nearest
from .transaction import alone, replace

NOT_COVERED = (
    "Immich 3.3, its current release, is not covered yet: its source was not at hand whole. `patches check` on it "
    "names each hunk that would not apply."
)


def run(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit code.

    Raises ConfigurationError for a path or a name that is none.
    """
    try:
        return _run(options, read_collections(shipped()))
    except PatchError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or 'a file'}: {error.strerror}. Nothing was changed", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace, collections: list[Collection]) -> int:
    if options.path is None:
        return _list(collections)
    if not options.path.is_dir():
        raise ConfigurationError(f"{options.path}: is no folder. Give the one with Immich's source")
    if not collections:
        raise ConfigurationError("There are no patches")
    root = options.path.resolve()
    with alone(root) as recovered:
        if recovered:
            print(f"{root}: an earlier call was cut off; what it had changed was put back", file=sys.stderr)
        state = nearest([compare(root, collection) for collection in collections])
        actions = {"list": _show, "check": _check, "apply": _apply, "revert": _revert}
        if not state.is_known and options.action != "check":
            print(describe_difference(root, state, collections), file=sys.stderr)
            print("Nothing was changed. `patches check` shows which hunks would not apply.", file=sys.stderr)
            return 1
        return actions[options.action](root, state, collections, options)


def _list(collections: list[Collection]) -> int:
    for collection in collections:
        print(f"Immich {collection.version}")
        width = max(map(len, collection.names()))
        for patch in collection.patches:
            needs = f" (needs {', '.join(patch.needs)})" if patch.needs else ""
            print(f"  {patch.name.ljust(width)}  {patch.summary}{needs}")
    print(NOT_COVERED)
    return 0


Action = Callable[[Path, State, list[Collection], argparse.Namespace], int]


def _show(root: Path, state: State, _: list[Collection], __: argparse.Namespace) -> int:
    print(f"{root}: Immich {state.collection.version}")
    width = max(map(len, state.collection.names()))
    for patch in state.collection.patches:
        applied = "applied    " if patch.name in state.applied else "not applied"
        needs = f" (needs {', '.join(patch.needs)})" if patch.needs else ""
        print(f"  {patch.name.ljust(width)}  {applied}  {patch.summary}{needs}")
    return 0


def _check(root: Path, state: State, collections: list[Collection], options: argparse.Namespace) -> int:
    names = _named(state.collection, options.names)
    if not state.is_known:
        print(describe_difference(root, state, collections), file=sys.stderr)
        for line in describe_patches(state, names):
            print(line)
        return 1
    state.with_patches(state.applied | state.collection.with_needs(names))
    print(f"{root}: Immich {state.collection.version}")
    for name in sorted(names):
        print(f"  {name}: {'applied' if name in state.applied else 'applies'}")
    return 0


def _apply(root: Path, state: State, _: list[Collection], options: argparse.Namespace) -> int:
    named = _named(state.collection, options.names)
    wanted = state.collection.with_needs(named)
    for name in sorted(wanted - named - state.applied):
        needing = sorted(other for other in named if name in state.collection.with_needs([other]))
        print(f"{name}: needed by {', '.join(needing)}")
    for name in sorted(wanted & state.applied):
        print(f"{name}: already applied")
    return _change(root, state, state.applied | wanted, "applied")


def _revert(root: Path, state: State, _: list[Collection], options: argparse.Namespace) -> int:
    named = _named(state.collection, options.names)
    unwanted = state.collection.with_needing(named)
    for name in sorted((unwanted - named) & state.applied):
        print(f"{name}: reverted too, as it needs {', '.join(sorted(state.collection.with_needs([name]) & named))}")
    for name in sorted(named - state.applied):
        print(f"{name}: not applied")
    return _change(root, state, state.applied - unwanted, "reverted")


def _change(root: Path, state: State, names: set[str], done: str) -> int:
    changed = sorted(names ^ state.applied)
    if changed:
        replace(root, state.contents, state.with_patches(names))
    for name in changed:
        print(f"{name}: {done}")
    print(
        f"{root}: Immich {state.collection.version} with {', '.join(sorted(names)) or 'no patches: the stock source'}"
    )
    return 0


def _named(collection: Collection, given: list[str]) -> set[str]:
    try:
        return collection.named(given)
    except LookupError as error:
        known = ", ".join(collection.names())
        raise ConfigurationError(f"{error} is no patch for Immich {collection.version}. They are {known}") from error
