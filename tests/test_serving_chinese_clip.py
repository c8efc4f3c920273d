"""An unmodified Immich and Chinese-CLIP: from the official checkpoint on a hub to the answer, in real processes."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from immich_ml_compat.catalog import CHINESE_CLIP_IMMICH_NAMES
from tests.chinese_clip import NAMES, original, save_checkpoint
from tests.downloading import tree
from tests.hub import TestHub
from tests.oracles import chinese_clip
from tests.server import Server, running_server

REPOSITORIES = {
    "cn-clip_RN50": ("chinese-clip-rn50", "clip_cn_rn50.pt"),
    "cn-clip_ViT-B-16": ("chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    "cn-clip_ViT-L-14": ("chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    "cn-clip_ViT-L-14-336": ("chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
    "cn-clip_ViT-H-14": ("chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
}
NAME = "cn-clip_ViT-B-16"
FILES = ["config.json", "textual/model.onnx", "textual/tokenizer.json", "textual/tokenizer_config.json",
         "visual/model.onnx", "visual/preprocess_cfg.json"]  # fmt: skip
QUERY = "雪地里奔跑的狗"


def photo() -> Image.Image:
    return Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB")


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ask(server: Server, name: str) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Ask for the photo's and the query's embeddings, as Immich does."""
    visual = server.predict({"clip": {"visual": {"modelName": name, "options": {}}}}, image=encoded(photo()))
    textual = {"clip": {"textual": {"modelName": name, "options": {"language": "zh-CN"}}}}
    answers = [visual, server.predict(textual, text=QUERY)]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    return [np.array(json.loads(answer.json()["clip"]), np.float32) for answer in answers]


def expected(model: Any, size: int) -> list[Any]:
    package = chinese_clip()
    image = model.encode_image(package.image_transform(size)(photo())[None])
    text = model.encode_text(package.tokenize([QUERY]))
    return [(features / features.norm(dim=-1, keepdim=True)).numpy()[0] for features in (image, text)]


@pytest.mark.parametrize("name", NAMES)
def test_immich_asks_for_its_own_name_and_gets_chinese_clip(name: str, hub: TestHub, tmp_path: Path) -> None:
    model = original(name)
    repository, file = REPOSITORIES[name]
    save_checkpoint(model, tmp_path / file)
    hub.repositories[f"OFA-Sys/{repository}"] = {file: (tmp_path / file).read_bytes(), "README.md": b"# it"}
    environment = {"HF_ENDPOINT": hub.url, "MACHINE_LEARNING_CLIP_MODEL": name}
    with running_server(tmp_path / "cache", tmp_path, environment) as server:
        found = ask(server, CHINESE_CLIP_IMMICH_NAMES[name])
        again = ask(server, name)
    for embedding, other, reference in zip(found, again, expected(model, 336 if "336" in name else 224), strict=True):
        assert embedding @ reference >= 0.99999
        assert np.array_equal(embedding, other)
    assert sorted(tree(tmp_path / "cache/clip" / name)) == FILES
    assert len(hub.downloads()) == 1, "the checkpoint, once"
    assert not (tmp_path / "cache/.partial/clip" / name).exists()


def test_modelscope_has_it_as_well(hub: TestHub, tmp_path: Path) -> None:
    model = original(NAME)
    save_checkpoint(model, tmp_path / "checkpoint.pt")
    path = "AI-ModelScope/chinese-clip-vit-base-patch16/resolve/master/clip_cn_vit-b-16.pt"
    hub.modelscope[path] = (tmp_path / "checkpoint.pt").read_bytes()
    environment = {
        "MODELSCOPE_DOMAIN": hub.url,
        "MACHINE_LEARNING_MODEL_SOURCE": "modelscope",
        "CLIP_MODEL": "ViT-B-16",
    }
    with running_server(tmp_path / "cache", tmp_path, environment) as server:
        found = ask(server, "ViT-B-16__openai")
    assert min(left @ right for left, right in zip(found, expected(model, 224), strict=True)) >= 0.99999


def test_the_parent_stacks_checkpoint_is_used_and_kept(tmp_path: Path) -> None:
    model = original(NAME)
    kept = tmp_path / "kept/clip_cn_vit-b-16.pt"
    kept.parent.mkdir()
    save_checkpoint(model, kept)
    content = kept.read_bytes()
    environment = {"CLIP_MODEL": "ViT-B-16", "CLIP_DOWNLOAD_ROOT": str(kept.parent)}  # no hub: it is switched off
    with running_server(tmp_path / "cache", tmp_path, environment) as server:
        found = ask(server, "ViT-B-16__openai")
    assert min(left @ right for left, right in zip(found, expected(model, 224), strict=True)) >= 0.99999
    assert kept.read_bytes() == content


class _Hostile:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


def test_a_hostile_checkpoint_runs_nothing(hub: TestHub, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hostile = pickle.dumps({"state_dict": _Hostile(f"touch {ran}")}, protocol=2)
    hub.repositories["OFA-Sys/chinese-clip-vit-base-patch16"] = {"clip_cn_vit-b-16.pt": hostile}
    environment = {"HF_ENDPOINT": hub.url, "MODELSCOPE_DOMAIN": hub.url}
    with running_server(tmp_path / "cache", tmp_path, environment) as server:
        answer = server.predict({"clip": {"textual": {"modelName": NAME}}}, text=QUERY)
    assert answer.status_code >= 500
    assert f"Model '{NAME}' is not on this server" in answer.json()["detail"]
    assert "system" in answer.json()["detail"]
    assert not ran.exists()
    pickle.loads(hostile)
    assert ran.exists(), "it is a hostile one"


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_convert_and_predict_on_the_command_line(half: bool, tmp_path: Path) -> None:
    model = original(NAME)
    save_checkpoint(model, tmp_path / "mine.pt")
    environment = os.environ | {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache")}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "immich_ml_compat", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    run("models", "convert", "cn-clip", "ViT-B-16", "--from", str(tmp_path / "mine.pt"), *(["--fp16"] if half else []))
    answer = json.loads(run("predict", "--text", QUERY, "--clip", NAME, "--format", "json"))
    embedding = answer["clip"] if isinstance(answer["clip"], list) else json.loads(answer["clip"])
    assert np.array(embedding) @ expected(model, 224)[1] >= (0.999 if half else 0.99999)
    assert "own checkpoint" in run("models", "list")
    assert run("models", "verify", NAME).count(": ok") == len(FILES)
