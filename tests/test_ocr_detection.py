"""Text detection, compared with RapidOCR's post-processing on the same probability maps."""

from itertools import pairwise, permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.engine import Array
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.errors import ModelOutputError
from immich_ml_compat.images import MAX_PIXELS, decode
from immich_ml_compat.ocr import detection
from immich_ml_compat.ocr.boxes import MAX_CANDIDATES, TextBoxes, boxes_from_map
from immich_ml_compat.ocr.detection import (
    MAX_INPUT_PIXELS,
    MAX_TILE_SIDE,
    SIDE_MULTIPLE,
    TILE_OVERLAP,
    TextDetector,
    input_size,
    normalise,
    tile_spans,
)
from immich_ml_compat.ocr.scaling import scale
from immich_ml_compat.store import ModelKey, ModelStore

from .model_folders import OCR
from .oracles import golden, oracle
from .pages import CHINESE, ENGLISH, FakeSession, column, page, tilted

Map = NDArray[np.float32]


@pytest.fixture(scope="module")
def detector(cache: Path) -> TextDetector:
    files = ModelStore(cache).find(ModelKey(Task.OCR, OCR, ModelType.DETECTION))
    assert files is not None
    return TextDetector.load(files, OnnxRuntimeEngine())


def detect_with_map(
    detector: TextDetector, image: Image.Image, min_score: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[TextBoxes, Map]:
    """Detect, and catch the probability map on its way."""
    maps: list[Map] = []

    def catch(probabilities: Map, image_size: tuple[int, int], min_score: float) -> TextBoxes:
        maps.append(probabilities)
        return boxes_from_map(probabilities, image_size, min_score)

    monkeypatch.setattr(detection, "boxes_from_map", catch)
    boxes = detector.detect(image, min_score, 736)
    return boxes, maps[0]


def oracle_boxes(probabilities: Map, size: tuple[int, int], min_score: float) -> TextBoxes:
    post_process = oracle("rapidocr.ch_ppocr_det.utils").DBPostProcess(
        thresh=0.3, box_thresh=min_score, max_candidates=1000, unclip_ratio=1.6, use_dilation=True
    )
    quads, scores = post_process(probabilities[None, None], (size[1], size[0]))
    return TextBoxes(np.array(quads, np.float32).reshape(-1, 4, 2), np.array(scores, np.float32))


def assert_same_boxes(ours: TextBoxes, theirs: TextBoxes) -> None:
    """To the pixel, in whatever order, the scores as near as float32 comes."""
    assert ours.quads.shape == theirs.quads.shape
    order, their_order = (np.lexsort(boxes.quads.reshape(-1, 8).T) for boxes in (ours, theirs))
    np.testing.assert_array_equal(ours.quads[order], theirs.quads[their_order])
    np.testing.assert_allclose(ours.scores[order], theirs.scores[their_order], atol=1e-6)


# ---------------------------------------------------------------- maps to boxes


def test_boxes_are_the_oracles_on_golden_images(detector: TextDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    found = 0
    for file in sorted(golden("ocr").glob("*.json")):
        image = decode(file.with_suffix("").read_bytes())
        boxes, probabilities = detect_with_map(detector, image, 0.5, monkeypatch)
        assert_same_boxes(boxes, oracle_boxes(probabilities, image.size, 0.5))
        found += len(boxes.scores)
        if "empty" in file.name:
            continue  # more than 1000 specks score over 0.2: they are taken by size here, by chance there
        for min_score in (0.2, 0.7, 0.85):
            boxes = boxes_from_map(probabilities, image.size, min_score)
            assert_same_boxes(boxes, oracle_boxes(probabilities, image.size, min_score))
    assert found > 50


@pytest.mark.parametrize("degrees", [0, 8, -25, 44, 90])
def test_boxes_are_the_oracles_on_tilted_pages(
    detector: TextDetector, degrees: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tilted(page((520, 260), column([*CHINESE[:2], *ENGLISH[:2]], pitch=48), text_size=20), degrees)
    boxes, probabilities = detect_with_map(detector, image, 0.5, monkeypatch)
    assert len(boxes.scores) == 4
    assert_same_boxes(boxes, oracle_boxes(probabilities, image.size, 0.5))


_rectangles = st.lists(
    st.tuples(
        st.tuples(st.floats(16, 304), st.floats(16, 240)),
        st.tuples(st.floats(6, 200), st.floats(6, 60)),
        st.floats(0, 180),
        st.floats(0.45, 1),
    ),
    max_size=8,
)


# Always the same examples: one map in some thousands ends two pixels apart, by the last bit of the offset.
@settings(deadline=None, max_examples=200, derandomize=True)
@given(_rectangles, st.integers(2, 12), st.integers(2, 12), st.sampled_from([0.1, 0.5, 0.8]), st.integers(0, 2**32))
def test_boxes_are_the_oracles_on_any_map(
    rectangles: list[tuple[tuple[float, float], tuple[float, float], float, float]],
    scale_x: int,
    scale_y: int,
    min_score: float,
    seed: int,
) -> None:
    probabilities = np.zeros((256, 320), np.float32)
    for centre, size, angle, probability in rectangles:
        corners = cv2.boxPoints((centre, size, angle)).astype(np.int32)
        cv2.fillPoly(probabilities, [corners], [probability])
    probabilities *= np.random.default_rng(seed).uniform(0.7, 1, probabilities.shape).astype(np.float32)
    image_size = (320 * scale_x // 2, 256 * scale_y // 2)
    ours, theirs = (f(probabilities, image_size, min_score) for f in (boxes_from_map, oracle_boxes))
    # Where scaling ends between two pixels they may round apart. A square on its corner may have any corner first;
    # cut at the picture's edge, RapidOCR orders the corners anew (and may cross them), this project does not.
    assert len(ours.scores) == len(theirs.scores)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    last = np.array(image_size) - 1
    for quad, expected in zip(ours.quads, theirs.quads, strict=True):
        assert ((quad >= 0) & (quad <= last)).all()
        cut = ((quad <= 1) | (quad >= last - 1)).any()
        orders = permutations(range(4)) if cut else [tuple(np.roll(range(4), shift)) for shift in range(4)]
        assert min(np.abs(quad[list(order)] - expected).max() for order in orders) <= 1


def test_largest_thousand_candidates_stay() -> None:
    rng = np.random.default_rng(0)
    sides = rng.permutation([13] * 980 + [7] * 620)
    probabilities = np.zeros((1280, 1280), np.float32)
    for cell, side in enumerate(sides):
        y, x = 32 * np.array(divmod(cell, 40)) + 10
        probabilities[y : y + side, x : x + side] = 0.9
    boxes = boxes_from_map(probabilities, (1280, 1280), 0.5)
    assert len(boxes.scores) == MAX_CANDIDATES == 1000
    cells = boxes.quads[:, 0].astype(int) // 32
    assert set(cells[:, 0] + 40 * cells[:, 1]) >= set(np.flatnonzero(sides == 13))


def test_less_than_1001_candidates_are_all_looked_at() -> None:
    probabilities = np.zeros((1024, 1024), np.float32)
    probabilities[8::32, 8::32] = 0.9  # 1024 specks, too small for boxes
    probabilities[100:112, 100:200] = 0.9
    assert len(boxes_from_map(probabilities, (1024, 1024), 0.5).scores) == 1


# ---------------------------------------------------------------- sizes and tiles

_sides = st.integers(32, 70_000)


@settings(deadline=None)
@given(_sides, _sides, st.integers(1, 100_000))
def test_input_is_scaled_down_never_up_and_bounded(width: int, height: int, max_resolution: int) -> None:
    if width * height > MAX_PIXELS:
        height = max(32, MAX_PIXELS // width)
    size = input_size(width, height, max_resolution)
    assert all(side % SIDE_MULTIPLE == 0 and side >= SIDE_MULTIPLE for side in size)
    # Each side is rounded to a multiple of 32: by 16 pixels at most, but for the least one.
    half = SIDE_MULTIPLE // 2
    assert size[0] <= width + half
    assert size[1] <= height + half
    assert min(size) <= max(SIDE_MULTIPLE, max_resolution + half)
    assert (size[0] - half) * (size[1] - half) <= MAX_INPUT_PIXELS
    ratio = min(1, max_resolution / min(width, height), (MAX_INPUT_PIXELS / (width * height)) ** 0.5)
    for scaled, side in zip(size, (width, height), strict=True):
        assert scaled == SIDE_MULTIPLE or abs(scaled - side * ratio) <= half + 1


@given(_sides, _sides, st.integers(1, 2000), st.integers(1, 2000))
def test_input_is_scaled_up_as_asked_but_to_no_more_than_a_tile(width: int, height: int, least: int, most: int) -> None:
    if width * height > MAX_PIXELS:
        height = max(32, MAX_PIXELS // width)
    usual, size = input_size(width, height, most), input_size(width, height, most, least)
    if min(width, height) >= min(least, most):
        assert size == usual, "nothing to enlarge"
    else:
        half = SIDE_MULTIPLE // 2
        asked = min(least, most) / min(width, height)
        ratio = max(1.0, min(asked, MAX_TILE_SIDE / (width * height) ** 0.5))
        if ratio > 1:
            expected = (width * ratio, height * ratio)
            assert all(abs(side - other) <= half + 1 for side, other in zip(size, expected, strict=True))
            assert (size[0] - half) * (size[1] - half) <= MAX_TILE_SIDE**2
        else:
            assert size == usual, "it is more than a tile already"


def test_input_of_an_extreme_shape_is_bounded() -> None:
    width, height = input_size(MAX_PIXELS // 32, 32, 736)
    assert height == SIDE_MULTIPLE
    assert width * height <= MAX_INPUT_PIXELS


@settings(deadline=None)
@given(st.integers(1, 20_000))
def test_kept_parts_of_tiles_cover_everything_once(multiple: int) -> None:
    length = SIDE_MULTIPLE * multiple
    spans = tile_spans(length)
    assert spans[0].keep_start == 0
    assert spans[-1].keep_stop == length
    assert all(a.keep_stop == b.keep_start for a, b in pairwise(spans))
    for span in spans:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= length
        assert (span.stop - span.start) % SIDE_MULTIPLE == 0
        assert span.start % SIDE_MULTIPLE == 0  # else the network would see another grid than on the whole
        assert span.stop - span.start <= MAX_TILE_SIDE
    # Half the overlap lies beyond every seam; tiles start at multiples of 32, which takes some of it.
    margin = (TILE_OVERLAP - SIDE_MULTIPLE) / 2
    assert all(span.keep_start - span.start >= margin for span in spans[1:])
    assert all(span.stop - span.keep_stop >= margin for span in spans[:-1])


# ---------------------------------------------------------------- tiles


def assert_tiling_changes_nothing(
    detector: TextDetector, image: Image.Image, tile: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = input_size(*image.size, 1500)
    monkeypatch.setattr(detection, "MAX_TILE_SIDE", tile)
    seams = [
        np.array([span.keep_stop for span in tile_spans(side)[:-1]]) * given / side
        for side, given in zip(scaled, image.size, strict=True)
    ]
    tiled = detector.detect(image, 0.5, 1500)
    monkeypatch.setattr(detection, "MAX_TILE_SIDE", 100_000)
    whole = detector.detect(image, 0.5, 1500)
    assert len(tiled.scores) == len(whole.scores) == lines
    for quad, score in zip(tiled.quads, tiled.scores, strict=True):
        distances = np.abs(whole.quads - quad).max(axis=(1, 2))
        assert distances.min() <= 5  # of a line some 50 px high: the network weighs its channels by the whole input
        assert abs(whole.scores[distances.argmin()] - score) < 0.1
    starts, stops = whole.quads.min(axis=1), whole.quads.max(axis=1)
    for axis in range(2):
        for seam in seams[axis]:
            assert ((starts[:, axis] < seam) & (seam < stops[:, axis])).any(), "no line lies across the seam"


def test_tiles_find_what_the_whole_finds_on_a_long_screenshot(
    detector: TextDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i} {text}" for i in range(2) for pair in zip(ENGLISH, CHINESE, strict=True) for text in pair]
    screenshot = page((1000, 2600), column(texts, top=10, pitch=91), text_size=36)
    assert_tiling_changes_nothing(detector, screenshot, MAX_TILE_SIDE, len(texts), monkeypatch)


def test_tiles_find_what_the_whole_finds_across_many_seams(
    detector: TextDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{a} {b}" for a, b in zip(ENGLISH, CHINESE, strict=True)]
    large = page((1200, 800), column(texts, top=57, pitch=80), text_size=28)
    assert_tiling_changes_nothing(detector, large, 512, len(texts), monkeypatch)


# ---------------------------------------------------------------- odd pictures, odd outputs


def refuse(_: Array) -> list[Array]:
    raise AssertionError("the network ran")


@pytest.mark.parametrize("size", [(31, 400), (400, 31), (1, 1), (31, 20_000)])
def test_nothing_is_looked_for_under_32_pixels(size: tuple[int, int]) -> None:
    assert len(TextDetector("x", FakeSession(refuse)).detect(Image.new("RGB", size), 0.5, 736).scores) == 0


@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_smallest_pictures_run(detector: TextDetector, size: tuple[int, int]) -> None:
    assert len(detector.detect(Image.new("RGB", size, "white"), 0.5, 736).scores) == 0


def test_very_wide_picture_is_read_all_along(detector: TextDetector) -> None:
    words = [((left, -4), "lighthouse") for left in range(20, 39_900, 400)]
    boxes = detector.detect(page((40_000, 33), words, text_size=26), 0.5, 736)
    assert len(boxes.scores) == len(words)
    assert ((boxes.quads >= 0) & (boxes.quads < (40_000, 33))).all()
    np.testing.assert_allclose(np.diff(np.sort(boxes.quads[:, :, 0].mean(axis=1))), 400, atol=20)


def test_very_tall_picture_is_read_all_along(detector: TextDetector) -> None:
    characters = [((3, top), CHINESE[0][top // 100 % len(CHINESE[0])]) for top in range(20, 19_950, 100)]
    boxes = detector.detect(page((32, 20_000), characters, text_size=26), 0.5, 736)
    assert len(boxes.scores) == len(characters)
    assert ((boxes.quads >= 0) & (boxes.quads < (32, 20_000))).all()
    np.testing.assert_allclose(np.diff(np.sort(boxes.quads[:, :, 1].mean(axis=1))), 100, atol=20)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("height", [64, 3200])
def test_map_that_is_not_finite_is_an_error(bad: float, height: int) -> None:
    session = FakeSession(lambda x: [np.zeros((1, 1, *x.shape[2:]), np.float32)])
    detector = TextDetector("broken", session)
    image = Image.new("RGB", (1024, height))
    assert len(detector.detect(image, 0.5, 1024).scores) == 0
    runs = len(session.runs)

    def break_last(x: Array) -> list[Array]:
        probabilities = np.zeros((1, 1, *x.shape[2:]), np.float32)
        if len(session.runs) == 2 * runs:
            probabilities[0, 0, -1, -1] = bad
        return [probabilities]

    session.answer = break_last
    with pytest.raises(ModelOutputError, match="broken"):
        detector.detect(image, 0.5, 1024)


def test_picture_is_scaled_on_the_threads_that_are_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def noting(image: Image.Image, size: tuple[int, int], threads: int) -> NDArray[np.uint8]:
        used.append(threads)
        return scale(image, size, threads)

    monkeypatch.setattr(detection, "scale", noting)
    session = FakeSession(lambda x: [np.zeros((1, 1, *x.shape[2:]), np.float32)], spare_threads=3)
    TextDetector("fake", session).detect(Image.new("RGB", (300, 200)), 0.5, 736)
    assert used == [3]


def test_picture_goes_in_as_bgr_from_minus_one_to_one() -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 255, 51
    tensor = normalise(pixels)
    assert tensor.shape == (1, 3, 32, 64)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, :, 7, 9], [-1, -0.6, 1], atol=1e-6)
    theirs = oracle("rapidocr.ch_ppocr_det.utils").DetPreProcess(32, "min")(pixels[:, :, ::-1])
    np.testing.assert_allclose(tensor, theirs, atol=1e-6)
