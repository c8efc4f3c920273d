"""Builds an image from its Dockerfile with chroot and overlay mounts, a folder for each layer, as root on Linux.

What is run is the Dockerfile's own text. Two things are lent in place of what a container engine would fetch: the base
image (`base.py`), and a folder of packages for pip, whose hashes pip holds against the lock as ever.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from dockerfile_parse import DockerfileParser

_LENT = ("/etc/resolv.conf", "/etc/hosts")
"""Files of the machine that a container engine gives to a build too."""


@dataclass(frozen=True)
class Layer:
    """What one instruction changed."""

    instruction: str
    folder: Path


@dataclass(frozen=True)
class Image:
    """A stage of a build: its layers from the base up, and how a container of it is started."""

    key: str
    """Stands for everything that went into it."""

    layers: tuple[Layer, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()


def mounted(image: Image, target: Path, upper: Path | None = None, work: Path | None = None) -> list[str]:
    """Return the command that mounts an image's files: for reading only, or with changes going to `upper`."""
    lower = [str(layer.folder) for layer in reversed(image.layers)]
    options = f"lowerdir={':'.join(lower)}"
    if upper is not None:
        options += f",upperdir={upper},workdir={work}"
    elif len(lower) == 1:
        return ["mount", "--bind", "-o", "ro", lower[0], str(target)]
    return ["mount", "-t", "overlay", "-o", f"{'ro,' if upper is None else ''}{options}", "overlay", str(target)]


@contextmanager
def mount(command: Sequence[str], target: Path) -> Iterator[Path]:
    """Mount for as long as the context lasts."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-R", str(target)], check=True)


class Builder:
    """Builds the stages of one Dockerfile. Layers are kept in `store`, and used again while nothing in them changes."""

    def __init__(self, dockerfile: Path, bases: Callable[[str], Image], packages: Path, store: Path) -> None:
        """`bases` gives the image that stands in for one by its name."""
        self._context = dockerfile.parent
        self._instructions = DockerfileParser(fileobj=BytesIO(dockerfile.read_bytes())).structure
        self._bases = bases
        self._packages = packages
        self._store = store
        self._stages: dict[str, Image] = {}

    def build(self, arguments: Mapping[str, str]) -> Image:
        """Build all stages and return the last. Raises CalledProcessError, or ValueError for what is not understood."""
        image: Image | None = None
        name = ""
        for each in self._instructions:
            instruction, value = each["instruction"], each["value"]
            if instruction == "COMMENT":
                continue
            if instruction == "FROM":
                origin, _, name = value.partition(" AS ")
                image = self._stages.get(origin) or self._bases(origin)
            elif image is None:
                raise ValueError(f"{instruction} before the first FROM")
            elif instruction == "ARG":
                image = replace(image, arguments={**image.arguments, **_pairs(value, image), **arguments})
            else:
                image = self._apply(image, instruction, value)
            self._stages[name or "last"] = image
        if image is None:
            raise ValueError("the Dockerfile has no FROM")
        return image

    def stage(self, name: str) -> Image:
        """Return a stage that was built."""
        return self._stages[name]

    def _apply(self, image: Image, instruction: str, value: str) -> Image:
        match instruction:
            case "RUN":
                return self._layer(image, f"RUN {value}", lambda root: self._run(image, value, root))
            case "COPY":
                return self._copy(image, value)
            case "WORKDIR":
                make: Callable[[Path], object] = lambda root: (root / value[1:]).mkdir(parents=True, exist_ok=True)  # noqa: E731
                return replace(self._layer(image, f"WORKDIR {value}", make), folder=value)
        return _declare(image, instruction, value)

    def _layer(self, image: Image, instruction: str, change: Callable[[Path], object], content: str = "") -> Image:
        """Add what `change` does to a folder that holds the image's files."""
        key = _digest(image.key, instruction, content, json.dumps(dict(image.environment)), str(dict(image.arguments)))
        folder = self._store / key
        done = self._store / f"{key}.done"
        if not done.exists():
            print(f"  {instruction[:110]}", flush=True)
            work = self._store / "work"
            for each in (folder, work):
                shutil.rmtree(each, ignore_errors=True)
                each.mkdir(parents=True)
            with mount(mounted(image, self._store / "root", folder, work), self._store / "root") as root:
                change(root)
            done.touch()
        return replace(image, key=key, layers=(*image.layers, Layer(instruction, folder)))

    def _run(self, image: Image, command: str, root: Path) -> None:
        lent = root / "mnt"
        binds = [["mount", "--bind", str(self._packages), str(lent)], ["mount", "-t", "proc", "proc", f"{root}/proc"]]
        binds += [["mount", "--bind", "-o", "ro", path, f"{root}{path}"] for path in _LENT]
        for path in _LENT:
            (root / path[1:]).touch()
        script = " && ".join(map(shlex.join, binds)) + ' && exec chroot "$0" /bin/sh -c "cd $1 && $2"'
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/mnt",
            **image.arguments,
            **image.environment,
        }
        steps = ["unshare", "--mount", "sh", "-c", script, str(root), image.folder, command]
        run = subprocess.run(steps, env=environment, check=False, capture_output=True, text=True)
        if run.returncode != 0:
            raise ValueError(f"RUN {command}: ended with {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")

    def _copy(self, image: Image, value: str) -> Image:
        words = shlex.split(value)
        stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        *sources, target = words
        if stage is not None:
            return self._copy_from(image, value, self._stages[stage], sources, target)
        for source in sources:
            self._check_context(source)
        content = _digest(*(_contents(self._context / source) for source in sources))
        put = lambda root: _put(self._context, sources, root, image.folder, target)  # noqa: E731
        return self._layer(image, f"COPY {value}", put, content)

    def _copy_from(self, image: Image, value: str, stage: Image, sources: Sequence[str], target: str) -> Image:
        def put(root: Path) -> None:
            with mount(mounted(stage, self._store / "from"), self._store / "from") as origin:
                _put(origin, [source.lstrip("/") for source in sources], root, image.folder, target)

        return self._layer(image, f"COPY {value}", put, stage.key)

    def _check_context(self, source: str) -> None:
        """Raise ValueError for what .dockerignore keeps from a build."""
        allowed = [line[1:] for line in (self._context / ".dockerignore").read_text().split() if line.startswith("!")]
        if not any(fnmatch(source, entry) or source.startswith(f"{entry}/") for entry in allowed):
            raise ValueError(f"COPY {source}: .dockerignore leaves it out")


def _declare(image: Image, instruction: str, value: str) -> Image:
    """Take in what changes no file."""
    match instruction:
        case "ENV":
            return replace(image, environment={**image.environment, **_pairs(value, image)})
        case "LABEL":
            return replace(image, labels={**image.labels, **_pairs(value, image)})
        case "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(value)), command=())
        case "CMD":
            return replace(image, command=tuple(json.loads(value)))
        case "HEALTHCHECK":
            return replace(image, health=tuple(json.loads(value.partition("CMD ")[2])))
        case "VOLUME":
            return replace(image, volumes=(*image.volumes, *value.split()))
        case "EXPOSE":
            return replace(image, ports=(*image.ports, *value.split()))
    raise ValueError(f"{instruction} {value}: not understood here")


def _put(origin: Path, sources: Sequence[str], root: Path, folder: str, target: str) -> None:
    """Copy as COPY does: a folder's contents, or files; `target` ends in a `/` where several come or it is a folder."""
    place = root / Path(folder, target).relative_to("/")
    ignored = None if origin.name == "from" else shutil.ignore_patterns("__pycache__")  # as .dockerignore does
    for source in (origin / source for source in sources):
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        else:
            into = place / source.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)


def _pairs(value: str, image: Image) -> dict[str, str]:
    """Read `NAME=value …`, with the variables that are known so far put in."""
    known = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    known |= {**image.arguments, **image.environment}
    pairs = (word.partition("=") for word in shlex.split(value))
    put_in = lambda match: known.get(match[1], "")  # noqa: E731
    return {name: re.sub(r"\$\{?(\w+)\}?", put_in, text) for name, _, text in pairs}


def _contents(path: Path) -> str:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return _digest(
        *(f"{each}{sha256(each.read_bytes()).hexdigest()}" for each in files if "__pycache__" not in each.parts)
    )


def _digest(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()[:16]
