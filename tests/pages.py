"""What the tests of OCR and faces share: pictures of text, distances between texts, a session without a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from immich_ml_compat.engine import Array, OneByOne, TensorInfo

from .oracles import missing

FONT = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
_SIMPLIFIED_CHINESE = 2  # of the faces in that file

ENGLISH = (
    "The old lighthouse keeper climbed the stairs",
    "every evening before the sun went down",
    "and lit the great lamp for the ships at sea",
    "Far below him the waves broke on the rocks",
    "while gulls circled slowly over the harbour",
    "Nobody in the village could remember a night",
    "when that warm yellow light had not been there",
)
CHINESE = (
    "老人每天傍晚都要登上灯塔",
    "在太阳落山之前点亮那盏大灯",
    "为远处海面上的船只指引方向",
    "海浪在他脚下的岩石上散开",
    "几只海鸥慢慢地飞过港口上空",
    "村里没有人记得哪一个夜晚",
    "看不见这一束温暖的黄色灯光",
)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Open a font with Latin and Chinese letters."""
    if not FONT.is_file():
        missing(str(FONT))
    return ImageFont.truetype(FONT, size, index=_SIMPLIFIED_CHINESE)


def page(size: tuple[int, int], lines: Iterable[tuple[tuple[int, int], str]], *, text_size: int = 28) -> Image.Image:
    """Draw lines of text, each with its top left corner, black on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for corner, text in lines:
        draw.text(corner, text, "black", font(text_size))
    return image


def column(texts: Sequence[str], left: int = 40, top: int = 40, pitch: int = 52) -> list[tuple[tuple[int, int], str]]:
    """Place lines of text below each other."""
    return [((left, top + pitch * i), text) for i, text in enumerate(texts)]


def vertical_column(text: str, left: int, top: int, pitch: int = 36) -> list[tuple[tuple[int, int], str]]:
    """Place the characters of a text below each other, as vertical writing does."""
    return [((left, top + pitch * i), character) for i, character in enumerate(text)]


def two_columns(texts: Sequence[str], right: int) -> list[tuple[tuple[int, int], str]]:
    """Place lines of text in two columns, the first half of them on the left."""
    half = len(texts) // 2
    return [*column(texts[:half], pitch=44), *column(texts[half:], left=right, pitch=44)]


def tilted(image: Image.Image, degrees: float) -> Image.Image:
    """Turn a page counter-clockwise, on white."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="white")


def line_of(text: str) -> NDArray[np.uint8]:
    """Draw one line of text as the recogniser takes it: BGR uint8 [48, W, 3]."""
    width = int(font(32).getlength(text)) + 12
    return np.asarray(page((width, 48), [((6, 0), text)], text_size=32))


def encoded(image: Image.Image) -> bytes:
    """Write an image as PNG."""
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def edit_distance(a: str, b: str) -> int:
    """Return the least number of characters to insert, delete or replace between two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@dataclass
class FakeSession(OneByOne):
    """A session that answers with what a function makes of its first input."""

    answer: Callable[[Array], list[Array]]
    input_shape: tuple[int | None, ...] = (None, 3, None, None)
    output_shapes: Sequence[tuple[int | None, ...]] = ((None, None, None),)
    metadata: Mapping[str, str] = field(default_factory=dict)
    execution_provider: str = "fake"
    runs: list[Array] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    """How many items each `run_many` was told to expect."""

    spare_threads: int = 1

    @property
    def inputs(self) -> list[TensorInfo]:
        return [TensorInfo("x", np.dtype(np.float32), self.input_shape)]

    @property
    def outputs(self) -> list[TensorInfo]:
        return [TensorInfo(str(i), np.dtype(np.float32), shape) for i, shape in enumerate(self.output_shapes)]

    def run(self, inputs: Mapping[str, Any]) -> list[Array]:
        self.runs.append(inputs["x"])
        return self.answer(inputs["x"])

    def run_many(self, items: Iterable[Mapping[str, Array]], expected: int = 1) -> Iterator[list[Array]]:
        self.expected.append(expected)
        return super().run_many(items)
