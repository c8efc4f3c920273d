"""A checkpoint that only the test's hub has, and a converter that makes files of its bytes."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Unpack

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.chinese_clip.checkpoint import CheckpointError
from immich_ml_compat.chinese_clip.configuration import small_files
from immich_ml_compat.downloads.converting import Options
from immich_ml_compat.store import ModelKey

CHINESE = "cn-clip_ViT-B-16"
CHECKPOINT = "clip_cn_vit-b-16.pt"
HUGGINGFACE = "OFA-Sys/chinese-clip-vit-base-patch16"
MODELSCOPE = "AI-ModelScope/chinese-clip-vit-base-patch16"
CHINESE_VISUAL = ModelKey(Task.CLIP, CHINESE, ModelType.VISUAL)
CHINESE_TEXTUAL = ModelKey(Task.CLIP, CHINESE, ModelType.TEXTUAL)
WEIGHTS = "visual/model.onnx.data"

SMALL = small_files(CHINESE)


def checkpoint(seed: int = 0) -> bytes:
    return b"CN" + random.Random(seed).randbytes(200_000)


def made_of(content: bytes, *, half: bool = False) -> dict[str, bytes]:
    """Return the files that are made of a checkpoint."""
    step = 2 if half else 1
    graphs = {"visual/model.onnx": content[:50_000:step], "textual/model.onnx": content[50_000:100_000:step]}
    return SMALL | graphs | {WEIGHTS: content[100_000::step]}


def convert(checkpoint: Path, name: str, folder: Path, **options: Unpack[Options]) -> None:
    """Do what the real converter promises, with other files."""
    assert list(folder.iterdir()) == []
    content = checkpoint.read_bytes()
    if not content.startswith(b"CN"):
        raise CheckpointError(f"{checkpoint} is not a checkpoint of {name} (no weights). Use the official file.")
    files = made_of(content, half=options["half"])
    options["begin"](sum(len(made) for file, made in files.items() if file not in SMALL))
    for file, made in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(made)
        if file not in SMALL:
            options["progress"](len(made))


def convert_and_die(checkpoint: Path, name: str, folder: Path, **options: Any) -> None:
    """End as in a power cut, with all but the last file there and that one half."""
    convert(checkpoint, name, folder, **options)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def pipe(path: Path, content: bytes) -> Iterator[None]:
    """Have a named pipe; who opens it gets that content, where a real one would let them wait."""

    def write() -> None:
        with suppress(BrokenPipeError), path.open("wb") as end:
            end.write(content)

    os.mkfifo(path)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        while writer.is_alive():  # nobody opened it
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            writer.join(0.01)


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing was to be converted")
