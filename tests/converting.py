"""A checkpoint that only the test's hub has, and a converter that makes files of its bytes."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.chinese_clip.checkpoint import CheckpointError
from immich_ml_compat.store import ModelKey

CHINESE = "cn-clip_ViT-B-16"
CHECKPOINT = "clip_cn_vit-b-16.pt"
HUGGINGFACE = "OFA-Sys/chinese-clip-vit-base-patch16"
MODELSCOPE = "AI-ModelScope/chinese-clip-vit-base-patch16"
CHINESE_VISUAL = ModelKey(Task.CLIP, CHINESE, ModelType.VISUAL)
CHINESE_TEXTUAL = ModelKey(Task.CLIP, CHINESE, ModelType.TEXTUAL)
WEIGHTS = "visual/model.onnx.data"

_SMALL = ("config.json", "visual/preprocess_cfg.json", "textual/tokenizer.json", "textual/tokenizer_config.json")


def checkpoint(seed: int = 0) -> bytes:
    return b"CN" + random.Random(seed).randbytes(200_000)


def made_of(content: bytes, *, half: bool = False) -> dict[str, bytes]:
    """Return the files that are made of a checkpoint."""
    step = 2 if half else 1
    graphs = {"visual/model.onnx": content[:50_000:step], "textual/model.onnx": content[50_000:100_000:step]}
    return {path: path.encode() for path in _SMALL} | graphs | {WEIGHTS: content[100_000::step]}


def convert(
    checkpoint: Path,
    name: str,
    folder: Path,
    *,
    half: bool,
    begin: Callable[[int], None],
    progress: Callable[[int], None],
) -> None:
    """Do what the real converter promises, with other files."""
    assert list(folder.iterdir()) == []
    content = checkpoint.read_bytes()
    if not content.startswith(b"CN"):
        raise CheckpointError(f"{checkpoint} is not a checkpoint of {name} (no weights). Use the official file.")
    begin(sum(map(len, made_of(content, half=half).values())))
    for file, made in made_of(content, half=half).items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(made)
        progress(len(made))


def convert_and_die(checkpoint: Path, name: str, folder: Path, **options: Any) -> None:
    """End as in a power cut, with all but the last file there and that one half."""
    convert(checkpoint, name, folder, **options)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    os.kill(os.getpid(), signal.SIGKILL)


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing was to be converted")
