"""Text recognition, compared with RapidOCR's recogniser on the same strips and graphs."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.downloads import Downloader
from immich_ml_compat.engine import Array
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.scheduler import ScheduledEngine, Scheduler
from immich_ml_compat.errors import ModelOutputError
from immich_ml_compat.images import decode as decode_image
from immich_ml_compat.loaders import loaders
from immich_ml_compat.models import Models
from immich_ml_compat.ocr import crops as crops_module
from immich_ml_compat.ocr import read_text
from immich_ml_compat.ocr.crops import LINE_HEIGHT, MAX_ASPECT_RATIO, cut_line, split_line
from immich_ml_compat.ocr.detection import TextDetector
from immich_ml_compat.ocr.orientation import read_page
from immich_ml_compat.ocr.recognition import (
    MIN_WIDTH,
    WIDE_STEP,
    WIDTH_STEP,
    Reading,
    TextRecognizer,
    _join,
    decode,
    pad,
    padded_width,
    read_characters,
)
from immich_ml_compat.plan import Ocr
from immich_ml_compat.settings import MaxBatchSize
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .model_folders import OCR
from .oracles import golden, oracle
from .pages import CHINESE, ENGLISH, FakeSession, edit_distance, line_of, page

Line = NDArray[np.uint8]
MODELS = ["PP-OCRv6_small", "PP-OCRv5_mobile", "PP-OCRv4_mobile"]
LONGEST = int(MAX_ASPECT_RATIO * LINE_HEIGHT)


def graph_files(cache: Path, model: str, kind: ModelType) -> ModelFiles:
    files = ModelStore(cache).find(ModelKey(Task.OCR, model, kind))
    assert files is not None
    return files


@pytest.fixture(scope="module")
def crops(cache: Path) -> list[Line]:
    """Lines cut out of golden images."""
    detector = TextDetector.load(graph_files(cache, OCR, ModelType.DETECTION), OnnxRuntimeEngine())
    crops: list[Line] = []
    for name in ("ch_en_num.jpg", "latin.jpg", "text_vertical_words.png"):
        image = decode_image((golden("ocr") / name).read_bytes())
        crops += [cut_line(image, quad) for quad in detector.detect(image, 0.5, 736).quads]
    assert len(crops) > 15
    assert max(crop.shape[1] for crop in crops) <= LONGEST
    return crops


@pytest.fixture(scope="module", params=MODELS)
def model_files(request: pytest.FixtureRequest, cache: Path) -> ModelFiles:
    return graph_files(cache, request.param, ModelType.RECOGNITION)


TRAINED_WIDTH = 320
"""To which RapidOCR pads (pixels)."""


class OracleConfig(dict[str, Any]):
    """RapidOCR asks its configuration both ways."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def oracle_recognizer(files: ModelFiles, folder: Path) -> Any:
    keys = folder / "keys.txt"
    if files.beside("charset.txt").is_file():
        # RapidOCR adds blank and space itself, whether the list has them or not.
        listed = files.beside("charset.txt").read_text(encoding="utf-8").splitlines()
        assert (listed[0], listed[-1]) == ("blank", " ")
        keys.write_text("\n".join(listed[1:-1]) + "\n", encoding="utf-8")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    config = OracleConfig(
        lang_type="ch",
        engine_type=oracle("rapidocr").EngineType.ONNXRUNTIME,
        session=ort.InferenceSession(files.graph, options, providers=["CPUExecutionProvider"]),
        rec_batch_num=1,
        rec_img_shape=[3, 48, TRAINED_WIDTH],
        rec_keys_path=str(keys),
    )
    return oracle("rapidocr.ch_ppocr_rec.main").TextRecognizer(config)


# ---------------------------------------------------------------- against RapidOCR


def test_lines_read_as_the_oracle_reads_them(model_files: ModelFiles, crops: list[Line], tmp_path: Path) -> None:
    theirs = oracle_recognizer(model_files, tmp_path)
    recognizer = TextRecognizer.load(model_files, OnnxRuntimeEngine())
    assert (
        read_characters(OnnxRuntimeEngine().load(model_files.graph), model_files)[1:]
        == (theirs.postprocess_op.character[1:])
    )
    # RapidOCR pads to the line's own width, this project to the next of a few: no padding, no difference.
    widths = [max(TRAINED_WIDTH, padded_width(crop.shape[1])) for crop in crops]
    crops = [cv2.resize(crop, (width, LINE_HEIGHT)).astype(np.uint8) for crop, width in zip(crops, widths, strict=True)]
    expected = theirs(oracle("rapidocr.ch_ppocr_rec.typings").TextRecInput(img=crops, return_word_box=False))
    readings = recognizer.read(crops)
    assert [reading.text for reading in readings] == list(expected.txts)
    np.testing.assert_allclose([reading.score for reading in readings], expected.scores, atol=3e-5)


def test_short_lines_need_less_padding_than_the_oracle_gives(cache: Path, tmp_path: Path) -> None:
    model_files = graph_files(cache, OCR, ModelType.RECOGNITION)
    texts = [word for line in ENGLISH[:4] for word in line.split() if len(word) > 2]
    texts += [line[start : start + 3] for line in CHINESE for start in (0, 4, 8)]
    words = [word for text in texts if (word := line_of(text)).shape[1] < TRAINED_WIDTH]
    assert len(words) > 40
    expected = oracle_recognizer(model_files, tmp_path)(
        oracle("rapidocr.ch_ppocr_rec.typings").TextRecInput(img=words, return_word_box=False)
    )
    readings = TextRecognizer.load(model_files, OnnxRuntimeEngine()).read(words)
    sure = [i for i, score in enumerate(expected.scores) if score >= 0.9]
    alike = sum(readings[i].text == expected.txts[i] for i in sure)
    assert len(sure) > 40
    assert alike >= 0.98 * len(sure) - 1


def test_batches_read_as_single_lines_do(cache: Path, crops: list[Line]) -> None:
    files = graph_files(cache, OCR, ModelType.RECOGNITION)
    engine = ScheduledEngine(Scheduler(1, 1, 1, max_batch=6), lambda threads: OnnxRuntimeEngine())
    single, several = (TextRecognizer.load(files, each).read(crops) for each in (OnnxRuntimeEngine(), engine))
    assert [reading.text for reading in several] == [reading.text for reading in single]
    np.testing.assert_allclose([r.score for r in single], [r.score for r in several], atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(3, 9), st.integers(0, 2**32))
def test_decoding_is_the_oracles(steps: int, classes: int, seed: int) -> None:
    logits = np.random.default_rng(seed).random((3, steps, classes)).astype(np.float32)
    characters = [chr(ord("a") + i) for i in range(classes - 2)]
    decoder = oracle("rapidocr.ch_ppocr_rec.utils").CTCLabelDecode(character=list(characters))
    lines, _ = decoder(logits)
    for line, (text, score) in zip(logits, lines, strict=True):
        reading = decode(line.argmax(axis=1), line.max(axis=1), ["", *characters, " "])
        assert reading.text == text
        assert reading.score == pytest.approx(score, abs=2e-5)  # RapidOCR rounds to five digits, twice


# ---------------------------------------------------------------- character sets


def files_in(folder: Path, charset: str | None = None) -> ModelFiles:
    if charset is not None:
        (folder / "charset.txt").write_bytes(charset.encode())
    return ModelFiles("m", folder / "model.onnx", folder / "config.json")


@pytest.mark.parametrize("listed", ["a\n\u3000\n😀", "a\n\u3000\n😀\n", "a\r\n\u3000\r\n😀\r\n"])
@pytest.mark.parametrize("place", ["metadata", "charset.txt"])
def test_blank_and_space_are_added_to_a_list_without(tmp_path: Path, listed: str, place: str) -> None:
    metadata = {"character": listed} if place == "metadata" else {}
    files = files_in(tmp_path, None if metadata else listed)
    session = FakeSession(list, output_shapes=[(None, None, 5)], metadata=metadata)
    assert read_characters(session, files) == ["", "a", "\u3000", "😀", " "]


@pytest.mark.parametrize("listed", ["blank\na\nb\n ", "blank\na\nb\n \n"])
def test_blank_and_space_of_a_list_are_taken(tmp_path: Path, listed: str) -> None:
    session = FakeSession(list, output_shapes=[(None, None, 4)])
    characters = read_characters(session, files_in(tmp_path, listed))
    assert characters[1:] == ["a", "b", " "]
    # The blank is never read, whatever it is called.
    assert decode(np.array([0, 1, 0, 3]), np.ones(4, np.float32), characters).text == "a "


def test_metadata_comes_before_a_file(tmp_path: Path) -> None:
    session = FakeSession(list, output_shapes=[(None, None, 4)], metadata={"character": "x\ny"})
    assert read_characters(session, files_in(tmp_path, "a\nb")) == ["", "x", "y", " "]


@pytest.mark.parametrize("classes", [2, 3, 5, 7])
def test_wrong_number_of_characters_is_an_error(tmp_path: Path, classes: int) -> None:
    session = FakeSession(list, output_shapes=[(None, None, classes)])
    with pytest.raises(ValueError, match=f"{classes} classes"):
        read_characters(session, files_in(tmp_path, "a\nb\nc\nd"))


def test_no_characters_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"charset\.txt"):
        read_characters(FakeSession(list), files_in(tmp_path))


# ---------------------------------------------------------------- long lines


def draw_words(words: list[tuple[int, int]], seed: int) -> tuple[Line, list[tuple[int, int]]]:
    """Draw words of some letters, each with the gap behind it, on paper with a grain; return the gaps too."""
    rng = np.random.default_rng(seed)
    parts: list[Line] = []
    gaps: list[tuple[int, int]] = []
    column = 0
    for letters, gap in words:
        for letter in range(letters):
            width, space = int(rng.integers(8, 20)), 3 if letter < letters - 1 else gap
            parts.append(rng.integers(0, 256, (LINE_HEIGHT, width, 3), np.uint8))
            parts.append(rng.integers(240, 256, (LINE_HEIGHT, space, 3), np.uint8))
            column += width + space
        gaps.append((column - gap, column))
    return np.concatenate(parts, axis=1), gaps


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(12, 40)), min_size=20, max_size=60), st.integers(0, 2**32))
def test_long_line_is_cut_between_words(words: list[tuple[int, int]], seed: int) -> None:
    line, gaps = draw_words(words, seed)
    strips = split_line(line)
    np.testing.assert_array_equal(np.concatenate([strip for strip, _ in strips], axis=1), line)
    assert all(0 < strip.shape[1] <= LONGEST for strip, _ in strips)
    assert (len(strips) > 1) is (line.shape[1] > LONGEST)
    cuts = np.cumsum([strip.shape[1] for strip, _ in strips])[:-1]
    assert all(any(start < cut < stop for start, stop in gaps) for cut in cuts)
    assert strips[0][1] == 0
    assert all(gap >= 12 for _, gap in strips[1:])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5 * LONGEST), st.integers(0, 255), st.integers(0, 2**32))
def test_strips_of_a_line_without_gaps_join_to_the_line(width: int, spread: int, seed: int) -> None:
    line = np.random.default_rng(seed).integers(0, spread + 1, (LINE_HEIGHT, width, 3), np.uint8)
    strips = split_line(line)
    np.testing.assert_array_equal(np.concatenate([strip for strip, _ in strips], axis=1), line)
    assert all(0 < strip.shape[1] <= LONGEST for strip, _ in strips)


@pytest.mark.parametrize("text", [" ".join(ENGLISH * 2), "".join(CHINESE * 3)], ids=["English", "Chinese"])
def test_very_long_line_is_read_completely(cache: Path, text: str) -> None:
    line = line_of(text)
    assert 3 * LONGEST < line.shape[1] < 5 * LONGEST
    recognizer = TextRecognizer.load(graph_files(cache, OCR, ModelType.RECOGNITION), OnnxRuntimeEngine())
    (reading,) = recognizer.read([line])
    assert edit_distance(reading.text, text) <= 0.01 * len(text)
    assert reading.score > 0.95


@pytest.mark.parametrize("noise", [0, 5, 9])
def test_a_long_line_keeps_its_spaces_where_it_is_cut_in_a_noisy_photo(
    cache: Path, noise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into many strips here, so that there is much to lose."""
    monkeypatch.setattr(crops_module, "MAX_ASPECT_RATIO", 16.0)
    text = " ".join(ENGLISH * 2)
    clean = line_of(text).astype(np.float32)
    line = np.clip(clean + np.random.default_rng(0).normal(0, noise, clean.shape), 0, 255).astype(np.uint8)
    assert len(split_line(line)) > 8
    recognizer = TextRecognizer.load(graph_files(cache, OCR, ModelType.RECOGNITION), OnnxRuntimeEngine())
    (reading,) = recognizer.read([line])
    assert reading.text.replace(" ", "") == text.replace(" ", "")
    assert reading.text == text


@pytest.mark.parametrize(
    ("left", "right", "gap", "joined"),
    [
        ("keeper", "climbed", 7, "keeper climbed"),
        ("kee", "per", 6, "keeper"),
        ("老人", "每天", 8, "老人每天"),
        ("老人", "每天", 24, "老人 每天"),
        ("电子发票", "Invoice", 9, "电子发票 Invoice"),
        ("5月", "12日", 8, "5月12日"),
        ("你好，", "我们", 27, "你好，我们"),
        ("言った", "「猫", 33, "言った「猫"),
        ("吾輩は", "猫で", 12, "吾輩は猫で"),
        ("오늘", "날씨가", 9, "오늘 날씨가"),
        ("날", "씨가", 8, "날씨가"),
        ("keeper", "", 30, "keeper"),
        ("", "keeper", 30, "keeper"),
    ],
)
def test_a_gap_is_a_space_by_its_width_and_what_lies_beside_it(left: str, right: str, gap: int, joined: str) -> None:
    assert _join([(0, Reading(left, 0.9)), (gap, Reading(right, 0.9))]).text == joined


@given(st.integers(1, LONGEST))
def test_inputs_have_few_widths(width: int) -> None:
    assert width <= padded_width(width) < max(MIN_WIDTH + 1, width + WIDE_STEP)
    assert padded_width(padded_width(width)) == padded_width(width)
    assert len({padded_width(each) for each in range(1, LONGEST + 1)}) < 50


def test_strips_are_padded_with_zeros() -> None:
    narrow, wide = (np.full((LINE_HEIGHT, width, 3), value, np.uint8) for width, value in ((10, 0), (405, 255)))
    assert pad(narrow).shape == (1, 3, LINE_HEIGHT, MIN_WIDTH)
    assert (pad(narrow)[0, :, :, :10] == -1).all()
    assert (pad(narrow)[0, :, :, 10:] == 0).all()
    assert pad(wide).shape == (1, 3, LINE_HEIGHT, 416)
    assert (pad(wide)[0, :, :, :405] == 1).all()


# ---------------------------------------------------------------- without a model

CONTROLS = ["\x00", "\x1b", "\x7f", "\x85", "\t"]
CHARSET = [*CONTROLS, "h", "i"]


def spell(text: str, score: float = 0.9) -> Array:
    """Make the recogniser's answer for one strip: every character of a text, a blank after each."""
    logits = np.zeros((2 * max(1, len(text)), len(CHARSET) + 2), np.float32)
    logits[:, 0] = 0.95
    for i, character in enumerate(text):
        logits[2 * i, 0] = 0
        logits[2 * i, len(CHARSET) + 1 if character == " " else CHARSET.index(character) + 1] = score
    return logits


def fake_recognizer(answer: Callable[[Array], list[Array]]) -> FakeSession:
    return FakeSession(
        answer, output_shapes=[(None, None, len(CHARSET) + 2)], metadata={"character": "\n".join(CHARSET)}
    )


@dataclass
class FakeEngine:
    sessions: Mapping[str, FakeSession]

    def load(self, path: Path) -> FakeSession:
        return self.sessions[path.parent.name]

    def release(self) -> None:
        pass


def test_control_characters_never_leave(tmp_path: Path) -> None:
    session = fake_recognizer(lambda x: [np.stack([spell("\x1bh\x00\x7fi\x85 i\t\x00")] * len(x))])
    recognizer = TextRecognizer.load(files_in(tmp_path), FakeEngine({tmp_path.name: session}))
    (reading,) = recognizer.read([np.zeros((LINE_HEIGHT, 100, 3), np.uint8)])
    assert reading.text == "hi i"
    assert not any(unicodedata.category(character) == "Cc" for character in reading.text)
    assert reading.score == pytest.approx(0.9)


@pytest.mark.parametrize(("gap", "text"), [(30, "hi hi"), (3, "hihi")])
def test_space_comes_back_where_a_line_was_cut_at_one(tmp_path: Path, gap: int, text: str) -> None:
    session = fake_recognizer(lambda x: [np.stack([spell("hi")] * len(x))])
    recognizer = TextRecognizer.load(files_in(tmp_path), FakeEngine({tmp_path.name: session}))
    line, _ = draw_words([(10, gap)] * 20, 0)
    assert len(split_line(line)) == 2
    (reading,) = recognizer.read([line])
    assert reading.text == text
    assert reading.score == pytest.approx(0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(tmp_path: Path, bad: float) -> None:
    def broken(x: Array) -> list[Array]:
        logits = np.stack([spell("hi")] * len(x))
        logits[-1, -1, 3] = bad
        return [logits]

    recognizer = TextRecognizer.load(files_in(tmp_path), FakeEngine({tmp_path.name: fake_recognizer(broken)}))
    with pytest.raises(ModelOutputError, match="'m'"):
        recognizer.read([np.zeros((LINE_HEIGHT, 100, 3), np.uint8)])


SHADES = {40: ("hi", 0.9), 90: ("\x00\x1b", 0.9), 140: (" ", 0.9), 190: ("h", 0.5), 240: ("h i", 0.75)}
BOX_SCORES = {40: 0.6, 90: 0.65, 140: 0.7, 190: 0.8, 240: 0.95}
ASKED = Ocr(ModelKey(Task.OCR, OCR, ModelType.DETECTION), ModelKey(Task.OCR, OCR, ModelType.RECOGNITION))


@pytest.mark.parametrize(("min_text_score", "kept"), [(0.0, [40, 190, 240]), (0.5, [40, 240]), (0.8, [40]), (0.9, [])])
def test_lines_without_text_or_score_are_dropped(tmp_path: Path, min_text_score: float, kept: list[int]) -> None:
    """Each line of the picture is a bar of one shade; the fake network tells its text by it."""
    picture = np.full((352, 320, 3), 255, np.uint8)
    probabilities = np.zeros((1, 1, 352, 320), np.float32)
    for i, (shade, score) in enumerate(BOX_SCORES.items()):
        picture[20 + 64 * i : 60 + 64 * i, 20:300] = shade
        probabilities[0, 0, 30 + 64 * i : 50 + 64 * i, 30:290] = score

    def read(x: Array) -> list[Array]:
        shades = [round(float(strip[0, 24, 100] + 1) * 127.5 / 10) * 10 for strip in x]
        spelled = [spell(*SHADES[shade]) for shade in shades]
        length = max(map(len, spelled))
        blank = [np.tile(spell("")[:1], (length - len(s), 1)) for s in spelled]
        return [np.stack([np.concatenate(pair) for pair in zip(spelled, blank, strict=True)])]

    sessions = {
        "detection": FakeSession(lambda x: [probabilities], output_shapes=[(None, 1, None, None)]),
        "recognition": fake_recognizer(read),
    }
    for kind in sessions:
        (tmp_path / "ocr" / OCR / kind).mkdir(parents=True)
        (tmp_path / "ocr" / OCR / kind / "model.onnx").touch()
    step = Ocr(ASKED.detector, ASKED.recognizer, min_text_score=min_text_score)
    models = Models(store := ModelStore(tmp_path), Downloader(store), FakeEngine(sessions), loaders(MaxBatchSize()))
    answer = read_text(step, Image.fromarray(picture), models, orientation=False)
    assert answer["text"] == [SHADES[shade][0] for shade in kept]
    share = 260 * 20 / (261 * 21)  # dilation adds a row and a column to each bar
    np.testing.assert_allclose(answer["boxScore"], [share * BOX_SCORES[shade] for shade in kept], atol=1e-6)
    np.testing.assert_allclose(answer["textScore"], [SHADES[shade][1] for shade in kept], atol=1e-6)
    assert len(answer["box"]) == 8 * len(kept)


def test_box_score_stays_with_its_line(cache: Path) -> None:
    lines = [((30, 20), ENGLISH[0]), ((200, 75), CHINESE[1]), ((30, 130), "28 April"), ((60, 185), CHINESE[3])]
    image = page((720, 250), lines)
    models = Models(store := ModelStore(cache), Downloader(store), OnnxRuntimeEngine(), loaders(MaxBatchSize()))
    with models.use(ASKED.detector, TextDetector) as detector:
        boxes = detector.detect(image, ASKED.min_box_score, ASKED.max_resolution)
    assert len(set(boxes.scores.tolist())) == len(lines)
    answer = read_text(ASKED, image, models, orientation=False)
    assert answer["text"] == [text for _, text in lines]
    quads = np.array(answer["box"]).reshape(-1, 4, 2) * image.size
    for quad, score, ((x, y), _) in zip(quads, answer["boxScore"], lines, strict=True):
        own = np.abs(boxes.quads - quad).max(axis=(1, 2)).argmin()
        np.testing.assert_allclose(boxes.quads[own], quad, atol=1e-3)
        assert boxes.scores[own] == score
        np.testing.assert_allclose(quad[0], (x, y + 6), atol=10)


def test_the_longest_lines_are_read_first_and_every_reading_is_its_boxes() -> None:
    """A line's text is its width here."""

    def answer(line: Array) -> list[Array]:
        logits = np.zeros((1, 1, 100), np.float32)
        logits[0, 0, line.shape[-1] // WIDTH_STEP] = 1
        return [logits]

    session = FakeSession(answer)
    recognizer = TextRecognizer("fake", session, [chr(ord("A") + i) for i in range(100)])
    lengths = [200, 700, 300, 600, 250, 900, 800, 400, 500, 650]
    across = [[[9, y], [9 + length, y], [9 + length, y + 48], [9, y + 48]] for y, length in enumerate(lengths, 10)]
    downwards = [[[9, 9], [57, 9], [57, 9 + 850], [9, 9 + 850]]]
    quads = np.array([*across, *downwards], np.float32)
    readings, _ = read_page(Image.new("RGB", (1000, 1000)), quads, recognizer, orientation=False)
    expected = [padded_width(length) // WIDTH_STEP for length in (*lengths, 850)]
    assert [ord(reading.text) - ord("A") for reading in readings] == expected
    assert [run.shape[-1] // WIDTH_STEP for run in session.runs] == sorted(expected, reverse=True)
    assert session.expected == [len(quads)]
