"""The models on disk.

    <cache>/<task>/<name>/config.json                                    CLIP
    <cache>/<task>/<name>/<type>/model.onnx                              every graph
    <cache>/clip/<name>/visual/preprocess_cfg.json
    <cache>/clip/<name>/textual/{tokenizer.json,tokenizer_config.json}
    <cache>/ocr/<name>/recognition/charset.txt                           where the graph has no `character` metadata

is the stock server's layout; a folder with that shape is a model, whoever put it there. Of a Chinese-CLIP model the
graphs are enough.

    <cache>/<task>/<name>/.manifest.json           what was downloaded of it, written when all of it is there
    <cache>/.partial/<task>/<name>/...             what is being downloaded
    <cache>/.partial/<task>/<name>.lock            there while a process works on the model
    <cache>/.partial/<task>/<name>.installing-...  there while a process puts files into the model's folder, which does
                                                   not count then
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .catalog import EMBEDDED_OCR, ModelType, Task
from .chinese_clip.configuration import small_file, small_paths

GRAPH = "model.onnx"
CONFIG = "config.json"
MANIFEST = ".manifest.json"
PARTIAL = ".partial"

_MARKER = ".installing"

_CLIP_FILES = (
    CONFIG,
    "visual/model.onnx",
    "visual/preprocess_cfg.json",
    "textual/model.onnx",
    "textual/tokenizer.json",
    "textual/tokenizer_config.json",
)
_PAIR_FILES = ("detection/model.onnx", "recognition/model.onnx")

_MAX_NAME_BYTES = 200  # file systems take 255


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which graph: its task, the model's name and the graph's type."""

    task: Task
    name: str
    type: ModelType

    def __str__(self) -> str:
        return f"{self.task}/{self.name}/{self.type}"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where one graph and what belongs to it lie."""

    name: str
    """The model's name."""

    graph: Path
    """The ONNX file; external data lies beside it."""

    config: Path
    """The whole model's configuration (open_clip's `config.json`); only CLIP has one."""

    def size(self) -> int:
        """Return the bytes of the graph, and of what lies in a folder of its own beside it: weights may."""
        if self.graph.name != GRAPH:
            return self.graph.stat().st_size
        return sum(
            path.stat().st_size
            for path in self.graph.parent.iterdir()
            # Hidden files come and go while graphs are loaded; broken ones are set aside, not used.
            if path.name[0] != "." and ".broken-" not in path.name and path.is_file()
        )

    def beside(self, name: str) -> Path:
        """Return the path of a file in the graph's folder."""
        return self.graph.with_name(name)

    def read(self, path: Path) -> bytes:
        """Return the content of one of the model's small files, in this package's form where it is not on disk.

        This package has those of Chinese-CLIP, whose published graphs come alone. Raises OSError.
        """
        try:
            return path.read_bytes()
        except FileNotFoundError:
            inside = path.relative_to(self.config.parent).as_posix()
            if inside not in small_paths(self.name):
                raise
            return small_file(self.name, inside)


class ModelStore:
    """Finds models in the cache folder, and the OCR model that is installed with this package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self._embedded = _embedded_graphs()

    def find(self, key: ModelKey) -> ModelFiles | None:
        """Return the files of a graph, or None where it is not on disk, or not as a whole.

        A folder without a manifest is the stock server's or a person's, and is taken as it is.
        """
        folder = self.model_folder(key.task, key.name)
        graph = folder / key.type / GRAPH
        # In this order: where there is no marker after the graph was seen, it is not being put there.
        if graph.is_file() and not self.markers(key.task, key.name) and not self._is_torn(key):
            return ModelFiles(key.name, graph, folder / CONFIG)
        embedded = self._embedded.get(key)
        return ModelFiles(key.name, embedded, embedded.with_name(CONFIG)) if embedded else None

    def _is_torn(self, key: ModelKey) -> bool:
        torn = self.torn_files(key.task, key.name)
        return any(path == CONFIG or path.startswith(f"{key.type}/") for path in torn)

    def holds(self, task: Task, name: str) -> bool:
        """Tell whether a model of that name is on disk or installed, in whatever part."""
        if any(key.task == task and key.name == name for key in self._embedded):
            return True
        # A name from a request may be anything a file name cannot be.
        if not name or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
            return False
        folder = self.model_folder(task, name)
        return any((folder / kind / GRAPH).is_file() for kind in ModelType)

    def clip_dimension(self, name: str) -> int | None:
        """Return the embedding length that a CLIP model's `config.json` states, or None."""
        try:
            config: Any = json.loads((self.model_folder(Task.CLIP, name) / CONFIG).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        dimension = config.get("embed_dim") if isinstance(config, dict) else None
        return dimension if type(dimension) is int and dimension > 0 else None

    def model_folder(self, task: Task, name: str) -> Path:
        """Return the folder of a model in the cache folder."""
        return self.folder / task / name

    def partial(self, task: Task, name: str) -> Path:
        """Return the folder for what is downloaded of a model before it is complete."""
        return self.folder / PARTIAL / task / name

    def marker(self, task: Task, name: str, tag: str) -> Path:
        """Return a file that is there while somebody, whom the tag tells, puts files into a model's folder."""
        return self.folder / PARTIAL / task / f"{name}{_MARKER}-{tag}"

    def markers(self, task: Task, name: str) -> dict[Path, str]:
        """Return all such files of a model that are there, with their tags.

        They are looked for in the list of a folder that is always there: whether a file is there or not, file systems
        remember for longer.
        """
        start = f"{name}{_MARKER}"
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            paths = list((self.folder / PARTIAL / task).iterdir())
            return {path: path.name[len(start) + 1 :] for path in paths if path.name.startswith(start)}
        return {}

    def torn_files(self, task: Task, name: str) -> list[str]:
        """Return the files of a model that are not as long as its manifest says, and no younger.

        Such a file was cut, or the file system shows it as it was. A younger one is a person's, who may put another in
        the place of what was downloaded.
        """
        folder = self.model_folder(task, name)
        torn = []
        for path, (size, stamp) in _recorded(folder / MANIFEST).items():
            with suppress(FileNotFoundError, NotADirectoryError):
                file = (folder / path).stat()
                if file.st_size != size and max(file.st_mtime_ns, file.st_ctime_ns) <= stamp:
                    torn.append(path)
        return torn

    def lock(self, task: Task, name: str) -> Path:
        """Return the file that is there while a process changes a model's folder."""
        return self.folder / PARTIAL / task / f"{name}.lock"

    def models(self) -> list[tuple[Task, str]]:
        """Return every model that is on disk in whatever part, or installed with this package."""
        found = {(key.task, key.name) for key in self._embedded}
        for task in Task:
            for folder in (self.folder / task, self.folder / PARTIAL / task):
                if folder.is_dir():
                    found |= {(task, path.name) for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
        return sorted(found)

    def missing(self, task: Task, name: str) -> list[str]:
        """Return the files that a model should have and has neither on disk nor in this package."""
        folder = self.model_folder(task, name)
        packaged = {f"{key.type}/{GRAPH}" for key in self._embedded if (key.task, key.name) == (task, name)}
        if task == Task.CLIP:
            packaged |= small_paths(name)
        return [path for path in expected_files(task) if path not in packaged and not (folder / path).is_file()]


def expected_files(task: Task) -> tuple[str, ...]:
    """Return the files that every model of a task has."""
    return _CLIP_FILES if task == Task.CLIP else _PAIR_FILES


def _recorded(manifest: Path) -> dict[str, tuple[int, int]]:
    """Return the bytes and the stamp of a manifest's files; nothing where there is none or it is not one."""
    try:
        files = json.loads(manifest.read_bytes())["files"]
        return {path: (int(file["size"]), int(file.get("stamp", 0))) for path, file in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _embedded_graphs() -> dict[ModelKey, Path]:
    """Find PP-OCRv6 small inside the installed `rapidocr` package, without importing it."""
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        return {}
    models = Path(spec.submodule_search_locations[0]) / "models"
    graphs = {
        ModelKey(Task.OCR, EMBEDDED_OCR, ModelType.DETECTION): models / "PP-OCRv6_det_small.onnx",
        ModelKey(Task.OCR, EMBEDDED_OCR, ModelType.RECOGNITION): models / "PP-OCRv6_rec_small.onnx",
    }
    return {key: path for key, path in graphs.items() if path.is_file()}
