"""Scaling for the text detector: the stock server's pixels, on any number of threads."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from immich_ml_compat.ocr.scaling import scale

LANCZOS = Image.Resampling.LANCZOS


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@given(
    st.integers(1, 500), st.integers(1, 500), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0)
)
@settings(deadline=None, max_examples=150)
def test_pixels_are_those_of_columns_and_then_rows(
    width: int, height: int, columns: int, rows: int, threads: int, seed: int
) -> None:
    image, size = noise(width, height, seed % 1000), (32 * columns, 32 * rows)
    expected = image.resize((size[0], height), LANCZOS).resize(size, LANCZOS)
    np.testing.assert_array_equal(scale(image, size, threads), np.asarray(expected))


@pytest.mark.parametrize(
    ("side", "threads"), [((2160, 1440), 2), ((4000, 3000), 4), ((1079, 1921), 4), ((65500, 40), 4)]
)
def test_photos_are_the_same_on_several_threads(side: tuple[int, int], threads: int) -> None:
    image, size = noise(*side, 0), (32 * 23, 32 * 31)
    np.testing.assert_array_equal(scale(image, size, threads), scale(image, size))


def test_a_photo_whose_part_would_be_rounded_in_another_way_is_the_same() -> None:
    """Scaled as a photo of its own, three quarters on, a part of this one has pixels that differ by one."""
    row = np.random.default_rng(0).integers(0, 256, (2662, 4560, 3), np.uint8)[-1]
    image, size = Image.fromarray(np.repeat(row[None], 736, axis=0)), (1408, 736)
    whole = scale(image, size)
    np.testing.assert_array_equal(scale(image, size, 4), whole)
    parts = [
        np.asarray(image.resize((352, 736), LANCZOS, box=(left, 0, left + 1140, 736))) for left in range(0, 4560, 1140)
    ]
    assert (np.concatenate(parts, axis=1) != whole).any()


def test_without_another_thread_the_calling_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: ThreadPoolExecutor, *work: Any) -> Future[Any]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", none)
    image = noise(300, 200, 0)
    np.testing.assert_array_equal(scale(image, (96, 64), 4), scale(image, (96, 64)))


def test_too_little_memory_on_another_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def short_of_memory(self: Image.Image, *how: Any) -> Image.Image:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return resize(self, *how)

    monkeypatch.setattr(Image.Image, "resize", short_of_memory)
    with pytest.raises(MemoryError):
        scale(noise(300, 200, 0), (96, 64), 2)
