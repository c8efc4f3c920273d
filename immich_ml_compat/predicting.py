"""The `predict` command: one photo or text in, the answer out."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from .catalog import DEFAULT_CLIP
from .drawing import draw
from .images import decode
from .messages import PredictRequest
from .service import Service
from .settings import ConfigurationError, Settings

_EMBEDDING_SHOWN = 4


def predict(settings: Settings, options: argparse.Namespace) -> int:
    """Print the answer to one request and return the exit code."""
    entries = _entries(options, settings.clip_model or DEFAULT_CLIP)
    if options.draw and options.image is None:
        raise ConfigurationError("--draw needs a photo to draw on")
    image = _read(options) if options.image else None
    answer = Service(settings).answer(PredictRequest(json.dumps(entries), image, options.text))
    body = json.loads(answer.body)
    if answer.status != 200:
        print(f"{options.image or 'text'}: {body['detail']}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(answer.body.decode())
    else:
        print("\n".join(_table(body)))
    if options.draw and image is not None:
        try:
            draw(decode(image), body, options.font).save(options.draw)
        except (OSError, ValueError) as error:
            font = f" --font {options.font}" if options.font else ""
            raise ConfigurationError(f"--draw {options.draw}{font}: {error}") from error
    return 0


def _read(options: argparse.Namespace) -> bytes:
    try:
        data: bytes = options.image.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{options.image}: cannot be read ({error.strerror})") from error
    return data


def _entries(options: argparse.Namespace, default_clip: str) -> dict[str, Any]:
    """The request that Immich would send for these options."""
    if options.text is not None:
        if options.clip is None or options.ocr or options.faces:
            raise ConfigurationError("--text is for smart search: give --clip, and neither --ocr nor --faces")
        return {"clip": {"textual": {"modelName": options.clip or default_clip}}}
    entries: dict[str, Any] = {}
    if options.clip is not None:
        entries["clip"] = {"visual": {"modelName": options.clip or default_clip}}
    if options.faces:
        entries["facial-recognition"] = _pair(options.faces)
    if options.ocr:
        entries["ocr"] = _pair(options.ocr)
        entries["ocr"]["recognition"]["options"] = {"minScore": 0.8}
    if not entries:
        raise ConfigurationError("nothing to do: give --ocr, --faces or --clip")
    return entries


def _pair(model: str) -> dict[str, Any]:
    return {"detection": {"modelName": model}, "recognition": {"modelName": model}}


def _table(body: dict[str, Any]) -> Iterator[str]:
    if "imageWidth" in body:
        yield f"image  {body['imageWidth']} x {body['imageHeight']}"
    if "clip" in body:
        embedding = json.loads(body["clip"])
        shown = ", ".join(f"{value:.4f}" for value in embedding[:_EMBEDDING_SHOWN])
        yield f"clip   {len(embedding)} dimensions: {shown}, …"
    for face in body.get("facial-recognition", []):
        box = face["boundingBox"]
        yield f"face   {face['score']:.3f}  {box['x1']:.0f},{box['y1']:.0f} – {box['x2']:.0f},{box['y2']:.0f}"
    ocr = body.get("ocr", {"text": [], "textScore": []})
    for text, score in zip(ocr["text"], ocr["textScore"], strict=True):
        yield f"text   {score:.3f}  {text}"
