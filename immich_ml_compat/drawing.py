"""Painting an answer on its photo: text in its boxes, faces with their scores."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

TEXT_COLOUR = (0, 110, 255)
FACE_COLOUR = (255, 80, 0)

# Where systems keep a font with Chinese characters; Pillow's own has Latin letters alone.
_FONT_PLACES = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "C:/Windows/Fonts/msyh.ttc",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(image: Image.Image, body: dict[str, Any], font: Path | None = None) -> Image.Image:
    """Return a copy of an RGB image with the answer's lines of text and faces on it."""
    painted = image.copy()
    canvas = ImageDraw.Draw(painted)
    ocr = body.get("ocr", {"box": [], "text": []})
    for index, text in enumerate(ocr["text"]):
        box = ocr["box"][8 * index : 8 * index + 8]
        corners = [(x * image.width, y * image.height) for x, y in zip(box[::2], box[1::2], strict=True)]
        _draw_text(canvas, corners, f"{index + 1} {text}", font)
    for face in body.get("facial-recognition", []):
        _draw_face(canvas, face, font)
    return painted


def _draw_text(canvas: ImageDraw.ImageDraw, corners: list[tuple[float, float]], label: str, font: Path | None) -> None:
    canvas.polygon(corners, outline=TEXT_COLOUR, width=2)
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    height = min(max(y for _, y in corners) - top, max(x for x, _ in corners) - left)
    _label(canvas, left, top, label, TEXT_COLOUR, height * 0.5, font)


def _draw_face(canvas: ImageDraw.ImageDraw, face: dict[str, Any], font: Path | None) -> None:
    box = face["boundingBox"]
    left, right = sorted((box["x1"], box["x2"]))
    top, bottom = sorted((box["y1"], box["y2"]))
    canvas.rectangle((left, top, right, bottom), outline=FACE_COLOUR, width=2)
    _label(canvas, left, top, f"{face['score']:.2f}", FACE_COLOUR, (right - left) * 0.2, font)


def _label(
    canvas: ImageDraw.ImageDraw,
    left: float,
    top: float,
    label: str,
    colour: tuple[int, int, int],
    height: float,
    font: Path | None,
) -> None:
    """Write a label on a plate of its own above a point, or below the picture's upper edge."""
    face = _font(font, max(12, min(48, int(height))))
    x0, y0, x1, y1 = canvas.textbbox((0, 0), label, font=face)
    y = max(0.0, top - (y1 - y0) - 4)
    canvas.rectangle((left, y, left + x1 - x0 + 4, y + y1 - y0 + 4), fill=colour)
    canvas.text((left + 2 - x0, y + 2 - y0), label, fill="white", font=face)


def _font(path: Path | None, size: int) -> Font:
    found = path or next((Path(place) for place in _FONT_PLACES if Path(place).is_file()), None)
    return ImageFont.truetype(found, size) if found else ImageFont.load_default(size)
