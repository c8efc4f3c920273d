"""Models on disk that do not load: set aside, kept, and fetched again where that helps."""

import json
import logging
from pathlib import Path

import pytest

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.downloads import Downloader
from immich_ml_compat.errors import ModelUnavailableError
from immich_ml_compat.store import ModelKey, ModelStore

from .downloading import GRAPH, NAME, TEXTUAL, VISUAL, Make, contents, published, tree
from .hub import TestHub

TOKENIZER = "textual/tokenizer.json"


@pytest.fixture
def folder(store: ModelStore) -> Path:
    """The model as the stock server leaves it: complete, without a manifest."""
    folder = store.folder / "clip" / NAME
    for path, content in published(contents()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def refusal(downloader: Downloader, key: ModelKey = VISUAL) -> str:
    with pytest.raises(ModelUnavailableError) as caught:
        downloader.replace(key)
    assert "\n" not in caught.value.detail
    return caught.value.detail


def broken(folder: Path) -> dict[str, bytes]:
    """Return what was set aside, by the name it had."""
    found = [path for path in tree(folder) if ".broken-" in path]
    return {path.partition(".broken-")[0]: (folder / path).read_bytes() for path in found}


def test_a_damaged_graph_is_kept_and_replaced(
    make: Make, folder: Path, hub: TestHub, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / GRAPH).write_bytes(b"half a graph")
    make().replace(VISUAL)
    assert broken(folder) == {GRAPH: b"half a graph"}
    assert tree(folder).items() >= published(contents()).items()
    assert [request.path.endswith(GRAPH) for request in hub.downloads()] == [True]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "does not load; it is kept as model.onnx.broken-" in line
    assert set(json.loads((folder / ".manifest.json").read_text())["files"]) == {GRAPH}


def test_a_second_damage_keeps_the_first(make: Make, folder: Path) -> None:
    for content in (b"one", b"two"):
        (folder / GRAPH).write_bytes(content)
        make().replace(VISUAL)
    aside = [content for path, content in tree(folder).items() if ".broken-" in path]
    assert sorted(aside) == [b"one", b"two"]


def test_only_what_is_damaged_is_touched(make: Make, folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(b"{")
    (folder / "visual/preprocess_cfg.json").write_bytes(b'{"mine": 1}')
    make().replace(TEXTUAL)
    assert broken(folder) == {TOKENIZER: b"{"}
    assert (folder / "visual/preprocess_cfg.json").read_bytes() == b'{"mine": 1}'


def test_a_damaged_graph_does_not_take_the_small_files_with_it(make: Make, folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"half a graph")
    (folder / "visual/preprocess_cfg.json").write_bytes(b'{"mine": 1}')
    make().replace(VISUAL)
    assert broken(folder) == {GRAPH: b"half a graph"}
    assert (folder / "visual/preprocess_cfg.json").read_bytes() == b'{"mine": 1}'


def test_a_missing_file_beside_the_graph_is_added(make: Make, folder: Path) -> None:
    (folder / TOKENIZER).unlink()
    make().replace(TEXTUAL)
    assert tree(folder) == published(contents())


def test_the_hubs_own_file_is_not_touched(make: Make, folder: Path, hub: TestHub) -> None:
    assert "though its files are those of" in refusal(make())
    assert tree(folder) == published(contents())
    assert hub.downloads() == []


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"spoil": True}])
def test_nothing_is_touched_where_nothing_can_be_fetched(
    make: Make, folder: Path, hub: TestHub, fault: dict[str, object]
) -> None:
    (folder / GRAPH).write_bytes(b"half a graph")
    hub.fault(GRAPH, times=9, **fault)
    assert "could not be" in refusal(make())
    assert tree(folder) == published(contents()) | {GRAPH: b"half a graph"}


def test_a_users_own_model_is_not_touched(make: Make, store: ModelStore, hub: TestHub) -> None:
    graph = store.folder / "ocr/PP-OCRv4_mobile/detection/model.onnx"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"half a graph")
    line = refusal(make(), ModelKey(Task.OCR, "PP-OCRv4_mobile", ModelType.DETECTION))
    assert "does not load" in line
    assert str(graph.parent.parent) in line
    assert tree(store.folder) == {"ocr/PP-OCRv4_mobile/detection/model.onnx": b"half a graph"}
    assert hub.requests == []
