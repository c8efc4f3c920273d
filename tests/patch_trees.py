"""Small source trees and patches for them, made by git itself, for the tests of the patch tool."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

Files = dict[str, bytes]
Snapshot = dict[str, tuple[int, bytes | str | None]]

STOCK: Files = {
    "i18n/en.json": b'{\n  "a": "A",\n  "c": "C",\n  "e": "E",\n  "g": "G",\n  "i": "I"\n}\n',
    "server/package.json": b'{\n  "version": "3.1.0"\n}\n',
    "server/src/jobs.ts": "".join(f"line {number} · 行\n" for number in range(1, 41)).encode(),
    "web/src/routes/(user)/[[assetId=id]]/+page.svelte": b"<script>\r\n</script>\r\n<p>no newline</p>",
    "web/src/run me.sh": b"#!/bin/sh\n\techo hello \n\n",
    "web/src/other.ts": b"export {};\n",
}
EXECUTABLE = "web/src/run me.sh"

_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(folder: Path, *words: str) -> bytes:
    """Run git in a folder, as nobody in particular."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.autocrlf=false", *words]
    return subprocess.run(command, cwd=folder, env=_ENVIRONMENT, capture_output=True, check=True).stdout


def write(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files into a folder, or remove those that are None."""
    for path, content in files.items():
        file = folder / path
        if content is None:
            file.unlink()
            continue
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


def diff(scratch: Path, stock: Files, changed: Mapping[str, bytes | None], context: int = 1) -> bytes:
    """Return what git says of a change to a stock tree."""
    scratch.mkdir(parents=True)
    git(scratch, "init", "-q")
    write(scratch, stock)
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


def after(content: bytes, line: bytes, *added: bytes) -> bytes:
    """Return a content with lines added after one of its lines."""
    assert content.count(line) == 1
    return content.replace(line, line + b"".join(added))


def changes() -> dict[str, Files]:
    """What each of the example patches makes of the files it touches."""
    english, jobs = STOCK["i18n/en.json"], STOCK["server/src/jobs.ts"]
    page = "web/src/routes/(user)/[[assetId=id]]/+page.svelte"
    numbered = {number: f"line {number} · 行\n".encode() for number in range(1, 41)}
    return {
        "server/chinese-clip": {"server/src/jobs.ts": after(jobs, numbered[3], b"clip\n")},
        "server/regenerate": {
            "server/src/jobs.ts": after(after(jobs, numbered[10], b"one\n", b"two\n"), numbered[30], b"three\n"),
            "server/src/new/deep/job.ts": b"export const job = 1;\n",
        },
        "web/regenerate": {
            "i18n/en.json": after(english, b'  "e": "E",\n', b'  "f": "F",\n'),
            page: STOCK[page].replace(b"<script>\r\n", b"<script>\r\nimport x;\r\n").replace(b"line</p>", b"line!</p>"),
            EXECUTABLE: STOCK[EXECUTABLE] + b"exit 0\n",
            "web/src/new/menu.svelte": b"<p>new, no newline</p>",
            "web/src/empty.ts": b"",
        },
        "web/search-prefix": {
            "i18n/en.json": after(english, b'  "a": "A",\n', b'  "b": "B",\n'),
            "web/src/new/prefix.ts": b"export const prefix = 'ocr:';\n",
        },
    }


NEEDS = {"web/regenerate": ("server/regenerate",)}


def put_example(folder: Path, scratch: Path, version: str = "3.1.0") -> None:
    """Write the example patches for the stock tree into a folder like `patches/`."""
    for name, changed in changes().items():
        text = diff(scratch / name, STOCK, changed)
        put_patch(folder, name, version, text, NEEDS.get(name, ()))


def put_stock(folder: Path, files: Files = STOCK) -> Path:
    """Write the stock tree; one of its files can be run."""
    write(folder, files)
    if EXECUTABLE in files:
        (folder / EXECUTABLE).chmod(0o755)
    return folder
