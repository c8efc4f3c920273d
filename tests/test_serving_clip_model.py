"""An unmodified Immich is answered by a model that it has no name for."""

import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from immich_ml_compat.names import ModelNames
from immich_ml_compat.serving import check_preload
from immich_ml_compat.settings import ClipPreload, ConfigurationError, Preload, Settings
from immich_ml_compat.store import ModelStore

from .model_folders import CLIP
from .server import Server, running_server

P = "MACHINE_LEARNING_"


def photo() -> bytes:
    buffer = BytesIO()
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def ask(server: Server, name: str, kind: str) -> tuple[int, Any]:
    """Send what Immich sends for a photo or a query; return the status, and the embedding or the detail."""
    options = {"options": {"language": "zh-CN"}} if kind == "textual" else {}
    entries = {"clip": {kind: {"modelName": name, **options}}}
    answer = server.predict(entries, **({"text": "海边"} if kind == "textual" else {"image": photo()}))
    body = answer.json()
    return answer.status_code, body["clip"] if answer.status_code == 200 else body["detail"]


@pytest.mark.parametrize(
    ("model", "variables", "source", "select"),
    [
        ("house", {f"{P}CLIP_MODEL": "house"}, None, ""),
        (
            "cn-clip_ViT-B-16",
            {f"{P}WORKERS": "2", "CLIP_MODEL": "ViT-B-16", "DEVICE": "cpu", "CLIP_DOWNLOAD_ROOT": "/nowhere"},
            [
                f"CLIP_MODEL=ViT-B-16 is understood as {P}CLIP_MODEL=cn-clip_ViT-B-16",
                f"DEVICE=cpu is understood as {P}DEVICE=cpu",
                f"CLIP_DOWNLOAD_ROOT=/nowhere is understood as {P}CLIP_DOWNLOAD_ROOT=/nowhere",
            ],
            "ViT-B-16__openai",
        ),
    ],
    ids=["a folder", "Chinese-CLIP"],
)
def test_every_clip_request_is_answered_by_one_model(
    cache: Path,
    server: Server,
    tmp_path: Path,
    model: str,
    variables: dict[str, str],
    source: list[str] | None,
    select: str,
) -> None:
    shutil.copytree(cache / "clip" / CLIP, tmp_path / "clip" / model)  # the name alone is another
    usual = {kind: ask(server, CLIP, kind) for kind in ("visual", "textual")}
    variables = variables | {
        f"{P}PRELOAD__CLIP__TEXTUAL": "ViT-B-16__openai",
        f"{P}MODEL_ALIASES": '{"ViT-L-14__openai": "ViT-L-14-336__openai"}',
    }
    with running_server(tmp_path, tmp_path, variables) as own:
        for name in ("ViT-B-16__openai", "ViT-B-32__openai", "immich-app/RN101::yfcc15m", model):
            for kind in ("visual", "textual"):
                assert ask(own, name, kind) == usual[kind], f"{name} is that model, whose folder alone is there"
        for name, size in (("ViT-H-14__laion2b-s32b-b79k", "1024"), ("nope", "an unknown number of")):
            status, detail = ask(own, name, "visual")
            assert status == 422
            assert f"'{name}' has {size} dimensions; {model}, which answers every CLIP request here" in detail
            assert f": select {select}" in detail
        status, detail = ask(own, "ViT-L-14__openai", "visual")
        assert status == 500
        assert detail.startswith("Model 'ViT-L-14-336__openai' is not on this server"), "the alias comes first"
        log = own.log.read_text()
    lines = [
        *(source or []),
        f"Substitution in force: clip requests for ViT-L-14__openai are answered by ViT-L-14-336__openai "
        f"({P}MODEL_ALIASES)",
        f"Substitution in force: all other clip requests, for whatever name of 512 dimensions, are answered by {model} "
        f"({P}CLIP_MODEL); select {select}",
    ]
    assert [log.count(line) for line in lines] == [1] * len(lines)
    assert len(re.findall("is understood as|Substitution in force", log)) == len(lines)
    assert f"clip/{model}/textual" in log, "it is what was preloaded"


def test_a_preload_that_the_model_cannot_answer_stops_the_start(tmp_path: Path) -> None:
    names = ModelNames(ModelStore(tmp_path), {}, "cn-clip_ViT-B-16")
    check_preload(Settings(preload=Preload(clip=ClipPreload(textual="RN101__openai,cn-clip_ViT-B-16"))), names)
    with pytest.raises(ConfigurationError) as caught:
        check_preload(Settings(preload=Preload(clip=ClipPreload(visual="ViT-L-14__openai"))), names)
    assert str(caught.value).startswith("MACHINE_LEARNING_PRELOAD: 'ViT-L-14__openai' has 768 dimensions; ")


def test_the_name_to_select_is_told_without_a_worker(tmp_path: Path) -> None:
    with running_server(tmp_path, tmp_path, {f"{P}CLIP_MODEL": "cn-clip_ViT-B-16"}) as server:
        status, detail = ask(server, "ViT-L-14__openai", "textual")
        log = server.log.read_text()
    assert (status, detail) == (
        422,
        "Invalid request format. 'ViT-L-14__openai' has 768 dimensions; cn-clip_ViT-B-16, which answers every CLIP "
        f"request here ({P}CLIP_MODEL), has 512: select ViT-B-16__openai in Immich.",
    )
    assert "Models run in" not in log
