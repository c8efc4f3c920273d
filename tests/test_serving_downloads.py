"""A server whose models are only on the hub."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from .clip_models import write_clip_model
from .downloading import GRAPH, NAME, tree
from .hub import TestHub
from .server import running_server
from .test_workers import eventually

ENTRIES = {"clip": {"textual": {"modelName": NAME, "options": {}}}}
PHOTO = Path(__file__).parents[1] / "docs/invoice.jpg"


def test_a_request_is_answered_once_its_model_has_come(hub: TestHub, tmp_path: Path) -> None:
    write_clip_model(tmp_path / "published", NAME)
    files = tree(tmp_path / "published/clip" / NAME)
    hub.repositories[f"immich-app/{NAME}"] = files
    cache = tmp_path / "cache"
    held = hub.fault(GRAPH, hold_at=0)
    answers: list[Any] = []
    environment = {"HF_ENDPOINT": hub.url}
    with running_server(cache, tmp_path, environment) as server:
        requests = [
            threading.Thread(target=lambda: answers.append(server.predict(ENTRIES, text="a cat"))) for _ in range(3)
        ]
        for request in requests:
            request.start()
        assert held.reached.wait(60)
        assert httpx.get(f"{server.url}/ping", timeout=2).text == "pong"
        assert answers == []
        held.release.set()
        for request in requests:
            request.join(60)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert len({answer.text for answer in answers}) == 1
        eventually(lambda: 'immich_ml_downloads_total{result="done"} 1.0' in httpx.get(f"{server.url}/metrics").text)
    assert tree(cache / "clip" / NAME) == files
    assert len(hub.downloads()) == len(files)


def test_photos_that_wait_for_a_download_hold_up_no_others(hub: TestHub, tmp_path: Path) -> None:
    write_clip_model(tmp_path / "files", NAME)
    hub.repositories[f"immich-app/{NAME}"] = tree(tmp_path / "files/clip" / NAME)
    held = hub.fault(GRAPH, hold_at=0)
    embed = {"clip": {"visual": {"modelName": NAME}}}
    read = {"ocr": {kind: {"modelName": "PP-OCRv6_small"} for kind in ("detection", "recognition")}}
    environment = {"HF_ENDPOINT": hub.url, "MACHINE_LEARNING_REQUEST_THREADS": "1"}
    with running_server(tmp_path / "cache", tmp_path, environment) as server, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.predict, embed, PHOTO.read_bytes()) for _ in range(3)]
        try:
            assert held.reached.wait(60)
            assert server.predict(read, PHOTO.read_bytes()).status_code == 200
            assert not any(each.done() for each in waiting)
        finally:
            held.release.set()
        assert [each.result(60).status_code for each in waiting] == [200] * 3


def test_a_damaged_model_is_replaced_and_answers(hub: TestHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_clip_model(cache, NAME)
    folder = cache / "clip" / NAME
    hub.repositories[f"immich-app/{NAME}"] = tree(folder)
    graph = folder / "textual/model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    environment = {"HF_ENDPOINT": hub.url}
    with running_server(cache, tmp_path, environment) as server:
        assert server.predict(ENTRIES, text="a cat").status_code == 200
    (aside,) = graph.parent.glob("model.onnx.broken-*")
    assert aside.stat().st_size == 1000
    assert "does not load; it is kept as" in (tmp_path / "server.log").read_text()


def test_a_damaged_model_that_cannot_be_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_clip_model(cache, NAME)
    graph = cache / "clip" / NAME / "textual/model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with running_server(cache, tmp_path) as server:
        answer = server.predict(ENTRIES, text="a cat")
    assert (answer.status_code, answer.json()) == (500, {"detail": f"Failed to load model '{NAME}'"})
    assert "switched off by HF_HUB_OFFLINE" in (tmp_path / "server.log").read_text()
    assert [path.name for path in graph.parent.glob("model*")] == ["model.onnx"]


def test_a_missing_model_is_explained_to_the_client(tmp_path: Path) -> None:
    with running_server(tmp_path / "cache", tmp_path) as server:
        answer = server.predict(ENTRIES, text="a cat")
    assert answer.status_code == 500
    detail = answer.json()["detail"]
    assert detail.startswith(f"Model '{NAME}' is not on this server: it could not be downloaded. Hugging Face: ")
    assert "Unset HF_HUB_OFFLINE" in detail


def test_a_missing_ocr_model_names_the_alias_to_set(tmp_path: Path) -> None:
    models = {"detection": {"modelName": "PP-OCRv5_server"}, "recognition": {"modelName": "PP-OCRv5_server"}}
    photo = (Path(__file__).parents[1] / "docs/invoice.jpg").read_bytes()
    with running_server(tmp_path / "cache", tmp_path) as server:
        detail = server.predict({"ocr": models}, image=photo).json()["detail"]
    assert "Check MODELSCOPE_DOMAIN" in detail
    assert detail.endswith('set MACHINE_LEARNING_MODEL_ALIASES={"PP-OCRv5_server": "PP-OCRv6_small"}')
