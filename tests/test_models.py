"""Models in memory: loaded once, tried twice, and what damaged files do to a request and to the server."""

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.clip.textual import ClipTextual
from immich_ml_compat.clip.visual import ClipVisual
from immich_ml_compat.engine import Engine, EngineError
from immich_ml_compat.errors import ModelInUseError, ModelUnavailableError
from immich_ml_compat.faces.detection import FaceDetector
from immich_ml_compat.models import Model
from immich_ml_compat.ocr.recognition import TextRecognizer
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings
from immich_ml_compat.store import ModelFiles, ModelKey

from .model_folders import CLIP, FACES
from .oracles import packaged
from .server import running_server
from .shelf import FakeModel, Shelf

NAME = "ViT-B-16__openai"
KEY = ModelKey(Task.CLIP, NAME, ModelType.VISUAL)


class Loader:
    """Counts its calls; the first ones fail with the errors it is given."""

    def __init__(self, *errors: Exception, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, _files: ModelFiles, _engine: Engine) -> Model:
        with self._lock:
            self.calls += 1
            error = self.errors.pop(0) if self.errors else None
        time.sleep(self.seconds)
        if error is not None:
            raise error
        return FakeModel()


@pytest.fixture
def models(tmp_path: Path) -> Shelf:
    """Models over a folder with one file that stands for a graph."""
    put(tmp_path / "clip" / NAME / "visual" / "model.onnx")
    put(tmp_path / "clip" / NAME / "textual" / "model.onnx")
    return Shelf(tmp_path)


def put(path: Path, content: bytes = b"graph") -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def fails(models: Shelf, load: Callable[[ModelFiles, Engine], Model], key: ModelKey = KEY) -> str:
    with pytest.raises(ModelUnavailableError) as caught:
        models.get(key, load)
    assert caught.value.status == 500
    return caught.value.detail


# ---------------------------------------------------------------- loading


def test_sixteen_waiting_threads_load_once(models: Shelf) -> None:
    load = Loader(seconds=0.3)
    together = threading.Barrier(16)

    def get(_: int) -> object:
        together.wait()
        return models.get(KEY, load)

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(get, range(16)))
    assert load.calls == 1
    assert len({id(model) for model in got}) == 1
    assert models.get(KEY, load) is got[0]
    assert load.calls == 1


def test_one_model_loads_while_another_does(models: Shelf) -> None:
    started, go_on = threading.Event(), threading.Event()
    slow_model = FakeModel("slow")

    def slow(_files: ModelFiles, _engine: Engine) -> Model:
        started.set()
        assert go_on.wait(30)
        return slow_model

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(models.get, KEY, slow)
        try:
            assert started.wait(30)
            other = ModelKey(Task.CLIP, NAME, ModelType.TEXTUAL)
            quick = FakeModel("quick")
            assert models.get(other, lambda _files, _engine: quick) is quick
        finally:
            go_on.set()
        assert waiting.result(30) == slow_model


def test_two_attempts(models: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    load = Loader(EngineError("first"))
    models.get(KEY, load)
    assert load.calls == 2
    error, repair = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert "could not be downloaded" in repair, "fresh files are asked for in between"
    assert error == f"Loading clip/{NAME}/visual failed (attempt 1 of 2): first"


@pytest.mark.parametrize("error", [EngineError, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError])
def test_two_failures_are_an_error_with_the_contracts_words(models: Shelf, error: type[Exception]) -> None:
    load = Loader(error("a"), error("b"))
    assert fails(models, load) == f"Failed to load model '{NAME}'"
    assert load.calls == 2
    assert models.get(KEY, load) is models.get(KEY, load), "later requests try again"
    assert load.calls == 3


def test_threads_that_wait_for_a_failing_model_all_get_an_answer(models: Shelf) -> None:
    load = Loader(*(OSError("no") for _ in range(1000)), seconds=0.2)
    together = threading.Barrier(8)

    def ask(_: int) -> str:
        together.wait()
        return fails(models, load)

    with ThreadPoolExecutor(8) as pool:
        details = list(pool.map(ask, range(8)))
    assert details == [f"Failed to load model '{NAME}'"] * 8
    assert load.calls == 2, "what failed for one has failed for all who waited"
    fails(models, load)
    assert load.calls == 4, "whoever comes later tries anew"


def test_any_other_exception_passes_and_jams_nothing(models: Shelf) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        models.get(KEY, Loader(RuntimeError("a bug")))
    assert models.get(KEY, Loader()) is not None


def test_a_model_put_there_later_is_found(models: Shelf, tmp_path: Path) -> None:
    key = ModelKey(Task.FACES, "buffalo_l", ModelType.DETECTION)
    load = Loader()
    path = tmp_path / "facial-recognition" / "buffalo_l" / "detection" / "model.onnx"
    assert str(path.parents[1]) in fails(models, load, key)
    assert load.calls == 0
    put(path)
    assert models.get(key, load) is not None


def test_a_model_is_unloaded_on_request_but_never_in_use(models: Shelf) -> None:
    load = Loader()
    models.load_with(KEY, load)
    models.models.unload(KEY)  # as it is not there, nothing is to be done
    models.models.preload(KEY)
    with models.models.use(KEY, FakeModel) as model:
        with pytest.raises(ModelInUseError, match=f"'{NAME}' is in use") as caught:
            models.models.unload(KEY)
        assert caught.value.status == 409
        assert models.get(KEY, load) is model
    models.models.unload(KEY)
    assert models.models.statuses() == ()
    assert models.get(KEY, load) is not model
    assert load.calls == 2
    assert not models.models.statuses()[0].stays, "that it was to stay is forgotten"


def test_a_preloaded_model_is_warmed_and_stays(tmp_path: Path) -> None:
    put(tmp_path / "clip" / NAME / "visual" / "model.onnx")
    now = 0.0
    warmed: list[str] = []

    class Warmed(FakeModel):
        def warm(self) -> None:
            warmed.append(self.name)

    shelf = Shelf(tmp_path, clock=lambda: now)
    shelf.load_with(KEY, lambda _files, _engine: Warmed("visual"))
    shelf.models.preload(KEY)
    assert warmed == ["visual"]
    now = 1e9
    assert shelf.models.unload_expired() == 1


def test_what_a_model_took_is_to_go_back_once_it_rests(tmp_path: Path) -> None:
    put(tmp_path / "clip" / NAME / "visual" / "model.onnx")
    put(tmp_path / "clip" / NAME / "textual" / "model.onnx")
    now = 0.0
    shelf = Shelf(tmp_path, clock=lambda: now)
    assert not shelf.models.release_is_due(3), "none is there"
    other = ModelKey(Task.CLIP, NAME, ModelType.TEXTUAL)
    shelf.load_with(other, Loader())
    now = 1.0
    shelf.get(KEY, Loader())
    now = 3.5
    assert not shelf.models.release_is_due(3), "not for so long yet"
    now = 4.0
    with shelf.models.use(KEY, FakeModel):
        now = 100.0
        assert not shelf.models.release_is_due(3), "it is in use"
    with shelf.models.use(other, FakeModel):
        assert not shelf.models.release_is_due(3)
        now = 103.0
        assert shelf.models.release_is_due(3), "whatever another one does"
        shelf.models.release()
        now = 200.0
        assert not shelf.models.release_is_due(3), "what it took went back"
    now = 203.0
    assert shelf.models.release_is_due(3), "the other one was in use when it did"


@pytest.mark.parametrize(
    ("task", "kind", "name"),
    [
        (Task.CLIP, ModelType.VISUAL, CLIP),
        (Task.CLIP, ModelType.TEXTUAL, CLIP),
        (Task.FACES, ModelType.DETECTION, FACES),
        (Task.FACES, ModelType.RECOGNITION, FACES),
        (Task.OCR, ModelType.DETECTION, "PP-OCRv6_small"),
        (Task.OCR, ModelType.RECOGNITION, "PP-OCRv6_small"),
    ],
)
def test_every_kind_of_model_can_be_warmed(cache: Path, task: Task, kind: ModelType, name: str) -> None:
    assert Service(Settings(cache_folder=cache)).preload([(task, kind, name)]) == []


def test_sums_are_not_checked_when_a_model_loads(copied: Path) -> None:
    """Immich's users have models of many GB: that is what `models verify` is for."""
    folder = copied / "facial-recognition" / FACES
    wrong = {"size": 1, "sha256": "0" * 64, "address": "http://hub/x", "date": "2026-01-01T00:00:00Z"}
    (folder / ".manifest.json").write_text(json.dumps({"files": {"detection/model.onnx": wrong}}))
    key = ModelKey(Task.FACES, FACES, ModelType.DETECTION)
    assert isinstance(Shelf(copied).get(key, FaceDetector.load), FaceDetector)


# ---------------------------------------------------------------- damaged files


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"not a model\n",
    "zeros": lambda content: bytes(len(content)),
    "half": half,
    "header only": lambda content: content[:64],
    "LFS pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
JSON_DAMAGE = [b"", b"text", b"[]", b"null", b"5", b'"a"', b"{}", b"\xff\xfe", b"[" * 100_000]


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A cache folder of the test's own, with a CLIP and a detection model."""
    for model in (f"clip/{CLIP}", f"facial-recognition/{FACES}/detection"):
        shutil.copytree(cache / model, tmp_path / "copied" / model)
    return tmp_path / "copied"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_graph_can_be_repaired(copied: Path, damage: str) -> None:
    graph = copied / "facial-recognition" / FACES / "detection" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(DAMAGE[damage](whole))
    before = contents(copied)
    models = Shelf(copied)
    key = ModelKey(Task.FACES, FACES, ModelType.DETECTION)
    for _ in range(2):
        assert fails(models, FaceDetector.load, key) == f"Failed to load model '{FACES}'"
    assert contents(copied) == before, "nothing is deleted or rewritten"
    graph.write_bytes(whole)
    assert isinstance(models.get(key, FaceDetector.load), FaceDetector)


CONFIGURATIONS = {
    "visual/preprocess_cfg.json": [
        *(b'{"size":null}', b'{"size":[]}', b'{"size":"a"}', b'{"size":1e999}', b'{"size":32,"mean":5}'),
        *(b'{"size":32,"interpolation":5}', b'{"size":32,"interpolation":"no"}'),
    ],
    "config.json": [
        b'{"text_cfg":null}',
        b'{"text_cfg":{"context_length":-1}}',
        b'{"text_cfg":{"tokenizer_kwargs":5}}',
    ],
    "textual/tokenizer_config.json": [b'{"pad_token":null}', b'{"pad_token":5}', b'{"pad_token":"nope"}'],
    "textual/tokenizer.json": [b'{"model":null}'],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, more in CONFIGURATIONS.items() for content in JSON_DAMAGE + more]
)
def test_a_damaged_configuration_can_be_repaired(copied: Path, name: str, content: bytes) -> None:
    path = copied / "clip" / CLIP / name
    whole = path.read_bytes()
    path.write_bytes(content)
    models = Shelf(copied)

    def get() -> object:
        if name.startswith("visual"):
            return models.get(ModelKey(Task.CLIP, CLIP, ModelType.VISUAL), ClipVisual.load)
        return models.get(ModelKey(Task.CLIP, CLIP, ModelType.TEXTUAL), ClipTextual.load)

    with pytest.raises(ModelUnavailableError, match=f"Failed to load model '{CLIP}'"):
        get()
    assert path.read_bytes() == content
    path.write_bytes(whole)
    assert get() is not None
    path.unlink()
    assert get() is not None, "it is in memory"


def test_a_graph_of_another_kind_does_not_load(copied: Path) -> None:
    detector = copied / "facial-recognition" / FACES / "detection" / "model.onnx"
    for kind in ("visual", "textual"):
        shutil.copyfile(copied / "clip" / CLIP / kind / "model.onnx", detector)
        models = Shelf(copied)
        fails(models, FaceDetector.load, ModelKey(Task.FACES, FACES, ModelType.DETECTION))
    put(copied / "ocr" / "mine" / "recognition" / "model.onnx", detector.read_bytes())
    fails(models, TextRecognizer.load, ModelKey(Task.OCR, "mine", ModelType.RECOGNITION))


def test_a_folder_in_place_of_a_graph(copied: Path) -> None:
    graph = copied / "facial-recognition" / FACES / "detection" / "model.onnx"
    graph.unlink()
    graph.mkdir()
    models = Shelf(copied)
    assert str(graph.parents[1]) in fails(models, FaceDetector.load, ModelKey(Task.FACES, FACES, ModelType.DETECTION))


# ---------------------------------------------------------------- through the server


def test_damaged_models_and_the_server(copied: Path, tmp_path: Path) -> None:
    photo = packaged("insightface", "data/images/t1.jpg").read_bytes()
    graph = copied / "facial-recognition" / FACES / "detection" / "model.onnx"
    whole = graph.read_bytes()
    faces = {"facial-recognition": {"detection": {"modelName": FACES, "options": {"minScore": 0.7}}}}
    clip = {"clip": {"visual": {"modelName": CLIP}}}
    (tmp_path / "server").mkdir()
    with running_server(copied, tmp_path / "server") as server:
        for damage in DAMAGE.values():
            graph.write_bytes(damage(whole))
            answer = server.predict(faces, photo)
            assert answer.status_code == 500
            assert answer.json() == {"detail": f"Failed to load model '{FACES}'"}
            assert server.predict(faces | clip, photo).status_code == 500
            assert server.predict(clip, photo).status_code == 200, "the rest goes on"
        configuration = copied / "clip" / CLIP / "config.json"
        text = configuration.read_bytes()
        configuration.write_bytes(b"[]")
        textual = {"clip": {"textual": {"modelName": CLIP}}}
        assert server.predict(textual, text="sea").json() == {"detail": f"Failed to load model '{CLIP}'"}
        configuration.write_bytes(text)
        graph.write_bytes(whole)
        assert server.predict(textual, text="sea").status_code == 200
        assert len(server.predict(faces, photo).json()["facial-recognition"]["boxes"]) > 1
        log = server.log.read_text()
    assert "Traceback" not in log
    assert str(graph) in log, "the log names the file"
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]
