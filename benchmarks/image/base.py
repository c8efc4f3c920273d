"""Stands in for Debian's image: the same release, installed by debootstrap and made slim as that image is.

It weighs some megabytes more than the published one, which leaves out more.
"""

import re
import shutil
import subprocess
from pathlib import Path

from .building import Image, Layer

_NOT_IN_SLIM = ("doc", "info", "lintian", "linda", "locale", "man", "groff")
"""Folders of /usr/share that Debian's slim images do without, there and in what is installed later."""


def debian(name: str, store: Path) -> Image:
    """Return the image for a name such as `debian:bookworm-20261005-slim@sha256:…`, made where it is not there yet.

    Raises ValueError for another name, CalledProcessError where debootstrap fails.
    """
    found = re.match(r"debian:(\w+)-\d+-slim@sha256:[0-9a-f]{64}$", name)
    if found is None:
        raise ValueError(f"FROM {name}: only Debian's slim images, pinned by day and digest, are known here")
    root = store / f"debian-{found[1]}"
    if not (store / f"{root.name}.done").exists():
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", found[1], str(root)], check=True, stdout=subprocess.DEVNULL)
        _slim(root, found[1])
        (store / f"{root.name}.done").touch()
    return Image(root.name, (Layer(f"FROM {name.partition('@')[0]} (debootstrap)", root),))


def _slim(root: Path, release: str) -> None:
    (mirror,) = re.findall(rf"^deb (\S+) {release} main", (root / "etc/apt/sources.list").read_text(), re.MULTILINE)
    suites = [(mirror, release), (mirror, f"{release}-updates"), (f"{mirror}-security", f"{release}-security")]
    (root / "etc/apt/sources.list").write_text("".join(f"deb {each} {suite} main\n" for each, suite in suites))
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(
        "".join(f"path-exclude /usr/share/{folder}/*\n" for folder in _NOT_IN_SLIM)
        + "path-include /usr/share/doc/*/copyright\n"
    )
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(
        'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n'
    )
    for folder in _NOT_IN_SLIM:
        for path in sorted((root / "usr/share" / folder).rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.name != "copyright":
                path.unlink()
    for leftover in ("var/lib/apt/lists", "var/cache/apt", "var/log"):
        shutil.rmtree(root / leftover, ignore_errors=True)
        (root / leftover).mkdir()
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    (root / "var/lib/apt/lists/partial").mkdir()
