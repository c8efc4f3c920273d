"""Downloads with the real clients from a hub on 127.0.0.1, and everything that can go wrong."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from immich_ml_compat.catalog import IMMICH_NAMES, NAMES, ModelType, Task
from immich_ml_compat.downloads import Downloader, sources
from immich_ml_compat.downloads.failures import Patience
from immich_ml_compat.downloads.huggingface import HuggingFace
from immich_ml_compat.downloads.modelscope import ModelScope
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .downloading import (
    GRAPH,
    NAME,
    OCR,
    OCR_KEY,
    REPOSITORY,
    TEXTUAL,
    VISUAL,
    Make,
    contents,
    failure,
    published,
    tree,
)
from .hub import COMMIT, TestHub
from .oracles import packaged


def test_a_model_is_downloaded_whole(make: Make, store: ModelStore, hub: TestHub) -> None:
    files = make().fetch(VISUAL)
    folder = store.folder / "clip" / NAME
    assert files == ModelFiles(NAME, folder / GRAPH, folder / "config.json") == store.find(VISUAL)
    assert tree(folder) == published(contents())
    assert store.find(TEXTUAL) is not None
    assert store.missing(Task.CLIP, NAME) == []
    assert [path.name for path in (store.folder / ".partial" / "clip").iterdir()] == []
    # Every file once, and none again for the other tower.
    make().fetch(TEXTUAL)
    assert len(hub.downloads()) == len(published(contents()))


def test_the_manifest_says_what_came_from_where(make: Make, store: ModelStore, hub: TestHub) -> None:
    make().fetch(VISUAL)
    manifest = json.loads((store.folder / "clip" / NAME / ".manifest.json").read_text())
    assert set(manifest["files"]) == set(published(contents()))
    entry = manifest["files"][GRAPH]
    assert entry["size"] == 200_000
    assert entry["address"] == f"{hub.url}/{REPOSITORY}/resolve/{COMMIT}/{GRAPH}"
    assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["date"])


def test_the_real_sums_of_ocr_models_are_right(make: Make, store: ModelStore, hub: TestHub) -> None:
    """The files inside the rapidocr wheel are those of ModelScope."""
    for kind in ("det", "rec"):
        name = f"PP-OCRv6_{kind}_small.onnx"
        content = packaged("rapidocr", f"models/{name}").read_bytes()
        hub.modelscope[f"RapidAI/RapidOCR/resolve/v3.9.2/onnx/PP-OCRv6/{kind}/{name}"] = content
    make().download(Task.OCR, "PP-OCRv6_small")
    folder = store.folder / "ocr/PP-OCRv6_small"
    assert set(tree(folder)) == {"detection/model.onnx", "recognition/model.onnx"}


@pytest.mark.parametrize("task", list(Task))
def test_every_model_that_has_a_name_has_a_source(task: Task) -> None:
    assert set(sources.downloadable(task)) == NAMES[task]
    for name in IMMICH_NAMES[task]:
        for source in sources.sources(task, name):
            assert (source.hub == "modelscope") == (task == Task.OCR)
            if source.files is not None:
                assert set(source.files) == {"detection/model.onnx", "recognition/model.onnx"}
                assert all(len((source.sha256 or {})[file]) == 64 for file in source.files.values())


def test_languages_share_the_chinese_detection() -> None:
    (source,) = sources.sources(Task.OCR, OCR)
    assert source.files == {
        "detection/model.onnx": "onnx/PP-OCRv5/det/ch_PP-OCRv5_det_mobile.onnx",
        "recognition/model.onnx": "onnx/PP-OCRv5/rec/korean_PP-OCRv5_rec_mobile.onnx",
    }


# --- the line breaks -------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_broke_off(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.fault(GRAPH, cut_at=70_000)
    hub.fault(GRAPH, cut_at=50_000)
    make().fetch(VISUAL)
    assert [request.first_byte for request in hub.downloads(GRAPH)] == [0, 70_000, 120_000]
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_download_that_was_given_up_is_resumed_by_the_next_request(
    make: Make, store: ModelStore, hub: TestHub
) -> None:
    hub.fault(GRAPH, cut_at=70_000)
    hub.fault(GRAPH, times=4, status=500)
    downloader = make()
    assert "answered 500" in failure(downloader)
    assert store.find(VISUAL) is None
    hub.heal()
    downloader.fetch(VISUAL)
    assert [request.first_byte for request in hub.downloads(GRAPH)] == [70_000]
    assert hub.downloads("/config.json") == []  # had been complete
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_hub_without_ranges_is_asked_for_the_whole_again(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.ranges = False
    hub.fault(GRAPH, cut_at=70_000)
    make().fetch(VISUAL)
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_hub_that_does_not_say_lengths_is_checked_by_size(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.lengths = False
    hub.fault(GRAPH, cut_at=70_000)
    make().fetch(VISUAL)
    assert [request.first_byte for request in hub.downloads(GRAPH)] == [0, 70_000]
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_what_an_earlier_process_left_is_not_fetched_again(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.fault("/visual/preprocess_cfg.json", times=9, status=500)
    failure(make())
    (own,) = (store.folder / ".partial/clip" / NAME).iterdir()
    own.rename(own.with_name("1-an-earlier-process"))
    hub.heal()
    make().fetch(VISUAL)
    assert hub.downloads(GRAPH) == []
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_leftover_that_is_complete_but_for_its_sum_is_fetched_again(
    make: Make, store: ModelStore, hub: TestHub
) -> None:
    hub.fault("/visual/preprocess_cfg.json", times=9, status=500)
    failure(make())
    (graph,) = store.folder.glob(f".partial/clip/{NAME}/*/model/{GRAPH}")
    graph.write_bytes(bytes(200_000))
    hub.heal()
    make().fetch(VISUAL)
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_leftover_of_full_length_is_recognised(make: Make, store: ModelStore, hub: TestHub) -> None:
    """ModelScope does not say beforehand how long a file is."""
    (source,) = sources.sources(Task.OCR, "PP-OCRv6_small")
    for path, file in (source.files or {}).items():
        kind = "det" if "detection" in path else "rec"
        content = packaged("rapidocr", f"models/PP-OCRv6_{kind}_small.onnx").read_bytes()
        hub.modelscope[f"RapidAI/RapidOCR/resolve/v3.9.2/{file}"] = content
    detection = packaged("rapidocr", "models/PP-OCRv6_det_small.onnx").read_bytes()
    part = store.partial(Task.OCR, "PP-OCRv6_small") / "1-an-earlier-process/parts" / sha256(detection).hexdigest()[:40]
    part.parent.mkdir(parents=True)
    part.write_bytes(detection)
    make().download(Task.OCR, "PP-OCRv6_small")
    assert [request.first_byte for request in hub.downloads("PP-OCRv6_det")] == [len(detection)]


# --- wrong contents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [GRAPH, "textual/tokenizer.json"])
def test_a_wrong_sum_is_fetched_once_more(make: Make, store: ModelStore, hub: TestHub, path: str) -> None:
    hub.fault(f"/{path}", spoil=True)
    make().fetch(VISUAL)
    assert [request.first_byte for request in hub.downloads(f"/{path}")] == [0, 0]
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_sum_that_is_wrong_twice_is_an_error(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.fault(GRAPH, times=9, spoil=True)
    line = failure(make())
    assert "another sum than it should, twice" in line
    assert "check proxies and HF_ENDPOINT" in line
    assert len(hub.downloads(GRAPH)) == 2
    assert not (store.folder / "clip").exists()


def test_ocr_models_are_held_to_the_sums_of_the_project(make: Make, store: ModelStore, hub: TestHub) -> None:
    (source,) = sources.sources(Task.OCR, OCR)
    for file in (source.files or {}).values():
        hub.modelscope[f"RapidAI/RapidOCR/resolve/v3.9.2/{file}"] = b"not the model"
    line = failure(make(), OCR_KEY)
    assert "another sum than it should" in line
    assert line.endswith(f'set MACHINE_LEARNING_MODEL_ALIASES={{"{OCR}": "PP-OCRv6_small"}}')


@pytest.mark.parametrize("path", ["../../evil.onnx", "/evil.onnx", "visual/../../evil.onnx"])
def test_a_path_outside_the_folder_is_refused(make: Make, store: ModelStore, hub: TestHub, path: str) -> None:
    hub.repositories[REPOSITORY] = {**contents(), path: b"evil"}
    assert "no path inside a model's folder" in failure(make())
    assert not list(store.folder.parent.rglob("evil.onnx"))


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 401, "headers": {"X-Error-Code": "RepoNotFound"}}, r"refuses access to .*\(401\).*HF_TOKEN"),
        ({"status": 403}, r"refuses access to .*\(403\).*HF_TOKEN"),
        (
            {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}},
            r"accepted its conditions .*Accept .*HF_TOKEN",
        ),
        ({"status": 404}, r"does not exist \(404\)\. Check HF_ENDPOINT"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, r"429 .* asks to wait 3600 s\. Try again later"),
        ({"status": 429, "headers": {"Retry-After": "0"}}, r"429 .* asks to wait 0 s\. Try again later"),
        ({"status": 503}, r"answered 503 Service Unavailable .*Try again later"),
        ({"status": 418}, r"answered 418"),
    ],
)
@pytest.mark.parametrize("where", ["/api/models/", GRAPH])
def test_a_refusal_is_one_line_that_says_what_to_do(
    make: Make, store: ModelStore, hub: TestHub, fault: dict[str, Any], words: str, where: str
) -> None:
    hub.fault(where, times=99, **fault)
    line = failure(make())
    assert re.search(words, line), line
    assert f"Or copy the model into {store.folder}/clip/{NAME} by hand." in line
    # What will not change is asked once; what may, four times.
    once = fault["status"] in (401, 403, 404, 418) or "3600" in str(fault)
    assert len(
        [
            request
            for request in hub.requests
            if where in request.path and "/cdn/" in request.path + "/cdn/" * (where != GRAPH)
        ]
    ) == (1 if once else 4)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("where", ["/api/models/", GRAPH])
def test_a_passing_refusal_passes(make: Make, hub: TestHub, status: int, where: str) -> None:
    hub.fault(where, times=3, status=status, headers={"Retry-After": "0"})
    assert make().fetch(VISUAL).graph.is_file()


def test_retry_after_is_honoured(make: Make, hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.fault("/api/models/", status=429, headers={"Retry-After": "7"})
    make(patience=Patience()).fetch(VISUAL)
    assert 7.0 in waits


def test_a_token_opens_and_stays_with_the_hub(make: Make, hub: TestHub) -> None:
    hub.token = "secret"
    assert "Set HF_TOKEN" in failure(make())
    assert "unset a HF_TOKEN that has expired" in failure(make(token="wrong"))
    assert make(token="secret").fetch(VISUAL).graph.is_file()
    assert all("authorization" not in request.headers for request in hub.requests if "/cdn/" in request.path)


def test_no_network(make: Make, store: ModelStore) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        line = failure(make(url=url))
        assert f"{url} cannot be reached or broke off" in line
        assert "Check this server's network, or name a mirror in HF_ENDPOINT" in line
        line = failure(make(url=url), OCR_KEY)
        assert "MODELSCOPE_DOMAIN" in line
        assert "MACHINE_LEARNING_MODEL_ALIASES=" in line
    assert not list(store.folder.rglob("*.onnx"))


def test_a_page_that_is_no_hub(make: Make, hub: TestHub) -> None:
    line = failure(make(url=f"{hub.url}/portal"))
    assert "HF_ENDPOINT" in line


def test_offline(make: Make, hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "switched off by HF_HUB_OFFLINE. Unset HF_HUB_OFFLINE. Or copy the model into" in failure(make())
    assert hub.requests == []


def test_a_failure_is_not_tried_again_for_every_photo(make: Make, hub: TestHub) -> None:
    hub.fault("/api/models/", times=99, status=404)
    downloader = make(pause_s=3600.0)
    assert failure(downloader) == failure(downloader, TEXTUAL)
    assert len(hub.requests) == 1


def test_a_model_nobody_has(make: Make, hub: TestHub) -> None:
    key = ModelKey(Task.OCR, "PP-OCRv4_mobile", ModelType.DETECTION)
    assert "no hub is known to have it" in failure(make(), key)
    assert hub.requests == []


def test_a_repository_without_the_graph(make: Make, hub: TestHub) -> None:
    del hub.repositories[REPOSITORY][GRAPH]
    downloader = make()
    assert "has no visual/model.onnx where it was downloaded from" in failure(downloader)
    assert downloader.fetch(TEXTUAL).graph.is_file()


# --- several sources -------------------------------------------------------------------------------------------


@pytest.fixture
def both_hubs(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model on both hubs."""
    files = published(contents())
    hub.modelscope |= {f"other/clip/resolve/v1/{path}": content for path, content in files.items()}
    entries = [
        {"hub": "huggingface", "task": "clip", "repository": "immich-app/{name}", "revision": "main"},
        {
            "hub": "modelscope",
            "task": "clip",
            "repository": "other/clip",
            "revision": "v1",
            "models": {NAME: {path: path for path in files}},
        },
    ]
    monkeypatch.setattr(sources, "_table", lambda: {"source": entries})


@pytest.mark.usefixtures("both_hubs")
@pytest.mark.parametrize(("first", "prefix"), [("huggingface", "/immich-app/"), ("modelscope", "/models/")])
def test_the_setting_picks_the_first_choice(make: Make, hub: TestHub, first: str, prefix: str) -> None:
    make(first=first).fetch(VISUAL)
    paths = [re.sub("^/(cdn|api/v1|api/models)(?=/)", "", request.path) for request in hub.requests]
    assert all(path.startswith(prefix) for path in paths)


@pytest.mark.usefixtures("both_hubs")
@pytest.mark.parametrize(("first", "where"), [("huggingface", "/api/models/"), ("modelscope", "/models/other")])
def test_the_other_hub_is_the_fallback(make: Make, store: ModelStore, hub: TestHub, first: str, where: str) -> None:
    hub.fault(where, times=99, status=404)
    make(first=first).fetch(VISUAL)
    assert published(tree(store.folder / "clip" / NAME)) == published(contents())


@pytest.mark.usefixtures("both_hubs")
def test_where_both_fail_the_line_names_both(make: Make, hub: TestHub) -> None:
    hub.fault("/", times=99, status=404)
    line = failure(make())
    assert re.search(r"Hugging Face: .*ModelScope: .*Or copy the model", line)


# --- folders that are there already ----------------------------------------------------------------------------


def test_only_what_lacks_is_added_to_a_users_folder(make: Make, store: ModelStore, hub: TestHub) -> None:
    folder = store.folder / "clip" / NAME
    mine = {GRAPH: b"my own graph", "visual/notes.txt": b"mine", "config.json": b"my own"}
    for path, content in mine.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    make().fetch(TEXTUAL)
    assert tree(folder) == published(contents()) | mine
    manifest = json.loads((folder / ".manifest.json").read_text())
    assert set(manifest["files"]).isdisjoint(mine)
    assert hub.downloads(GRAPH) == []


def test_a_complete_folder_of_the_stock_server_gets_no_manifest(make: Make, store: ModelStore, hub: TestHub) -> None:
    folder = store.folder / "clip" / NAME
    for path, content in published(contents()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    make().download(Task.CLIP, NAME)
    assert hub.downloads() == []
    assert not (folder / ".manifest.json").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(make: Make, store: ModelStore, hub: TestHub) -> None:
    folder = store.folder / "clip" / NAME
    folder.mkdir(parents=True)
    fault = hub.fault(GRAPH, hold_at=0)
    thread = threading.Thread(target=make().fetch, args=[VISUAL])
    thread.start()
    assert fault.reached.wait(30)
    (folder / "config.json").write_bytes(b"came by hand")
    fault.release.set()
    thread.join(30)
    assert tree(folder) == published(contents()) | {"config.json": b"came by hand"}
    assert "config.json" not in json.loads((folder / ".manifest.json").read_text())["files"]


@pytest.mark.parametrize("broken", ["os.link", "pathlib.Path.rename"])
def test_disks_that_cannot_link_or_rename(
    make: Make, store: ModelStore, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(broken, refuse)
    monkeypatch.setattr("os.link", refuse)
    make().fetch(VISUAL)
    assert tree(store.folder / "clip" / NAME) == published(contents())
    assert not store.markers(Task.CLIP, NAME)


# --- the disk refuses ------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_said_before_it_is_full(
    make: Make, store: ModelStore, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=150_000))
    line = failure(make())
    assert f"{store.folder} is full" in line
    assert "0.2 MB needed, 0.1 MB free" in line or "0.2 MB needed, 0.2 MB free" in line
    assert "Free some space" in line
    assert not (store.folder / ".partial/clip" / NAME).exists()
    assert len(hub.downloads(GRAPH)) == 1


def test_a_cache_folder_that_cannot_be_made(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = ModelStore(tmp_path / "file" / "cache")
    line = failure(Downloader(store, hubs={"huggingface": lambda: HuggingFace(hub.url)}))
    assert f"{store.folder} cannot be written to (Not a directory). Mount it writable" in line


def test_a_disk_that_fills_up_meanwhile(hub: TestHub, mount: Callable[[str], Path]) -> None:
    hub.lengths = False  # it comes as a surprise
    store = ModelStore(mount("size=1m"))
    (source,) = sources.sources(Task.OCR, OCR)
    for file in (source.files or {}).values():
        hub.modelscope[f"RapidAI/RapidOCR/resolve/v3.9.2/{file}"] = bytes(3_000_000)
    line = failure(Downloader(store, hubs={"modelscope": lambda: ModelScope(hub.url)}), OCR_KEY)
    assert f"{store.folder} is full (No space left on device). Free some space there" in line
    assert not list(store.folder.rglob("*.onnx"))
    assert shutil.disk_usage(store.folder).free > 900_000


def test_a_read_only_folder(hub: TestHub, mount: Callable[[str], Path]) -> None:
    store = ModelStore(mount("ro"))
    line = failure(Downloader(store, hubs={"huggingface": lambda: HuggingFace(hub.url)}))
    assert f"{store.folder} cannot be written to (Read-only file system). Mount it writable" in line
    assert hub.requests == []


def test_a_hub_that_hangs_in_the_middle_of_a_file(make: Make, hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("immich_ml_compat.downloads.hub.TIMEOUT", 1.0)
    held = hub.fault(GRAPH, hold_at=1000)
    make().fetch(VISUAL)
    held.release.set()
    first, second = (request.first_byte for request in hub.downloads(GRAPH))
    assert (first, second > 0) == (0, True)
