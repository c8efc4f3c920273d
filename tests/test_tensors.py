"""Pixels to a network's input: the values of every task's table, in their places."""

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat import tensors
from immich_ml_compat.clip.visual import OPENAI_MEAN, OPENAI_STD, Preprocessing
from immich_ml_compat.faces.detection import preprocess
from immich_ml_compat.faces.recognition import REFERENCE_LANDMARKS, align
from immich_ml_compat.ocr.boxes import order_corners
from immich_ml_compat.ocr.crops import LINE_HEIGHT, cut_line
from immich_ml_compat.ocr.detection import normalise
from immich_ml_compat.ocr.recognition import MIN_WIDTH, pad
from immich_ml_compat.tensors import _copy, look_up, pixels_of, to_bgr, to_pixels

Pixels = NDArray[np.uint8]


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(len(shape) + sum(shape)).integers(0, 256, shape, np.uint8)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
@settings(deadline=None)
def test_every_sample_is_looked_up_in_its_channels_table(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random.normal(size=(3, 256)).astype(np.float32)
    pixels = random.integers(0, 256, (height, 2 * width, 3), np.uint8)
    for view in (pixels, pixels[:, ::2], pixels[::-1, width:]):
        expected = np.stack([table[channel][view[:, :, channel]] for channel in range(3)])
        found = look_up(view, table)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


def test_blue_comes_first() -> None:
    pixels = noise(30, 40, 3)
    np.testing.assert_array_equal(to_bgr(pixels), pixels[:, :, ::-1])


@pytest.mark.parametrize(("mean", "std"), [(OPENAI_MEAN, OPENAI_STD), ((0.5,) * 3, (0.5,) * 3)])
def test_clip_gets_what_its_formula_gives(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = noise(224, 224, 3)
    expected = pixels.astype(np.float32) / np.float32(255)
    expected -= np.array(mean, np.float32)
    expected /= np.array(std, np.float32)
    tensor = Preprocessing(224, mean, std)(Image.fromarray(pixels))
    np.testing.assert_array_equal(tensor[0], expected.transpose(2, 0, 1))


def test_faces_get_what_their_formula_gives() -> None:
    pixels = noise(640, 640, 3)
    tensor, scale = preprocess(pixels)
    assert scale == 1
    expected = (pixels.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 128)
    np.testing.assert_array_equal(tensor[0], expected.transpose(2, 0, 1))


def test_text_gets_what_its_formula_gives() -> None:
    pixels = noise(LINE_HEIGHT, MIN_WIDTH, 3)
    expected = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(pad(pixels)[0], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(normalise(pixels)[0], expected[:, :, ::-1].transpose(2, 0, 1))


# ---------------------------------------------------------------- short ways to the same result


def upright(left: int, top: int, right: int, bottom: int) -> NDArray[np.float32]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


@given(st.tuples(st.integers(0, 299), st.integers(0, 299)), st.tuples(st.integers(0, 119), st.integers(0, 119)))
@settings(deadline=None)
def test_an_upright_line_is_cut_out_as_a_warp_would(xs: tuple[int, int], ys: tuple[int, int]) -> None:
    image, quad = noise(120, 300, 3), upright(min(xs), min(ys), max(xs), max(ys))
    width, height = np.ptp(xs), np.ptp(ys)
    assume(0 < height < 1.5 * width)
    matrix = cv2.getPerspectiveTransform(quad, upright(0, 0, width, height))
    crop = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    expected = cv2.resize(crop, (-(-LINE_HEIGHT * width // height), LINE_HEIGHT))
    np.testing.assert_array_equal(cut_line(Image.fromarray(to_bgr(image)), quad), expected)


def test_a_line_that_reaches_out_of_the_picture_goes_on_as_its_edge() -> None:
    image = np.full((40, 200, 3), 90, np.uint8)
    image[:, 150:] = 200
    line = cut_line(Image.fromarray(image), upright(100, 10, 220, 34))
    assert line.shape == (LINE_HEIGHT, 240, 3)
    assert line[:, :90].max() == 90
    assert line[:, 110:].min() == 200


_coordinate = st.floats(-1000, 1000, width=32)


@given(st.lists(st.tuples(_coordinate, _coordinate), min_size=4, max_size=4))
def test_corners_are_ordered_by_side_and_then_by_height(points: list[tuple[float, float]]) -> None:
    corners = np.array(points, np.float32)
    ordered = order_corners(corners)
    assert sorted(map(tuple, ordered.tolist())) == sorted(points)
    top_left, top_right, bottom_right, bottom_left = ordered
    assert max(top_left[0], bottom_left[0]) <= min(top_right[0], bottom_right[0])
    assert top_left[1] <= bottom_left[1]
    assert top_right[1] <= bottom_right[1]


@pytest.mark.parametrize(("size", "in_one_place"), [((2160, 1440), True), ((6000, 4000), False), ((3, 90_000), True)])
def test_a_preview_is_copied_in_one_go_and_a_large_photo_in_bands(size: tuple[int, int], in_one_place: bool) -> None:
    pixels = noise(size[1], size[0], 3)
    image = Image.fromarray(pixels)
    assert _copy(image, np.empty_like(pixels)) == in_one_place
    np.testing.assert_array_equal(to_pixels(image), pixels)


def test_a_black_margin_is_normalised_as_well() -> None:
    tensor, scale = preprocess(noise(320, 640, 3))
    assert scale == 1
    np.testing.assert_array_equal(tensor[0, :, 320:], np.float32(-127.5) * np.float32(1 / 128))


@pytest.mark.parametrize("band", [1, 7, 60, 61, 1 << 22])
@pytest.mark.parametrize("size", [(1, 1), (20, 31), (31, 20), (1, 90)])
def test_pixels_taken_band_by_band_are_the_images(
    band: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_BAND_PIXELS", band)
    monkeypatch.setattr(tensors, "_copy", lambda image, pixels: image.height < size[0] and _copy(image, pixels))
    image = Image.fromarray(noise(*size, 3))
    np.testing.assert_array_equal(to_pixels(image), np.asarray(image))


@given(st.integers(1, 1500), st.integers(1, 1500), st.floats(0.3, 6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_faces_are_the_same_in_pillows_own_pixels_as_in_a_copy(width: int, height: int, size: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    copy = to_pixels(image)
    landmarks = ((REFERENCE_LANDMARKS + random.normal(0, 3, (5, 2))) * size + random.uniform(-20, 300, 2)).astype(
        np.float32
    )
    with pixels_of(image) as pixels:
        assert pixels.shape == (height, width, 4), "in one place"
        np.testing.assert_array_equal(pixels[:, :, :3], copy)
        np.testing.assert_array_equal(preprocess(pixels)[0], preprocess(copy)[0])
        np.testing.assert_array_equal(align(pixels, landmarks)[:, :, :3], align(copy, landmarks))


def test_a_large_images_pixels_are_a_copy() -> None:
    image = Image.fromarray(noise(9000, 1100, 3))
    with pixels_of(image) as pixels:
        np.testing.assert_array_equal(pixels, np.asarray(image))


def test_pillows_own_pixels_cannot_be_written_to() -> None:
    with pixels_of(Image.new("RGB", (3, 2))) as pixels, pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


def test_what_goes_wrong_while_pixels_are_lent_is_told() -> None:
    with pytest.raises(ValueError, match="mine"), pixels_of(Image.new("RGB", (3, 2))):
        raise ValueError("mine")
