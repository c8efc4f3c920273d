"""Small source trees and patches for them, made by git itself, for the tests of the patch tool."""

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Files = dict[str, bytes]
Edit = Callable[[bytes | None], bytes]
Snapshot = dict[str, tuple[int, bytes | str | None]]

PAGE = "web/src/routes/(user)/[[assetId=id]]/+page.svelte"
EXECUTABLE = "web/src/run me.sh"
STOCK: Files = {
    "i18n/en.json": b'{\n  "a": "A",\n  "c": "C",\n  "e": "E",\n  "g": "G",\n  "i": "I"\n}\n',
    "server/package.json": b'{\n  "version": "3.1.0"\n}\n',
    "server/src/jobs.ts": "".join(f"line {number} · 行\n" for number in range(1, 41)).encode(),
    PAGE: b"<script>\r\n</script>\r\n<p>no newline</p>",
    EXECUTABLE: b"#!/bin/sh\n\techo hello \n\n",
    "web/src/other.ts": b"export {};\n",
}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def snapshot(folder: Path) -> Snapshot:
    """Return everything in a folder but git's own: modes, contents, links, empty folders."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == ".git":
            continue
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[name] = (mode, str(path.readlink()))
        else:
            found[name] = (mode, None if path.is_dir() else path.read_bytes())
    return found


def git(folder: Path, *words: str) -> bytes:
    """Run git in a folder, with nobody's settings, and return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": str(folder)}
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.quotePath=false", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True).stdout


def diff(scratch: Path, stock: Files, changed: Files, context: int = 1) -> bytes:
    """Return what git says of a change to a stock tree."""
    put_stock(scratch, stock)
    git(scratch, "init", "-q")
    git(scratch, "add", "-A")
    write(scratch, changed)
    git(scratch, "add", "-A", "-N")
    return git(scratch, "diff", "--full-index", "--text", f"-U{context}")


def patch(name: str, version: str, text: bytes, needs: Iterable[str] = ()) -> bytes:
    """Return a patch file."""
    head = [f"Patch: {name}", f"Immich: {version}", f"Summary: What {name} gives.", "License: AGPL-3.0-only"]
    if needs:
        head.insert(2, f"Needs: {', '.join(needs)}")
    return "\n".join([*head, "", ""]).encode() + text


def put_patch(folder: Path, name: str, version: str, text: bytes, needs: Iterable[str] = ()) -> Path:
    """Write a patch file to its place in a folder like `patches/`."""
    side, _, own = name.partition("/")
    file = folder / side / version / f"{own}.patch"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(patch(name, version, text, needs))
    return file


def added(after: bytes, *lines: bytes) -> Edit:
    """Add lines after one of a file's lines."""

    def edit(content: bytes | None) -> bytes:
        assert content is not None
        assert content.count(after) == 1
        return content.replace(after, after + b"".join(lines))

    return edit


def both(first: Edit, second: Edit) -> Edit:
    """Edit a file at two places."""
    return lambda content: second(first(content))


def new(text: bytes) -> Edit:
    """Make a new file."""
    return lambda _: text


def numbered(line: int) -> bytes:
    """Return a line of `server/src/jobs.ts`."""
    return f"line {line} · 行\n".encode()


EDITS: dict[str, dict[str, Edit]] = {
    "server/chinese-clip": {"server/src/jobs.ts": added(numbered(3), b"clip\n")},
    "server/regenerate": {
        "server/src/jobs.ts": both(added(numbered(10), b"one\n", b"two\n"), added(numbered(30), b"three\n")),
        "server/src/new/deep/job.ts": new(b"export const job = 1;\n"),
    },
    "web/regenerate": {
        "i18n/en.json": added(b'  "e": "E",\n', b'  "f": "F",\n'),
        PAGE: both(added(b"<script>\r\n", b"import x;\r\n"), added(b"line</p>", b"<p>more</p>")),
        EXECUTABLE: added(b"hello \n\n", b"exit 0\n"),
        "web/src/new/menu.svelte": new(b"<p>new, no newline</p>"),
        "web/src/empty.ts": new(b""),
    },
    "web/search-prefix": {
        "i18n/en.json": added(b'  "a": "A",\n', b'  "b": "B",\n'),
        "web/src/new/prefix.ts": new(b"export const prefix = 'ocr:';\n"),
    },
}
"""What the example patches do, as functions of a file's content."""


def edited(names: Iterable[str]) -> Files:
    """Return the stock files with some of the example patches, made without any patch."""
    files = dict(STOCK)
    for name in names:
        for path, edit in EDITS[name].items():
            files[path] = edit(files.get(path))
    return files


NEEDS = {"web/regenerate": ("server/regenerate",)}


def put_example(folder: Path, scratch: Path, version: str = "3.1.0") -> None:
    """Write the example patches for the stock tree into a folder like `patches/`."""
    for name in EDITS:
        text = diff(scratch / name, STOCK, edited([name]))
        put_patch(folder, name, version, text, NEEDS.get(name, ()))


def put_stock(folder: Path, files: Files = STOCK) -> Path:
    """Write the stock tree; one of its files can be run."""
    write(folder, files)
    if EXECUTABLE in files:
        (folder / EXECUTABLE).chmod(0o755)
    return folder
