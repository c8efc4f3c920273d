"""A model that only the test's hub has, and downloaders for it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.downloads import Downloader
from immich_ml_compat.downloads.failures import Patience
from immich_ml_compat.errors import ModelUnavailableError
from immich_ml_compat.store import ModelKey

NAME = "ViT-B-32__openai"
REPOSITORY = f"immich-app/{NAME}"
VISUAL = ModelKey(Task.CLIP, NAME, ModelType.VISUAL)
TEXTUAL = ModelKey(Task.CLIP, NAME, ModelType.TEXTUAL)
OCR = "KOREAN__PP-OCRv5_mobile"
OCR_KEY = ModelKey(Task.OCR, OCR, ModelType.RECOGNITION)
GRAPH = "visual/model.onnx"

AT_ONCE = Patience(first_wait_s=0.0)

Make = Callable[..., Downloader]
"""Makes downloaders as different processes would have them."""


def contents() -> dict[str, bytes]:
    """A repository's files, none of which is a real one."""
    noise = random.Random(0)
    return {
        "config.json": b'{"embed_dim": 512}',
        "visual/model.onnx": noise.randbytes(200_000),
        "visual/preprocess_cfg.json": b"{}",
        "textual/model.onnx": noise.randbytes(100_000),
        "textual/tokenizer.json": noise.randbytes(50_000).hex().encode(),
        "textual/tokenizer_config.json": b'{"pad_token": "!"}',
        "visual/fp16.armnn": b"for other hardware",
        "textual/rk3588/model.rknn": b"for other hardware",
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Return the visible files under a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def published(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.endswith(("armnn", "rknn"))}


def failure(downloader: Downloader, key: ModelKey = VISUAL) -> str:
    """Fetch what cannot be had, and return the error's one line."""
    with pytest.raises(ModelUnavailableError) as caught:
        downloader.fetch(key)
    assert "\n" not in caught.value.detail
    assert f"Model '{key.name}'" in caught.value.detail
    return caught.value.detail
