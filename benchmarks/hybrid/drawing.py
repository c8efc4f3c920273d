"""The photos, drawn, and their text, read by a running server of this project."""

import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .labels import Photo

_FONTS = [
    Path(f"/usr/share/fonts/opentype/noto/Noto{f}CJK-{w}.ttc") for f in ("Sans", "Serif") for w in ("Regular", "Bold")
]
_SIMPLIFIED_CHINESE = 2  # of the faces in those files
_SIZE = (1280, 960)
_OCR = {
    "detection": {"modelName": "PP-OCRv6_small", "options": {"minScore": 0.5, "maxResolution": 736}},
    "recognition": {"modelName": "PP-OCRv6_small", "options": {"minScore": 0.8}},
}


def draw(photo: Photo, seed: int) -> bytes:
    """Draw a JPEG: blurred shapes with the grain of a sensor and, where it has text, a slightly turned sign."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", _SIZE, tuple(random.integers(60, 200, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(60):
        left, top, width, height = random.uniform((-100, -100, 20, 20), (*_SIZE, 400, 400)).tolist()
        shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
        shape((left, top, left + width, top + height), fill=tuple(random.integers(20, 240, 3).tolist()))
    image = image.filter(ImageFilter.GaussianBlur(4))
    if photo.lines:
        sign = _sign(photo.lines, random)
        corner = random.integers(0, (_SIZE[0] - sign.width, _SIZE[1] - sign.height)).tolist()
        image.paste(sign, tuple(corner), sign)
    grain = random.normal(0, 6, (_SIZE[1], _SIZE[0], 1))
    file = BytesIO()
    Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


def _sign(lines: tuple[str, ...], random: np.random.Generator) -> Image.Image:
    font = ImageFont.truetype(_FONTS[random.integers(len(_FONTS))], int(random.integers(30, 64)), _SIMPLIFIED_CHINESE)
    boxes = [font.getbbox(line) for line in lines]
    width, pitch = max(box[2] for box in boxes), 1.6 * font.size
    size = (round(width + 60), round(pitch * len(lines) + 40))
    dark, light = random.integers(0, 70, 3).tolist(), random.integers(190, 256, 3).tolist()
    paper, ink = (light, dark) if random.random() < 0.6 else (dark, light)
    sign = Image.new("RGBA", size, (*paper, 255))
    pen = ImageDraw.Draw(sign)
    for i, line in enumerate(lines):
        pen.text((30, 20 + i * pitch), line, tuple(ink), font)
    return sign.rotate(random.uniform(-4, 4), Image.Resampling.BICUBIC, expand=True)


def read(photos: list[Photo], server: str, cache: Path) -> list[list[str]]:
    """Return the lines that the server's OCR finds in each photo; kept in a JSON file for the next run."""
    known: dict[str, list[str]] = json.loads(cache.read_text("utf-8")) if cache.exists() else {}

    def lines(item: tuple[int, Photo]) -> list[str]:
        seed, photo = item
        key = "|".join((photo.name, *photo.lines))
        if key not in known:
            entries, image = {"entries": json.dumps({"ocr": _OCR})}, {"image": draw(photo, seed)}
            answer = httpx.post(f"{server}/predict", data=entries, files=image, timeout=300).raise_for_status()
            known[key] = answer.json()["ocr"]["text"]
        return known[key]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lines, enumerate(photos)))
    cache.write_text(json.dumps(known, ensure_ascii=False), "utf-8")
    return found
