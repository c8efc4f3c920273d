"""Models made from an official checkpoint: downloaded from a hub on 127.0.0.1, or lying on the disk."""

import errno
import gzip
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS, Task
from immich_ml_compat.downloads import Downloader, sources
from immich_ml_compat.downloads.checking import State, check
from immich_ml_compat.downloads.converting import own
from immich_ml_compat.downloads.manifest import MANIFEST, read_manifest
from immich_ml_compat.errors import ModelUnavailableError
from immich_ml_compat.store import ModelKey, ModelStore

from . import downloading
from .converting import (
    CHECKPOINT,
    CHINESE,
    CHINESE_TEXTUAL,
    CHINESE_VISUAL,
    HUGGINGFACE,
    MODELSCOPE,
    SMALL,
    WEIGHTS,
    checkpoint,
    convert,
    made_of,
    never,
    pipe,
)
from .downloading import GRAPH, Make, tree
from .hub import COMMIT, TestHub

TEXT_GRAPH = "textual/model.onnx"
MADE = made_of(checkpoint())


@pytest.fixture(autouse=True)
def published(hub: TestHub) -> None:
    """Have the checkpoint on both hubs."""
    others = {"README.md": b"# Chinese-CLIP", "pytorch_model.bin": bytes(1000), "../../evil.pt": b"evil"}
    hub.repositories[HUGGINGFACE] = {CHECKPOINT: checkpoint(), **others}
    hub.modelscope |= {
        f"{MODELSCOPE}/resolve/master/{path}": content for path, content in hub.repositories[HUGGINGFACE].items()
    }


@pytest.fixture
def make(make: Make) -> Make:
    """Downloaders with the test's converter."""
    return lambda **options: make(**{"converter": convert, **options})


@pytest.fixture
def folder(store: ModelStore) -> Path:
    return store.model_folder(Task.CLIP, CHINESE)


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes(checkpoint(2))
    (folder / CHECKPOINT).chmod(0o444)
    return folder / CHECKPOINT


def failure(downloader: Downloader) -> str:
    return downloading.failure(downloader, CHINESE_VISUAL)


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def aside(folder: Path) -> dict[str, bytes]:
    """The files that were set aside, by the names that they had."""
    return {re.sub(r"\.broken-.*", "", path): it for path, it in tree(folder).items() if ".broken-" in path}


# --- first use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "address"),
    [
        ("huggingface", f"{HUGGINGFACE}/resolve/{COMMIT}/{CHECKPOINT}"),
        ("modelscope", f"models/{MODELSCOPE}/resolve/master/{CHECKPOINT}"),
    ],
)
def test_a_model_is_made_of_its_checkpoint(
    make: Make, store: ModelStore, hub: TestHub, folder: Path, first: str, address: str
) -> None:
    files = make(first=first).fetch(CHINESE_VISUAL)
    assert files == store.find(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert store.missing(Task.CLIP, CHINESE) == []
    make(first=first, converter=never).fetch(CHINESE_TEXTUAL)
    make(first=first, converter=never).download(Task.CLIP, CHINESE)
    assert len(hub.downloads()) == 1
    assert [path.name for path in (store.folder / ".partial/clip").iterdir()] == []
    manifest = json.loads((folder / MANIFEST).read_text())["files"]
    assert {path: entry["size"] for path, entry in manifest.items()} == {path: len(it) for path, it in MADE.items()}
    assert {entry["address"] for entry in manifest.values()} == {f"{hub.url}/{address}"}
    assert not list(store.folder.parent.rglob("evil.pt"))


@pytest.mark.parametrize("name", CHINESE_CLIP_DIMENSIONS)
def test_all_five_are_on_both_hubs(name: str) -> None:
    found = sources.sources(Task.CLIP, name, "modelscope")
    assert [source.hub for source in found] == ["modelscope", "huggingface"]
    assert len({source.repository.partition("/")[2] for source in found}) == 1
    size = name.removeprefix("cn-clip_").lower()
    assert all(source.convert and source.files == {f"clip_cn_{size}.pt": f"clip_cn_{size}.pt"} for source in found)


def test_a_cut_download_goes_on_where_it_broke_off(make: Make, hub: TestHub, folder: Path) -> None:
    hub.fault(CHECKPOINT, cut_at=70_000)
    make().fetch(CHINESE_VISUAL)
    assert [request.first_byte for request in hub.downloads(CHECKPOINT)] == [0, 70_000]
    assert tree(folder) == MADE


@pytest.mark.parametrize(("first", "fault"), [("huggingface", "/cdn/"), ("modelscope", f"master/{CHECKPOINT}")])
def test_the_next_hub_goes_on_where_the_first_broke_off(
    make: Make, hub: TestHub, folder: Path, first: str, fault: str
) -> None:
    hub.fault(fault, cut_at=70_000)
    hub.fault(fault, times=99, status=404)
    make(first=first).fetch(CHINESE_VISUAL)
    assert [request.first_byte for request in hub.downloads(CHECKPOINT)] == [0, 70_000, 70_000]
    assert tree(folder) == MADE


@pytest.mark.parametrize("first", ["huggingface", "modelscope"])
def test_a_wrong_sum_is_fetched_once_more(make: Make, hub: TestHub, folder: Path, first: str) -> None:
    hub.fault(f"/{CHECKPOINT}", spoil=True)
    make(first=first).fetch(CHINESE_VISUAL)
    assert [request.first_byte for request in hub.downloads(CHECKPOINT)] == [0, 0]
    assert tree(folder) == MADE


def test_where_modelscope_has_no_sum_there_is_none(make: Make, hub: TestHub, folder: Path) -> None:
    hub.sums = False
    other = bytes(byte ^ 0xFF for byte in checkpoint())
    hub.modelscope[f"{MODELSCOPE}/resolve/master/{CHECKPOINT}"] = b"CN" + other[2:]
    make(first="modelscope").fetch(CHINESE_VISUAL)
    assert tree(folder) == made_of(b"CN" + other[2:])


def test_a_checkpoint_that_cannot_be_used_leads_to_the_next_hub(
    make: Make, hub: TestHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories[HUGGINGFACE][CHECKPOINT] = b"no weights"
    make().fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert f"/resolve/{COMMIT}/{CHECKPOINT} is not a checkpoint of {CHINESE} (no weights). Use" in caplog.text
    assert "Trying ModelScope" in caplog.text


def test_where_no_hub_has_a_usable_one_the_line_says_so(make: Make, store: ModelStore, hub: TestHub) -> None:
    hub.repositories[HUGGINGFACE][CHECKPOINT] = b"no weights"
    hub.modelscope[f"{MODELSCOPE}/resolve/master/{CHECKPOINT}"] = b"no weights either"
    line = failure(make())
    assert re.search(
        rf"Hugging Face: {hub.url}/\S+ is not a checkpoint .* official file\. Another copy .*ModelScope: {hub.url}/",
        line,
    ), line
    assert ".partial" not in line
    assert ". ." not in line
    assert not (store.folder / "clip").exists()
    assert not (store.folder / ".partial/clip" / CHINESE).exists()


def test_both_hubs_out_of_reach(make: Make, hub: TestHub) -> None:
    hub.fault("/", times=99, status=404)
    assert re.search(r"Hugging Face: .*ModelScope: .*Check MODELSCOPE_DOMAIN.*Or copy the model", failure(make()))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"Data":null}', b'{"Data":{"Files":[{"Path":"a","Size":-1}]}}'])
def test_what_answers_like_no_hub(
    make: Make, monkeypatch: pytest.MonkeyPatch, hub: TestHub, folder: Path, body: bytes
) -> None:
    from .hub import _Handler  # the one place where a test needs an answer that no hub gives

    monkeypatch.setattr(_Handler, "_list_modelscope", lambda handler, _: handler._answer(200, body))
    hub.fault("/api/models/", times=99, status=404)
    assert "does not answer like ModelScope. Check MODELSCOPE_DOMAIN" in failure(make())


def test_a_sum_that_would_be_a_path_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch, store: ModelStore, hub: TestHub
) -> None:
    from .hub import _Handler

    entry = {"Path": CHECKPOINT, "Size": 1, "Sha256": "../../../../evil.pt"}
    body = json.dumps({"Data": {"Files": [entry]}}).encode()
    monkeypatch.setattr(_Handler, "_list_modelscope", lambda handler, _: handler._answer(200, body))
    hub.fault("/api/models/", times=99, status=404)
    assert "is no sum. Do not use this hub" in failure(make())
    assert not list(store.folder.parent.rglob("evil*"))


def listing(**more: Any) -> bytes:
    """What ModelScope answers, and what it may say besides."""
    return json.dumps({"Code": 200, "Data": {"Files": [{"Path": CHECKPOINT, "Size": 200_002} | more]}}).encode()


HUGE = listing() + b" " * (8 << 20)


@pytest.mark.parametrize(
    ("body", "headers", "cause"),
    [
        (HUGE, {}, "does not answer like ModelScope"),
        (gzip.compress(HUGE), {"Content-Encoding": "gzip"}, "does not answer like ModelScope"),
        (listing(Size=2**62), {}, f"{2**62} bytes is no size of a model's file"),
        (listing().replace(b"200,", b"500,", 1), {}, "ModelScope answered 500"),
    ],
    ids=["long", "packed", "size", "code"],
)
def test_a_listing_that_cannot_be_true_leads_to_the_next_hub(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    hub: TestHub,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    headers: dict[str, str],
    cause: str,
) -> None:
    from .hub import _Handler

    monkeypatch.setattr(_Handler, "_list_modelscope", lambda handler, _: handler._answer(200, body, headers))
    make(first="modelscope").fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert cause in caplog.text
    (asked,) = [request for request in hub.requests if request.path.startswith("/api/v1/")]
    assert asked.headers["accept-encoding"] == "identity"
    assert not [request for request in hub.downloads() if MODELSCOPE in request.path]


def test_a_length_that_cannot_be_true_leads_to_the_next_hub(
    make: Make, monkeypatch: pytest.MonkeyPatch, hub: TestHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from .hub import _Handler

    send = _Handler._send

    def lie(handler: _Handler, path: str, content: bytes) -> None:
        if not path.startswith("/cdn/"):
            return send(handler, path, content)
        handler.send_response(200)
        handler.send_header("Content-Length", str(2**62))
        return handler.end_headers()

    monkeypatch.setattr(_Handler, "_send", lie)
    make().fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert f"{2**62} bytes is no size of a model's file" in caplog.text


def test_a_passing_refusal_of_modelscope_passes(make: Make, hub: TestHub, folder: Path) -> None:
    hub.fault("/api/v1/models/", times=3, status=503)
    make(first="modelscope").fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert all("modelscope" in request.path.lower() for request in hub.requests)


def test_a_repository_without_the_checkpoint(make: Make, hub: TestHub) -> None:
    del hub.repositories[HUGGINGFACE][CHECKPOINT], hub.modelscope[f"{MODELSCOPE}/resolve/master/{CHECKPOINT}"]
    line = failure(make())
    assert line.count(f"has no {CHECKPOINT}. Report this to the project") == 2


# --- folders that are there in part ----------------------------------------------------------------------------


def test_only_the_tower_that_lacks_is_added(make: Make, hub: TestHub, folder: Path) -> None:
    mine = {GRAPH: b"my own", "visual/preprocess_cfg.json": b"mine", "config.json": b"mine"}
    put(folder, mine)
    make().fetch(CHINESE_TEXTUAL)
    # No weights either: they would stand beside a graph that they are not of.
    assert tree(folder) == {path: it for path, it in MADE.items() if path != WEIGHTS} | mine
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert set(recorded.files) == {path for path in MADE if path.startswith("textual/")}


def test_weights_that_lack_are_added_to_the_graph_they_are_of(make: Make, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    (folder / WEIGHTS).unlink()
    make().download(Task.CLIP, CHINESE)
    assert tree(folder) == MADE


def test_weights_whose_graph_is_gone_make_way(make: Make, folder: Path) -> None:
    put(folder, {WEIGHTS: b"of another graph"})
    make().fetch(CHINESE_VISUAL)
    assert aside(folder) == {WEIGHTS: b"of another graph"}
    assert {path: it for path, it in tree(folder).items() if ".broken-" not in path} == MADE


def test_a_file_that_appears_meanwhile_is_not_overwritten(make: Make, folder: Path) -> None:
    def slow(*given: Any, **options: Any) -> None:
        convert(*given, **options)
        put(folder, {"config.json": b"came by hand"})

    make(converter=slow).fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE | {"config.json": b"came by hand"}


# --- towers that do not load -----------------------------------------------------------------------------------


def test_a_damaged_graph_is_made_anew(make: Make, hub: TestHub, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    (folder / GRAPH).write_bytes(b"damaged")
    (folder / TEXT_GRAPH).write_bytes(b"not asked for")
    files = make().replace(CHINESE_VISUAL)
    assert files.graph.read_bytes() == MADE[GRAPH]
    assert aside(folder) == {GRAPH: b"damaged"}
    assert (folder / TEXT_GRAPH).read_bytes() == b"not asked for"
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert set(recorded.files) == set(MADE)
    assert len(hub.downloads(CHECKPOINT)) == 2


def test_a_graph_and_its_weights_are_replaced_together(make: Make, hub: TestHub, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    (folder / WEIGHTS).unlink()
    hub.repositories[HUGGINGFACE][CHECKPOINT] = checkpoint(1)
    make().replace(CHINESE_VISUAL)
    made = made_of(checkpoint(1))
    assert {path: (folder / path).read_bytes() for path in (GRAPH, WEIGHTS)} == {
        path: made[path] for path in (GRAPH, WEIGHTS)
    }


def test_a_damaged_small_file_leaves_the_graph(make: Make, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    (folder / "textual/tokenizer.json").write_bytes(b"damaged")
    make().replace(CHINESE_TEXTUAL)
    assert aside(folder) == {"textual/tokenizer.json": b"damaged"}


def test_a_users_graph_that_does_not_load_makes_way(make: Make, folder: Path) -> None:
    """Without small files, too: the package's stand in for them, so they are not to blame."""
    put(folder, {GRAPH: b"my own"})
    make().replace(CHINESE_VISUAL)
    assert aside(folder) == {GRAPH: b"my own"}
    visual = {path: it for path, it in MADE.items() if not path.startswith("textual/")}
    assert {path: it for path, it in tree(folder).items() if ".broken-" not in path} == visual


def test_a_damaged_graph_and_a_small_file_that_lacks_are_made_at_once(make: Make, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    (folder / GRAPH).write_bytes(b"damaged")
    (folder / "config.json").unlink()
    make().replace(CHINESE_VISUAL)
    assert aside(folder) == {GRAPH: b"damaged"}
    assert {path: (folder / path).read_bytes() for path in MADE} == MADE


def test_a_tower_as_it_was_made_is_not_to_blame(make: Make, hub: TestHub) -> None:
    make().fetch(CHINESE_VISUAL)
    hub.requests.clear()
    with pytest.raises(ModelUnavailableError, match=rf"made from {hub.url}/\S+: this server's engine cannot run it"):
        make(converter=never).replace(CHINESE_VISUAL)
    assert hub.requests == []


def test_a_hand_copied_tower_that_equals_what_is_made_is_not_to_blame(
    make: Make, store: ModelStore, hub: TestHub, folder: Path
) -> None:
    put(folder, MADE)
    with pytest.raises(ModelUnavailableError, match="this server's engine cannot run it"):
        make().replace(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert not store.partial(Task.CLIP, CHINESE).exists(), "the checkpoint is of no use any more"
    hub.requests.clear()
    with pytest.raises(ModelUnavailableError, match=rf"made from {hub.url}/\S+: this server's engine cannot run it"):
        make(converter=never).replace(CHINESE_VISUAL)
    assert hub.requests == []


# --- small files, which need no checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("key", [CHINESE_VISUAL, CHINESE_TEXTUAL])
def test_a_small_file_that_is_none_comes_from_the_package(
    make: Make, hub: TestHub, folder: Path, own_file: Path, half: bool, key: ModelKey
) -> None:
    made = converted(make, own_file, half=half)
    (folder / "config.json").write_bytes(b"{")
    hub.fault("/", times=99, status=404)
    make(converter=never).replace(key)
    assert aside(folder) == {"config.json": b"{"}
    assert {path: (folder / path).read_bytes() for path in made} == made
    assert hub.requests == []
    with pytest.raises(ModelUnavailableError, match="cannot run it"):
        make(converter=never).replace(key)
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert all(file.is_at(folder / path) for path, file in recorded.files.items())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe{", b'{"a": ' * 100_000], ids=["empty", "list", "code", "deep"]
)
def test_a_hand_copied_folder_gets_it_too(make: Make, hub: TestHub, folder: Path, content: bytes) -> None:
    towers = {GRAPH: b"my own", TEXT_GRAPH: b"my own too", "visual/preprocess_cfg.json": b'{"mine": 1}'}
    put(folder, towers | {"config.json": content})
    make(converter=never).replace(CHINESE_VISUAL)
    assert tree(folder).items() >= (towers | {"config.json": SMALL["config.json"]}).items()
    assert aside(folder) == {"config.json": content}
    assert hub.requests == []


def test_a_persons_own_small_file_is_left(make: Make, folder: Path) -> None:
    own_files = {"visual/preprocess_cfg.json": b'{"mine": 1}', "config.json": b"{}"}
    put(folder, own_files | {GRAPH: b"damaged"})
    make().replace(CHINESE_VISUAL)
    assert aside(folder) == {GRAPH: b"damaged"}
    with pytest.raises(ModelUnavailableError, match="cannot run it"):
        make(converter=never).replace(CHINESE_VISUAL)
    assert tree(folder).items() >= own_files.items()


def test_one_that_was_changed_is_the_last_to_be_blamed(make: Make, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    put(folder, {"visual/preprocess_cfg.json": b'{"mine": 1}', GRAPH: b"damaged"})
    make().replace(CHINESE_VISUAL)
    assert aside(folder) == {GRAPH: b"damaged"}
    assert (folder / "visual/preprocess_cfg.json").read_bytes() == b'{"mine": 1}'
    make(converter=never).replace(CHINESE_VISUAL)
    assert aside(folder) == {GRAPH: b"damaged", "visual/preprocess_cfg.json": b'{"mine": 1}'}
    assert {path: (folder / path).read_bytes() for path in MADE} == MADE


def test_small_files_that_lack_need_no_checkpoint(make: Make, hub: TestHub, folder: Path) -> None:
    put(folder, {GRAPH: b"my own", TEXT_GRAPH: b"my own too"})
    make(converter=never).download(Task.CLIP, CHINESE)
    assert tree(folder) == {GRAPH: b"my own", TEXT_GRAPH: b"my own too"}
    shutil.rmtree(folder)
    make().download(Task.CLIP, CHINESE)
    hub.requests.clear()
    for path in SMALL:
        (folder / path).unlink()
    make(converter=never).download(Task.CLIP, CHINESE)
    assert tree(folder) == MADE
    assert hub.requests == []


# --- both towers are of one checkpoint -------------------------------------------------------------------------


def converted(make: Make, path: Path, *, half: bool = False) -> dict[str, bytes]:
    """Convert a person's own checkpoint, as the command does, and return what the folder has then."""
    downloader = make()
    with downloader.alone(Task.CLIP, CHINESE):
        downloader.conversion(Task.CLIP, CHINESE).bring(lambda _: own(path), half=half)
    return made_of(path.read_bytes(), half=half)


def lose(folder: Path) -> None:
    (folder / TEXT_GRAPH).unlink()


def damage(folder: Path) -> None:
    (folder / TEXT_GRAPH).write_bytes(b"damaged")


def mend(downloader: Downloader, folder: Path) -> None:
    """Do as the server does for a tower that is not there, or does not load."""
    (downloader.replace if (folder / TEXT_GRAPH).exists() else downloader.fetch)(CHINESE_TEXTUAL)


Harm = Callable[[Path], None]
harmed = pytest.mark.parametrize("harm", [lose, damage])


@harmed
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_tower_is_made_again_as_the_other_was(
    make: Make, hub: TestHub, folder: Path, own_file: Path, tmp_path: Path, half: bool, harm: Harm
) -> None:
    made = converted(make, own_file, half=half)
    put(tmp_path / "kept", {CHECKPOINT: checkpoint(3)})
    harm(folder)
    mend(make(checkpoints=tmp_path / "kept"), folder)
    assert {path: (folder / path).read_bytes() for path in made} == made
    assert hub.requests == []


@harmed
@pytest.mark.parametrize("state", ["gone", "another", "no checkpoint"])
def test_where_its_checkpoint_is_gone_no_other_is_taken(
    make: Make, hub: TestHub, folder: Path, own_file: Path, tmp_path: Path, harm: Harm, state: str
) -> None:
    converted(make, own_file)
    put(tmp_path / "kept", {CHECKPOINT: checkpoint()})
    harm(folder)
    before = tree(folder)
    own_file.unlink()
    if state != "gone":
        own_file.write_bytes(checkpoint(3) if state == "another" else b"no weights")
    with pytest.raises(ModelUnavailableError) as caught:
        mend(make(checkpoints=tmp_path / "kept"), folder)
    causes = {
        "gone": "cannot be read (No such file or directory)",
        "another": f"is not the checkpoint that {folder} was made from",
        "no checkpoint": f"is not a checkpoint of {CHINESE} (no weights)",
    }
    assert caught.value.detail.startswith(f"Model '{CHINESE}' was made from {own_file.as_uri()}, and nothing else fits")
    assert f"{own_file} {causes[state]}" in caught.value.detail
    assert f"{tmp_path}/kept/{CHECKPOINT} is not the checkpoint" in caught.value.detail
    assert "`immich-ml-compat models remove" in caught.value.detail
    assert "\n" not in caught.value.detail
    assert tree(folder) == before
    assert hub.requests == []


@harmed
def test_its_checkpoint_may_have_moved(
    make: Make, hub: TestHub, folder: Path, own_file: Path, tmp_path: Path, harm: Harm
) -> None:
    made = converted(make, own_file)
    put(tmp_path / "kept", {CHECKPOINT: own_file.read_bytes()})
    own_file.unlink()
    harm(folder)
    mend(make(checkpoints=tmp_path / "kept"), folder)
    assert {path: (folder / path).read_bytes() for path in made} == made
    assert hub.requests == []


@harmed
@pytest.mark.parametrize(("first", "lists"), [("huggingface", "/api/models/"), ("modelscope", "/api/v1/models/")])
def test_all_hubs_have_the_same_checkpoint(
    make: Make, hub: TestHub, folder: Path, harm: Harm, first: str, lists: str
) -> None:
    make(first=first).fetch(CHINESE_VISUAL)
    hub.fault(lists, times=99, status=404)
    harm(folder)
    mend(make(first=first), folder)
    assert {path: (folder / path).read_bytes() for path in MADE} == MADE


@harmed
@pytest.mark.parametrize("seed", [0, 2], ids=["the same", "another"])
def test_a_hubs_model_is_mended_from_the_disk_where_that_makes_the_same(
    make: Make, hub: TestHub, folder: Path, tmp_path: Path, harm: Harm, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    make().fetch(CHINESE_VISUAL)
    hub.requests.clear()
    put(tmp_path / "kept", {CHECKPOINT: checkpoint(seed)})
    harm(folder)
    mend(make(checkpoints=tmp_path / "kept"), folder)
    assert {path: (folder / path).read_bytes() for path in MADE} == MADE
    assert bool(hub.requests) == (seed != 0)
    told = f"{CHECKPOINT} is not the checkpoint that {folder} was made from. Downloading instead"
    assert (told in caplog.text) == (seed != 0)


@harmed
def test_towers_of_two_checkpoints_become_those_of_the_persons_own(
    make: Make, hub: TestHub, folder: Path, own_file: Path, harm: Harm
) -> None:
    made = converted(make, own_file)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / TEXT_GRAPH).write_bytes(MADE[TEXT_GRAPH])
    sums = {"sha256": sha256(MADE[TEXT_GRAPH]).hexdigest(), "address": f"{hub.url}/{HUGGINGFACE}/resolve/{COMMIT}/x"}
    manifest["files"][TEXT_GRAPH] |= sums
    (folder / MANIFEST).write_text(json.dumps(manifest))
    harm(folder)
    mend(make(), folder)
    assert {path: (folder / path).read_bytes() for path in made} == made


def test_a_tower_beside_one_of_unknown_origin_is_told(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, {GRAPH: b"my own"})
    make().fetch(CHINESE_TEXTUAL)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"clip/{CHINESE}: what {folder}/{GRAPH} was made from is not known: text finds photos only")


def test_a_tower_that_was_put_over_one_of_known_origin_is_told(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make().fetch(CHINESE_TEXTUAL)
    put(folder, {GRAPH: b"my own", TEXT_GRAPH: b"damaged"})
    make().replace(CHINESE_TEXTUAL)
    assert f"what {folder}/{GRAPH} was made from is not known" in caplog.text


def test_nothing_is_told_of_towers_of_one_checkpoint(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, {GRAPH: MADE[GRAPH]})
    make().fetch(CHINESE_TEXTUAL)
    lose(folder)
    make().fetch(CHINESE_TEXTUAL)
    assert caplog.text == ""


def test_only_what_is_in_half_says_so(make: Make, folder: Path, own_file: Path) -> None:
    converted(make, own_file)
    assert not any("half" in entry for entry in json.loads((folder / MANIFEST).read_text())["files"].values())
    shutil.rmtree(folder)
    converted(make, own_file, half=True)
    assert all(entry["half"] for entry in json.loads((folder / MANIFEST).read_text())["files"].values())


# --- the disk --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_said_before_the_download(
    make: Make, store: ModelStore, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=350_000))
    line = failure(make())
    assert f"{store.folder} is full" in line
    assert re.search(r"0\.4 MB needed, 0\.[34] MB free\)\. Free some space", line)
    assert hub.downloads() == []
    assert not (store.folder / ".partial/clip" / CHINESE).exists()


def test_a_disk_that_fills_up_meanwhile(make: Make, store: ModelStore) -> None:
    def fill(_: Path, name: str, folder: Path, **__: Any) -> None:
        put(folder, {GRAPH: b"half"})
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / GRAPH))

    assert f"{store.folder} is full (No space left on device)" in failure(make(converter=fill))
    assert not (store.folder / ".partial/clip" / CHINESE).exists()
    assert not (store.folder / "clip").exists()


def test_a_cache_folder_that_cannot_be_written_to(
    make: Make, store: ModelStore, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert f"{store.folder} cannot be written to (Read-only file system). Mount it writable" in failure(make())
    assert hub.requests == []


# --- memory ----------------------------------------------------------------------------------------------------


def test_too_little_memory_is_said_and_remembered(make: Make, store: ModelStore, hub: TestHub) -> None:
    tries = []

    def run_out(*_: object, **__: object) -> None:
        tries.append(1)
        raise MemoryError

    downloader = make(converter=run_out, pause_s=600.0)
    lines = [failure(downloader), failure(downloader)]
    assert "too little memory to convert the checkpoint" in lines[0]
    assert lines == lines[:1] * 2
    assert tries == [1], "another hub's checkpoint needs as much"
    assert not (store.folder / "clip").exists()
    assert not list(store.folder.rglob("made"))
    hub.requests.clear()
    make().fetch(CHINESE_VISUAL)
    assert hub.downloads() == [], "the checkpoint is as good as before"


# --- CLIP_DOWNLOAD_ROOT ----------------------------------------------------------------------------------------


def test_a_checkpoint_on_the_disk_is_not_downloaded(
    make: Make, hub: TestHub, folder: Path, own_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make(checkpoints=own_file.parent).fetch(CHINESE_VISUAL)
    assert tree(folder) == made_of(checkpoint(2))
    assert hub.requests == []
    assert own_file.read_bytes() == checkpoint(2)
    assert f"Converting {own_file.as_uri()} to clip/{CHINESE}" in caplog.text
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert {file.address for file in recorded.files.values()} == {own_file.as_uri()}


def test_a_damaged_tower_is_made_from_it_too(make: Make, hub: TestHub, folder: Path, own_file: Path) -> None:
    make(checkpoints=own_file.parent).fetch(CHINESE_VISUAL)
    (folder / GRAPH).write_bytes(b"damaged")
    make(checkpoints=own_file.parent).replace(CHINESE_VISUAL)
    assert (folder / GRAPH).read_bytes() == made_of(checkpoint(2))[GRAPH]
    assert hub.requests == []


def test_one_that_cannot_be_used_is_told_and_left(
    make: Make, folder: Path, own_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_file.chmod(0o644)
    own_file.write_bytes(b"no weights")
    make(checkpoints=own_file.parent).fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert own_file.read_bytes() == b"no weights"
    assert re.search(rf"{own_file} is not a checkpoint .*Downloading instead", caplog.text)


def test_one_that_cannot_be_read_is_told(
    make: Make, folder: Path, own_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_file.unlink()
    own_file.mkdir()
    make(checkpoints=own_file.parent).fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert f"{own_file} cannot be read (Is a directory). Downloading instead" in caplog.text


def test_a_pipe_is_not_waited_for(make: Make, folder: Path, own_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_file.unlink()
    with pipe(own_file, b"no weights"):
        make(checkpoints=own_file.parent).fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert f"{own_file} cannot be read (Not a regular file). Downloading instead" in caplog.text


def test_a_folder_without_it_is_no_matter(
    make: Make, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(checkpoints=tmp_path / "nowhere").fetch(CHINESE_VISUAL)
    assert tree(folder) == MADE
    assert "nowhere" not in caplog.text


# --- in half, and verified -------------------------------------------------------------------------------------


def test_half_precision_is_passed_on(make: Make, folder: Path, own_file: Path) -> None:
    downloader = make()
    with downloader.alone(Task.CLIP, CHINESE):
        downloader.conversion(Task.CLIP, CHINESE).bring(lambda _: own(own_file), half=True)
    assert tree(folder) == made_of(checkpoint(2), half=True)
    make(converter=never).download(Task.CLIP, CHINESE)


def test_verifying_needs_no_hub(make: Make, store: ModelStore, hub: TestHub, folder: Path) -> None:
    make().fetch(CHINESE_VISUAL)
    hub.requests.clear()
    (folder / GRAPH).write_bytes(b"damaged")
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / TEXT_GRAPH).unlink()
    states = {finding.path: finding.state for finding in check(store, make(), Task.CLIP, CHINESE)}
    assert states == {
        **dict.fromkeys(MADE, State.RIGHT),
        GRAPH: State.WRONG,
        TEXT_GRAPH: State.MISSING,
        "notes.txt": State.OWN,
    }
    assert hub.requests == []


def test_nothing_is_known_of_a_hand_copied_folder(make: Make, store: ModelStore, hub: TestHub, folder: Path) -> None:
    put(folder, MADE)
    assert {finding.state for finding in check(store, make(), Task.CLIP, CHINESE)} == {State.OWN}
    assert hub.requests == []
