"""The HTTP face: the form is read in the event loop, everything else happens in a pool of threads."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, File, Form, Response
from fastapi.responses import PlainTextResponse
from PIL import Image
from starlette.formparsers import MultiPartParser

from .clip import ImageTower, TextTower
from .faces import FaceDetector, FaceRecognizer
from .ocr import LineRecognizer, TextDetector

MultiPartParser.spool_max_size = 1 << 26  # photos stay in memory

_KINDS: dict[tuple[str, str], Callable[[Path], Any]] = {
    ("clip", "visual"): ImageTower,
    ("clip", "textual"): TextTower,
    ("facial-recognition", "detection"): FaceDetector,
    ("facial-recognition", "recognition"): FaceRecognizer,
    ("ocr", "detection"): TextDetector,
    ("ocr", "recognition"): LineRecognizer,
}


class Models:
    """Models of a cache folder, each loaded once and kept."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._loaded: dict[tuple[str, str, str], Any] = {}
        self._lock = Lock()

    def loaded(self, task: str, kind: str, name: str) -> Any:
        """Return a model that is there, or None."""
        return self._loaded.get((task, kind, name))

    def load(self, task: str, kind: str, name: str) -> Any:
        """Return a model, loading it if nobody else has."""
        with self._lock:
            if (task, kind, name) not in self._loaded:
                self._loaded[task, kind, name] = _KINDS[task, kind](self._cache / task / name)
        return self._loaded[task, kind, name]


def create_app(cache: Path) -> FastAPI:
    """Build the application over a cache folder."""
    app = FastAPI()
    models = Models(cache)
    pool = ThreadPoolExecutor(os.cpu_count() or 4)

    async def run(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    async def step(task: str, kind: str, entry: dict[str, Any], *inputs: Any) -> Any:
        key = (task, kind, entry["modelName"])
        model = models.loaded(*key) or await run(models.load, *key)
        return await run(model, inputs[0], entry.get("options", {}), *inputs[1:])

    async def task_answer(task: str, types: dict[str, Any], payload: Image.Image | str) -> Any:
        if "recognition" not in types:
            (kind,) = types
            return await step(task, kind, types[kind], payload)
        found = await step(task, "detection", types["detection"], payload)
        return await step(task, "recognition", types["recognition"], payload, found)

    @app.get("/ping")
    def ping() -> PlainTextResponse:
        return PlainTextResponse("pong")

    @app.post("/predict")
    async def predict(
        entries: Annotated[str, Form()],
        image: Annotated[bytes | None, File()] = None,
        text: Annotated[str | None, Form()] = None,
    ) -> Response:
        payload = text if image is None else await run(decode, image)
        assert payload is not None
        tasks = orjson.loads(entries)
        answers = await asyncio.gather(*(task_answer(task, types, payload) for task, types in tasks.items()))
        answer: dict[str, Any] = dict(zip(tasks, answers, strict=True))
        if not isinstance(payload, str):
            answer |= {"imageHeight": payload.height, "imageWidth": payload.width}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


def decode(data: bytes) -> Image.Image:
    """Decode a whole photo to RGB."""
    image: Image.Image = Image.open(BytesIO(data))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
