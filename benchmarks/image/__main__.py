"""`make image` builds the images without a container engine, weighs them layer by layer, and tries them out.

Needs Linux, root, Debian's debootstrap, some gigabytes, and minutes; and the packages of dev.lock, for the tests.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from .base import debian
from .building import Builder, Image
from .trying import try_cpu, try_cuda, try_intel

ROOT = Path(__file__).parents[2]
LOCKS = {"cpu": "runtime.lock", "cuda": "cuda.lock"}


def main() -> None:
    """Build, weigh and try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=LOCKS, nargs="+")
    parser.add_argument("--store", type=Path, default=ROOT / "benchmarks/.cache/image", help="where layers are kept")
    options = parser.parse_args()
    store: Path = options.store.absolute()
    for kind in options.kind:
        print(f"Dockerfile.{kind}", flush=True)
        packages = fetch(store / "packages", ROOT / "requirements/build.lock", ROOT / "requirements" / LOCKS[kind])
        builder = Builder(ROOT / f"Dockerfile.{kind}", lambda name: debian(name, store), packages, store)
        image = builder.build({"VERSION": "try", "REVISION": "none"})
        weigh(image)
        if kind == "cuda":
            try_cuda(image, store)
            continue
        weigh(builder.stage("openvino"))
        try_cpu(image, store)
        try_intel(builder.stage("openvino"), store)


def fetch(folder: Path, *locks: Path) -> Path:
    """Download what the locks name, by this machine's pip, whose settings a build does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "-qq", "download", "--no-deps", "--require-hashes", "--dest", str(folder)]
    command += ["--only-binary", ":all:", "--python-version", "3.11"]
    for lock in locks:
        subprocess.run([*command, "--requirement", str(lock)], check=True)
    return folder


def weigh(image: Image) -> None:
    """Print what each layer weighs, unpacked and as it is downloaded: a gzipped archive."""
    print(f"{'layer':80} {'MB':>8} {'gzip MB':>8}")
    total = [0.0, 0.0]
    for layer in image.layers:
        files = (path.lstat() for path in layer.folder.rglob("*") if path.is_symlink() or path.is_file())
        unpacked = sum({(status.st_ino): status.st_size for status in files}.values()) / 1e6
        pack = f'tar --sort=name --numeric-owner -C "{layer.folder}" -cf - . | gzip -6 | wc -c'
        packed = int(subprocess.run(pack, shell=True, capture_output=True, check=True).stdout) / 1e6
        total = [total[0] + unpacked, total[1] + packed]
        print(f"{' '.join(layer.instruction.split())[:80]:80} {unpacked:8.1f} {packed:8.1f}", flush=True)
    print(f"{'all':80} {total[0]:8.1f} {total[1]:8.1f}", flush=True)


main()
