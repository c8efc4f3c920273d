"""Whole pages through the service: the stock server's golden answers, orientation, layouts, every model."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings

from .model_folders import OCR
from .oracles import golden
from .pages import CHINESE, ENGLISH, column, edit_distance, encoded, page, tilted, two_columns, vertical_column

SMALL = (720, 260)
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass
class Page:
    """What was read on a page; the quads in pixels."""

    texts: list[str]
    text_scores: list[float]
    box_scores: list[float]
    quads: NDArray[np.float64]


class Reader:
    """Reads pages as Immich has them read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def answer(
        self,
        image: bytes | Image.Image,
        *,
        model: str = OCR,
        min_text_score: float = 0.5,
        orientation: bool | None = None,
    ) -> Answer:
        detection: dict[str, float | bool] = {"minScore": 0.5, "maxResolution": 736}
        if orientation is not None:
            detection["orientation"] = orientation
        entries = {
            "ocr": {
                "detection": {"modelName": model, "options": detection},
                "recognition": {"modelName": model, "options": {"minScore": min_text_score}},
            }
        }
        data = image if isinstance(image, bytes) else encoded(image)
        return self._service.answer(PredictRequest(json.dumps(entries), data))

    def read(
        self,
        image: bytes | Image.Image,
        *,
        model: str = OCR,
        min_text_score: float = 0.5,
        orientation: bool | None = None,
    ) -> Page:
        answer = self.answer(image, model=model, min_text_score=min_text_score, orientation=orientation)
        assert answer.status == 200, answer.body
        return parse(answer.body)


def parse(body: bytes) -> Page:
    answer = orjson.loads(body)
    ocr, size = answer["ocr"], (answer["imageWidth"], answer["imageHeight"])
    quads = np.array(ocr["box"]).reshape(-1, 4, 2) * size
    assert len(quads) == len(ocr["text"]) == len(ocr["boxScore"]) == len(ocr["textScore"])
    return Page(ocr["text"], ocr["textScore"], ocr["boxScore"], quads)


@pytest.fixture(scope="module")
def reader(cache: Path) -> Reader:
    return Reader(Service(Settings(cache_folder=cache)))


# ---------------------------------------------------------------- the stock server's answers


def test_golden_answers_of_the_stock_server(reader: Reader) -> None:
    compared = identical = 0
    for file in sorted(golden("ocr").glob("*.json")):
        if file.name.startswith("black_font_color_transparent"):
            continue  # the stock server dropped its alpha
        picture = file.with_suffix("").read_bytes()
        stock, ours = parse(file.read_bytes()), reader.read(picture, min_text_score=0.8, orientation=False)
        assert bool(ours.texts) == bool(stock.texts), file.name
        for quad, text, score in zip(stock.quads, stock.texts, stock.text_scores, strict=True):
            if score < 0.9:
                continue
            distance = np.abs(ours.quads - quad).max(axis=(1, 2))
            nearest = int(distance.argmin())
            assert distance[nearest] <= 4 + 1e-3, (file.name, text)
            assert edit_distance(ours.texts[nearest], text) <= 1, file.name
            compared += 1
            identical += ours.texts[nearest] == text
    assert compared
    assert identical >= 0.9 * compared


def test_reading_order_of_golden_images_is_from_top_to_bottom(reader: Reader) -> None:
    # One line below the other: the stock server has them bottom-up.
    for name in ("en.jpg", "japan.jpg"):
        file = golden("ocr") / name
        stock, ours = parse(file.with_name(f"{name}.json").read_bytes()), reader.read(file.read_bytes())
        assert [np.abs(stock.quads - quad).max(axis=(1, 2)).argmin() for quad in ours.quads] == [
            *reversed(range(len(stock.texts)))
        ]


def test_transparent_picture_is_read_over_white(reader: Reader) -> None:
    alpha = page((480, 120), [((40, 40), CHINESE[0])]).convert("L").point(lambda value: 255 - value)
    picture = Image.new("RGBA", alpha.size, "black")
    picture.putalpha(alpha)
    assert np.asarray(picture.convert("RGB")).max() == 0  # black all over for those who drop the alpha
    assert reader.read(picture).texts == [CHINESE[0]]


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("texts", [ENGLISH[:4], CHINESE[:4]], ids=["English", "Chinese"])
class TestOrientation:
    @pytest.mark.parametrize("degrees", TURNS)
    def test_turned_page_is_read_in_order(self, reader: Reader, texts: tuple[str, ...], degrees: int) -> None:
        turned = page(SMALL, column(texts)).transpose(TURNS[degrees])
        assert reader.read(turned, orientation=True).texts == list(texts)

    def test_upside_down_page_is_not_turned_where_it_is_off(self, reader: Reader, texts: tuple[str, ...]) -> None:
        turned = page(SMALL, column(texts)).transpose(Image.Transpose.ROTATE_180)
        assert not set(texts) & set(reader.read(turned, orientation=False).texts)

    def test_upright_page_is_answered_alike_with_and_without(self, reader: Reader, texts: tuple[str, ...]) -> None:
        upright = page(SMALL, column(texts))
        answer = reader.answer(upright, orientation=True).body
        assert answer == reader.answer(upright, orientation=False).body
        assert parse(answer).texts == list(texts)


@pytest.mark.parametrize("blur", [4.0, 4.5])
def test_upright_page_that_reads_badly_is_not_turned(reader: Reader, blur: float) -> None:
    blurred = page(SMALL, column(CHINESE[:4])).filter(ImageFilter.GaussianBlur(blur))
    answer = reader.answer(blurred, min_text_score=0.1, orientation=True).body
    assert answer == reader.answer(blurred, min_text_score=0.1, orientation=False).body
    assert len(parse(answer).texts) == 4
    assert np.mean(parse(answer).text_scores) < 0.87


def test_setting_decides_where_the_request_does_not_say(cache: Path) -> None:
    turned = page((480, 110), [((40, 40), CHINESE[0])]).transpose(Image.Transpose.ROTATE_180)
    for setting in (False, True):
        reader = Reader(Service(Settings(cache_folder=cache, ocr_orientation=setting)))
        assert (reader.read(turned).texts == [CHINESE[0]]) is setting
        assert (reader.read(turned, orientation=not setting).texts == [CHINESE[0]]) is not setting


def test_boxes_of_a_turned_page_are_those_of_the_picture_sent(reader: Reader) -> None:
    upright = page(SMALL, column(ENGLISH[:4]))
    turned = reader.read(upright.transpose(Image.Transpose.ROTATE_180), orientation=True)
    assert turned.texts == list(ENGLISH[:4])
    centres = turned.quads.mean(axis=1)
    expected = SMALL - reader.read(upright).quads.mean(axis=1)
    np.testing.assert_allclose(centres, expected, atol=4)


VERTICAL = ("床前明月光疑是地上霜", "举头望明月低头思故乡", "春眠不觉晓处处闻啼鸟", "夜来风雨声花落知多少")


def test_vertical_chinese_is_read_from_right_to_left_whatever_the_option(reader: Reader) -> None:
    columns = [vertical_column(text, 400 - 90 * i, 40) for i, text in enumerate(VERTICAL)]
    vertical = page((480, 460), [character for characters in columns for character in characters])
    answer = reader.answer(vertical, orientation=True).body
    assert answer == reader.answer(vertical, orientation=False).body
    assert parse(answer).texts == list(VERTICAL)


# ---------------------------------------------------------------- layouts


def test_columns_are_read_one_after_the_other(reader: Reader) -> None:
    lines = textwrap.wrap(" ".join(ENGLISH), 30)
    columns = page((1100, 360), two_columns(lines, 580))
    assert reader.read(columns).texts == lines
    assert reader.read(tilted(columns, 5)).texts == lines


def test_columns_of_chinese_are_read_one_after_the_other(reader: Reader) -> None:
    lines = textwrap.wrap("".join(CHINESE), 11)
    assert reader.read(page((1000, 360), two_columns(lines, 520))).texts == lines


def test_table_is_read_row_by_row(reader: Reader) -> None:
    rows = (
        ("Name", "Built", "Height"),
        ("Skerry", "1844", "48 m"),
        ("Eddy", "1759", "41 m"),
        ("Inver", "1904", "54 m"),
    )
    cells = [((60 + 220 * j, 40 + 56 * i), cell) for i, row in enumerate(rows) for j, cell in enumerate(row)]
    assert reader.read(page((720, 300), cells)).texts == [cell for row in rows for cell in row]


@pytest.mark.parametrize("degrees", [5, -5])
def test_tilted_page_is_read_in_order(reader: Reader, degrees: int) -> None:
    assert reader.read(tilted(page((720, 320), column(ENGLISH[:5])), degrees)).texts == list(ENGLISH[:5])


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("model", ["PP-OCRv6_small", "PP-OCRv5_mobile", "PP-OCRv4_mobile"])
def test_every_model_reads_english_and_chinese(reader: Reader, model: str) -> None:
    texts = [*CHINESE[:3], *ENGLISH[:3]]
    read = reader.read(page((720, 380), column(texts)), model=model, min_text_score=0.8).texts
    assert max(edit_distance(line, text) for line, text in zip(read, texts, strict=True)) <= 1
