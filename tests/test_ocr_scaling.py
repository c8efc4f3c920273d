"""Scaling for the text detector: the stock server's pixels, on any number of threads."""

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


def test_a_width_that_cannot_be_halved_is_scaled_in_one_piece() -> None:
    image = noise(100, 80, 0)
    np.testing.assert_array_equal(scale(image, (33, 32), 4), scale(image, (33, 32)))


def test_without_another_thread_the_calling_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: ThreadPoolExecutor, *work: Any) -> Future[Any]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", none)
    image = noise(300, 200, 0)
    np.testing.assert_array_equal(scale(image, (96, 64), 4), scale(image, (96, 64)))


def test_too_little_memory_on_another_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def short_of_memory(self: Image.Image, size: tuple[int, int], *how: Any, **more: Any) -> Image.Image:
        if more.get("box", (0,))[0] > 0:
            raise MemoryError
        return resize(self, size, *how, **more)

    monkeypatch.setattr(Image.Image, "resize", short_of_memory)
    with pytest.raises(MemoryError):
        scale(noise(300, 200, 0), (96, 64), 2)
