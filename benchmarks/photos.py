"""The photos of a run: eight JPEG previews of 2160 × 1440 as Immich makes them, drawn by rules, the same each time.

Two dense documents, a page, a menu and a street with signs, a group photo (the one in the insightface package, scaled
up) and two scenes without text: about 150 lines of text and a handful of faces in all.

    python -m benchmarks.photos FOLDER        writes them to look at
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .models import packaged

SIZE = (2160, 1440)
QUALITY = 80  # of Immich's previews

_FONT = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")  # Debian's fonts-noto-cjk
_SIMPLIFIED_CHINESE = 2  # of the faces in that file

_ENGLISH = (
    "the keeper climbed the stairs every evening before sun went down and lit great lamp for ships at sea far below "
    "him waves broke on rocks while gulls circled slowly over harbour nobody in village could remember a night when "
    "that warm yellow light had not been there invoice total amount due within thirty days account number reference "
    "delivery address signature date 2026 1,250.00 48.90 items quantity price"
)
_CHINESE = (
    "老人每天傍晚都要登上灯塔在太阳落山之前点亮那盏大灯为远处海面上的船只指引方向海浪在他脚下的岩石上散开几只海鸥慢慢地飞过"
    "港口上空村里没有人记得哪一个夜晚看不见这一束温暖的黄色灯光电子发票编号日期金额合计收款单位地址咖啡早餐面包牛奶"
)


def photos() -> list[tuple[str, bytes]]:
    """Draw the photos: names and JPEG files."""
    return [(name, _jpeg(draw(np.random.default_rng(seed)))) for seed, (name, draw) in enumerate(_PHOTOS.items())]


def _jpeg(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


_WORDS = _ENGLISH.split()

Random = np.random.Generator


def _english_document(random: Random) -> Image.Image:
    return _text(_paper(random), (140, 60, 2100, 1400), 44, [english(random, 14) for _ in range(4 * 13)], columns=4)


def _chinese_document(random: Random) -> Image.Image:
    return _text(_paper(random), (140, 60, 2100, 1400), 44, [chinese(random, 7) for _ in range(4 * 13)], columns=4)


def _page(random: Random) -> Image.Image:
    lines = [english(random, 26) if i % 2 else chinese(random, 13) for i in range(14)]
    return _text(_paper(random), (420, 60, 1740, 1400), 60, lines)


def _menu(random: Random) -> Image.Image:
    board = Image.new("RGB", (900, 1100), (38, 46, 42))
    lines = [f"{chinese(random, 4)}  {random.integers(8, 80)}.00" for _ in range(15)]
    _text(board, (90, 70, 860, 1060), 42, lines, colour="#f0ecd8")
    scene = _landscape(random)
    scene.paste(board.rotate(2, Image.Resampling.BICUBIC), (620, 180))
    return scene


def _street(random: Random) -> Image.Image:
    street = _scene(random)
    draw = ImageDraw.Draw(street)
    for i in range(16):
        left, top = 80 + (i % 4) * 520, 120 + (i // 4) * 330
        draw.rectangle((left, top, left + 420, top + 110), fill=tuple(int(c) for c in random.integers(20, 110, 3)))
        text = chinese(random, 5) if i % 2 else english(random, 14)
        draw.text((left + 24, top + 22), text, "white", font(52))
    return street


def _group(random: Random) -> Image.Image:
    with Image.open(packaged("insightface", "data/images/t1.jpg")) as people:
        width, height = people.size
        scaled = people.convert("RGB").resize((round(width * SIZE[1] / height), SIZE[1]), Image.Resampling.BICUBIC)
    photo = _landscape(random)
    photo.paste(scaled, ((SIZE[0] - scaled.width) // 2, 0))
    return photo


def _landscape(random: Random) -> Image.Image:
    """Sky over hills: smooth, with the grain of a sensor."""
    width, height = SIZE
    x = np.arange(width)
    rows = np.arange(height)[:, None]
    image = np.empty((height, width, 3), np.float32)
    image[:] = np.linspace((120, 170, 230), (235, 225, 200), height, dtype=np.float32)[:, None]
    for distance in range(5):
        waves = sum(random.uniform(20, 90) * np.sin(x / random.uniform(120, 500) + random.uniform(0, 7)) for _ in "123")
        hill = rows > height * (0.35 + 0.13 * distance) + waves
        image[hill] = np.array((60, 110, 70)) * (1.3 - 0.2 * distance)
    return _photo(image, random, grain=3.0)


def _scene(random: Random) -> Image.Image:
    """Blurred shapes of many colours with fine detail over them."""
    image = Image.new("RGB", SIZE, (128, 120, 110))
    draw = ImageDraw.Draw(image)
    for _ in range(400):
        left, top = random.uniform(-100, SIZE[0]), random.uniform(-100, SIZE[1])
        box = (left, top, left + random.uniform(20, 320), top + random.uniform(20, 320))
        colour = tuple(int(c) for c in random.integers(20, 240, 3))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(3))
    return _photo(np.asarray(image, np.float32), random, grain=5.0)


def _photo(image: NDArray[np.float32], random: Random, grain: float) -> Image.Image:
    noise = random.normal(0, grain, (*image.shape[:2], 1)).astype(np.float32)
    return Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))


def _paper(random: Random) -> Image.Image:
    light = np.linspace(250, 226, SIZE[0], dtype=np.float32)[None, :, None]
    return _photo(np.broadcast_to(light, (SIZE[1], SIZE[0], 3)), random, grain=2.0)


def _text(
    image: Image.Image,
    box: tuple[int, int, int, int],
    size: int,
    lines: list[str],
    *,
    columns: int = 1,
    colour: str = "#202020",
) -> Image.Image:
    left, top, right, bottom = box
    draw = ImageDraw.Draw(image)
    rows = len(lines) // columns
    for i, line in enumerate(lines):
        corner = (left + i // rows * (right - left) // columns, top + i % rows * (bottom - top) // rows)
        draw.text(corner, line, colour, font(size))
    return image


def english(random: Random, letters: int) -> str:
    """Return words of about that many letters."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < letters:
        words.append(_WORDS[random.integers(len(_WORDS))])
    return " ".join(words)[:letters].strip().capitalize()


def chinese(random: Random, characters: int) -> str:
    """Return so many characters of running text."""
    start = int(random.integers(len(_CHINESE) - characters))
    return _CHINESE[start : start + characters]


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font with Latin and Chinese characters."""
    if not _FONT.is_file():
        raise FileNotFoundError(f"{_FONT} is not there: install Debian's fonts-noto-cjk")
    return ImageFont.truetype(_FONT, size, index=_SIMPLIFIED_CHINESE)


_PHOTOS: dict[str, Callable[[Random], Image.Image]] = {
    "english document": _english_document,
    "group": _group,
    "street": _street,
    "landscape": _landscape,
    "chinese document": _chinese_document,
    "scene": _scene,
    "menu": _menu,
    "page": _page,
}


def main() -> None:
    """Write the photos to a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in photos():
        (folder / f"{name}.jpg").write_bytes(data)
        print(f"{name}.jpg: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
