"""Reading order on synthetic page layouts whose order is known by construction."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from immich_ml_compat.ocr.reading_order import reading_order

Box = tuple[float, float, float, float]  # left, top, width, height; text height 20 if not given
Layout = list[Box]  # in reading order
Rng = np.random.Generator
H = 20.0


def line(x: float, y: float, width: float, height: float = H) -> Box:
    return (x, y, width, height)


def text_widths(rng: Rng, count: int, width: float, ragged: float = 0.1) -> list[float]:
    """Line widths of running text: full to a ragged edge but for the last lines of paragraphs."""
    widths: list[float] = []
    while len(widths) < count:
        lines = int(rng.integers(3, 8))
        widths += [width * (1 - ragged * float(rng.random())) for _ in range(lines - 1)]
        widths.append(width * float(rng.uniform(0.2, 0.9)))
    return widths[:count]


def paragraph(rng: Rng, x: float, y: float, width: float, count: int, pitch: float = 26.0, height: float = H) -> Layout:
    return [line(x, y + i * pitch, w, height) for i, w in enumerate(text_widths(rng, count, width))]


def split_words(rng: Rng, layout: Layout, gap: float = 0.3) -> Layout:
    """Each line as several boxes with a word space between."""
    words: Layout = []
    for x, y, width, height in layout:
        end = x + width
        while end - x > 3 * height:
            part = float(rng.uniform(0.8, 6)) * height
            if x + part + (gap + 0.5) * height > end:
                break
            words.append((x, y, part, height))
            x += part + gap * height
        words.append((x, y, end - x, height))
    return words


def jitter(rng: Rng, layout: Layout, amount: float = 0.1) -> Layout:
    """Boxes of uneven height and position, as a detector gives them; amount in text heights."""
    noise = rng.uniform(-amount, amount, (len(layout), 4)) * H
    return [(x + a, y + b, max(w + c, 1), h + d) for (x, y, w, h), (a, b, c, d) in zip(layout, noise, strict=True)]


def table(
    rng: Rng, x: float, y: float, widths: list[float], rows: int, pitch: float = 34.0, gap: float = 40.0
) -> Layout:
    """Cells row by row; each column has texts of 30 to 100 % of its width."""
    lefts = x + np.cumsum([0.0, *(w + gap for w in widths[:-1])])
    return [
        line(float(left), y + row * pitch, width * float(rng.uniform(0.3, 1)))
        for row in range(rows)
        for left, width in zip(lefts, widths, strict=True)
    ]


def priced(rng: Rng, x: float, y: float, width: float, rows: int, pitch: float) -> Layout:
    """Receipt or menu rows: a name on the left, a price flush right."""
    rows_: Layout = []
    for row in range(rows):
        price = float(rng.uniform(2, 4)) * H
        rows_ += [line(x, y + row * pitch, width * float(rng.uniform(0.2, 0.65)))]
        rows_ += [line(x + width - price, y + row * pitch, price)]
    return rows_


def plain_page(rng: Rng) -> Layout:
    return [line(60, 40, 400, 40), *paragraph(rng, 60, 120, 800, 20), *paragraph(rng, 60, 680, 800, 10)]


def plain_page_of_words(rng: Rng) -> Layout:
    return split_words(rng, plain_page(rng))


def two_columns(rng: Rng) -> Layout:
    return paragraph(rng, 60, 100, 380, 24) + paragraph(rng, 470, 100, 380, 20)


def two_columns_unaligned(rng: Rng) -> Layout:
    return paragraph(rng, 60, 100, 380, 24) + paragraph(rng, 470, 111, 380, 20, pitch=28)


def two_columns_of_words(rng: Rng) -> Layout:
    return split_words(rng, two_columns(rng))


def paper(rng: Rng) -> Layout:
    """Title, authors, two columns, a caption across both, two columns, footer."""
    return [
        line(150, 40, 600, 40),
        line(300, 95, 300),
        *paragraph(rng, 60, 160, 380, 15),
        *paragraph(rng, 470, 160, 380, 15),
        line(60, 760, 790),
        line(60, 786, 500),
        *paragraph(rng, 60, 840, 380, 10),
        *paragraph(rng, 470, 845, 380, 10),
        line(430, 1150, 40),
    ]


def newspaper(rng: Rng) -> Layout:
    """Headline, then three columns, the first two under a headline of their own."""
    return [
        line(60, 20, 900, 60),
        line(60, 120, 560, 36),
        *paragraph(rng, 60, 180, 280, 20),
        *paragraph(rng, 365, 180, 280, 20),
        *paragraph(rng, 670, 120, 280, 22),
    ]


def three_columns_of_words(rng: Rng) -> Layout:
    columns = [paragraph(rng, 60 + i * 305, 100, 280, 22) for i in range(3)]
    return split_words(rng, [box for column in columns for box in column])


def plain_table(rng: Rng) -> Layout:
    return [line(60, 20, 300, 30), *table(rng, 60, 80, [240, 90, 90, 90], 12)]


def wide_table(rng: Rng) -> Layout:
    """Columns of names and addresses as wide as newspaper columns."""
    return table(rng, 60, 80, [240, 300, 260], 15)


def table_with_gaps(rng: Rng) -> Layout:
    """Some empty cells."""
    cells = table(rng, 60, 80, [240, 90, 90, 90], 12)
    return [cell for i, cell in enumerate(cells) if i % 4 == 0 or rng.random() > 0.2]


def table_with_wrapped_cells(rng: Rng) -> Layout:
    """The first cell has one to three lines, the others one, at its top."""
    cells: Layout = []
    y = 80.0
    for _ in range(10):
        lines = int(rng.integers(1, 4))
        widths = [240 * float(rng.uniform(0.9, 1)) for _ in range(lines - 1)] + [240 * float(rng.uniform(0.3, 0.8))]
        cells += [line(60, y + 25 * i, width) for i, width in enumerate(widths)]
        cells += [line(340, y, 70), line(460, y, 60)]
        y += 25 * lines + 20
    return cells


def table_with_centred_cells(rng: Rng) -> Layout:
    """As before, the single lines halfway down the row."""
    cells: Layout = []
    y = 80.0
    for _ in range(10):
        lines = int(rng.integers(1, 3))
        middle = y + 25 * (lines - 1) / 2
        cells += [line(60, y + 25 * i, 240 * float(rng.uniform(0.6, 1))) for i in range(lines)]
        cells += [line(340, middle, 70), line(460, middle, 60)]
        y += 25 * lines + 20
    return cells


def table_of_prose(rng: Rng) -> Layout:
    """Two wide columns of wrapped text, to be read row by row."""
    cells: Layout = []
    y = 80.0
    for left, right in ((3, 2), (2, 4), (3, 3), (4, 3), (2, 3), (3, 1)):
        for x, lines in ((60.0, left), (420.0, right)):
            widths = [320 * float(rng.uniform(0.9, 1)) for _ in range(lines - 1)] + [320 * float(rng.uniform(0.3, 0.8))]
            cells += [line(x, y + 25 * i, width) for i, width in enumerate(widths)]
        y += 25 * max(left, right) + 20
    return cells


def receipt(rng: Rng) -> Layout:
    return [
        line(180, 20, 200, 34),
        line(150, 70, 260),
        *priced(rng, 60, 120, 440, 12, 24),
        line(60, 430, 100, 28),
        line(390, 430, 110, 28),
        line(180, 490, 200),
    ]


def form(rng: Rng) -> Layout:
    """Two label and value pairs a row."""
    return [line(60, 20, 350, 34), *table(rng, 60, 90, [130, 240, 110, 220], 9, pitch=48, gap=25)]


def menu(rng: Rng) -> Layout:
    """Sections of dishes with prices under headings."""
    return [
        line(300, 20, 250, 50),
        line(60, 110, 150, 30),
        *priced(rng, 60, 160, 740, 7, 40),
        line(60, 480, 180, 30),
        *priced(rng, 60, 530, 740, 5, 40),
    ]


def chat(rng: Rng) -> Layout:
    """Messages of one or two short lines, left and right in turn, with the time under each."""
    boxes: Layout = []
    y = 40.0
    for i in range(12):
        for _ in range(int(rng.integers(1, 3))):
            width = float(rng.uniform(60, 230))
            boxes.append(line(40 if i % 2 else 560 - width, y, width))
            y += 26
        boxes.append(line(40 if i % 2 else 520, y, 40, 14))
        y += 50
    return boxes


def bulleted_list(rng: Rng) -> Layout:
    """Hanging numbers, items of one to three lines."""
    boxes: Layout = []
    y = 40.0
    for _ in range(10):
        boxes.append(line(60, y, 24))
        for width in text_widths(rng, int(rng.integers(1, 4)), 600):
            boxes.append(line(110, y, width))
            y += 26
        y += 12
    return boxes


def vertical(layout: Layout, page_width: float = 1000.0) -> Layout:
    """A horizontal layout turned into vertical writing: lines become columns from right to left."""
    return [(page_width - y - height, x, height, width) for x, y, width, height in layout]


def vertical_page(rng: Rng) -> Layout:
    return vertical(paragraph(rng, 100, 40, 700, 22, pitch=36))


def vertical_page_with_title(rng: Rng) -> Layout:
    return [line(300, 20, 400, 40), *vertical(paragraph(rng, 100, 40, 700, 22, pitch=36))]


def vertical_page_of_two_tiers(rng: Rng) -> Layout:
    return vertical(paragraph(rng, 60, 40, 340, 22, pitch=36) + paragraph(rng, 440, 40, 340, 22, pitch=36))


def table_beside_tall_box(rng: Rng) -> Layout:
    """A title over everything, then a logo as high as the table on its right."""
    return [line(60, 20, 600, 30), line(60, 80, 60, 400), *table(rng, 180, 80, [200, 90, 90], 12)]


LAYOUTS: list[Callable[[Rng], Layout]] = [
    plain_page,
    plain_page_of_words,
    two_columns,
    two_columns_unaligned,
    two_columns_of_words,
    paper,
    newspaper,
    three_columns_of_words,
    plain_table,
    wide_table,
    table_with_gaps,
    table_with_wrapped_cells,
    table_with_centred_cells,
    table_of_prose,
    receipt,
    form,
    menu,
    chat,
    bulleted_list,
    table_beside_tall_box,
    vertical_page,
    vertical_page_with_title,
    vertical_page_of_two_tiers,
]


def paper_with_running_head(rng: Rng) -> Layout:
    """A running head in two parts, read before the columns, whose headings are larger and unaligned."""
    boxes = [line(60, 30, 200, 16), line(700, 30, 150, 16)]
    for x in (60.0, 470.0):
        y = 100.0
        for lines in rng.integers(5, 12, 3):
            boxes.append(line(x, y, float(rng.uniform(120, 300)), 24))
            boxes += paragraph(rng, x, y + 36, 380, int(lines))
            y += 52 + 26 * int(lines)
    return boxes


def menu_of_two_columns(rng: Rng) -> Layout:
    return [line(250, 20, 400, 50), *priced(rng, 60, 120, 380, 10, 40), *priced(rng, 520, 137, 380, 9, 44)]


def four_narrow_columns(rng: Rng) -> Layout:
    columns = [paragraph(rng, 40 + i * 230, 100, 205, 30) for i in range(4)]
    return [line(40, 10, 900, 60), *(box for column in columns for box in column)]


def invoice(rng: Rng) -> Layout:
    return [
        line(60, 30, 300, 40),
        *(line(60, 110 + 26 * i, float(rng.uniform(120, 240))) for i in range(4)),
        *table(rng, 60, 270, [60, 320, 60, 90], 8, pitch=36, gap=30),
        *(box for i in range(3) for box in (line(420, 590 + 32 * i, 100), line(580, 590 + 32 * i, 80))),
        line(60, 720, 620),
    ]


def calendar(rng: Rng) -> Layout:
    days = [line(60 + 120 * i, 140 + 90 * week, 24 if i + 7 * week > 9 else 12) for week in range(5) for i in range(7)]
    return [line(300, 10, 300, 40), *(line(60 + 120 * i, 80, 60) for i in range(7)), *days]


def transcript(rng: Rng) -> Layout:
    """Speakers on the left of what they say."""
    boxes: Layout = []
    y = 60.0
    for _ in range(8):
        lines = int(rng.integers(2, 6))
        boxes.append(line(60, y, float(rng.uniform(60, 110))))
        boxes += [line(220, y + 26 * i, 600 * float(rng.uniform(0.9, 1))) for i in range(lines - 1)]
        boxes.append(line(220, y + 26 * (lines - 1), 300))
        y += 26 * lines + 14
    return boxes


def columns_then_table(rng: Rng) -> Layout:
    columns = paragraph(rng, 60, 60, 380, 12) + paragraph(rng, 470, 60, 380, 12)
    return [*columns, line(60, 420, 500), *table(rng, 60, 470, [200, 160, 120, 120], 8)]


def slide(rng: Rng) -> Layout:
    """Two lists side by side, in different sizes."""
    left = [line(60, 150 + 50 * i, float(rng.uniform(150, 330)), 26) for i in range(5)]
    return [
        line(60, 30, 700, 60),
        *left,
        *(line(480, 168 + 42 * i, float(rng.uniform(150, 330)), 22) for i in range(6)),
    ]


def double_spaced_columns(rng: Rng) -> Layout:
    return paragraph(rng, 60, 60, 380, 14, pitch=52) + paragraph(rng, 480, 60, 380, 14, pitch=52)


def vertical_page_of_three_tiers(rng: Rng) -> Layout:
    tiers = [paragraph(rng, 60 + i * 300, 40, 270, 20, pitch=34) for i in range(3)]
    return vertical([box for tier in tiers for box in tier])


def signs(rng: Rng) -> Layout:
    return [
        line(500, 60, 200, 60),
        line(80, 200, 300, 50),
        line(90, 260, 250, 40),
        line(600, 420, 180, 30),
        line(590, 460, 200, 30),
        line(100, 800, 400, 70),
    ]


def survey(rng: Rng) -> Layout:
    """Questions of one or two lines, with five boxes to tick beside each."""
    boxes: Layout = []
    y = 60.0
    for _ in range(9):
        lines = int(rng.integers(1, 3))
        boxes += [line(60, y + 25 * i, 380 * float(rng.uniform(0.9, 1))) for i in range(lines - 1)]
        boxes.append(line(60, y + 25 * (lines - 1), 200))
        boxes += [line(480 + 80 * i, y + 12.5 * (lines - 1), 20) for i in range(5)]
        y += 25 * lines + 24
    return boxes


# Written before the code was first run on them: the menu, the slide and the double spacing then led to changes.
HELD_OUT: list[Callable[[Rng], Layout]] = [
    paper_with_running_head,
    menu_of_two_columns,
    four_narrow_columns,
    invoice,
    calendar,
    transcript,
    columns_then_table,
    slide,
    double_spaced_columns,
    vertical_page_of_three_tiers,
    signs,
    survey,
]


def index_of_names(rng: Rng) -> Layout:
    """Aligned columns of short entries: the same boxes could be a table."""
    return [line(60 + 280 * i, 60 + 26 * j, float(rng.uniform(80, 230))) for i in range(3) for j in range(30)]


def captions_of_two_lines(rng: Rng) -> Layout:
    """Side by side: the same boxes could be two rows of a form."""
    captions = [b for x in (60, 480) for b in (line(x, 400, 360), line(x, 426, float(rng.uniform(100, 300))))]
    return [*paragraph(rng, 60, 60, 800, 5), *captions, *paragraph(rng, 60, 520, 800, 5)]


def table_of_row_groups(rng: Rng) -> Layout:
    """One label, halfway down, for three rows."""
    boxes: Layout = []
    for top in (60.0, 200.0, 340.0, 480.0):
        cells = [(line(240, top + 36 * i, float(rng.uniform(80, 200))), line(500, top + 36 * i, 70)) for i in range(3)]
        boxes += [line(60, top + 36, 120), *(cell for row in cells for cell in row)]
    return boxes


def vertical_page_with_number(rng: Rng) -> Layout:
    """A short horizontal page number under the columns."""
    return [*vertical(paragraph(rng, 90, 40, 600, 22, pitch=36)), line(480, 730, 30)]


def text_beside_labels(rng: Rng) -> Layout:
    """A paragraph beside the few labels of a drawing, some by chance level with its lines."""
    labels = [line(600, 75, 60, 14), line(560, 150, 40, 14), line(680, 215, 60, 14), line(600, 330, 80, 14)]
    return [*paragraph(rng, 60, 60, 400, 15), *labels]


NOT_SOLVED: list[Callable[[Rng], Layout]] = [
    index_of_names,
    captions_of_two_lines,
    table_of_row_groups,
    vertical_page_with_number,
    text_beside_labels,
]


def quads(layout: Layout, degrees: float = 0.0) -> NDArray[np.float32]:
    """Corner points of the boxes, the page turned about the origin."""
    x, y, width, height = np.array(layout, np.float64).reshape(-1, 4).T
    corners = np.stack([x, y, x + width, y, x + width, y + height, x, y + height], axis=-1).reshape(-1, 4, 2)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: NDArray[np.float64] = corners @ turn
    return turned.astype(np.float32)


def read(rng: Rng, layout: Layout, degrees: float = 0.0) -> list[int]:
    """The reading order found for the shuffled boxes, as positions in the layout; sorted if all is right."""
    shuffled = rng.permutation(len(layout))
    order = reading_order(quads(layout, degrees)[shuffled])
    return [int(shuffled[i]) for i in order]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("degrees", [-10, -3, 0, 1, 10])
@pytest.mark.parametrize("layout", LAYOUTS + HELD_OUT)
def test_reads_layouts_as_constructed(layout: Callable[[Rng], Layout], degrees: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = jitter(rng, layout(rng), 0.06)
    assert read(rng, boxes, degrees) == list(range(len(boxes)))


@pytest.mark.parametrize("layout", NOT_SOLVED)
@pytest.mark.xfail(strict=True, reason="needs more than the geometry of the boxes, or a rule not worth its length")
def test_known_limits(layout: Callable[[Rng], Layout]) -> None:
    rng = np.random.default_rng(0)
    boxes = layout(rng)
    assert read(rng, boxes) == list(range(len(boxes)))


def test_line_of_words_of_uneven_height() -> None:
    words = [line(60, 100, 50, 20), line(116, 106, 40, 14), line(162, 98, 90, 28), line(260, 104, 30, 12)]
    below = [line(60, 130, 100, 20), line(170, 127, 60, 24)]
    assert read(np.random.default_rng(0), words + below) == list(range(6))


def test_tilt_is_taken_from_long_boxes() -> None:
    """Two columns of a page tilted by ten degrees, with level single characters strewn in the margin."""
    rng = np.random.default_rng(0)
    tilted = quads(two_columns(rng), 10)
    level = quads([line(-900, 60.0 * i, 15) for i in range(20)])
    order = [i for i in reading_order(np.concatenate([tilted, level])) if i < len(tilted)]
    assert order == list(range(len(tilted)))


def test_boxes_on_top_of_each_other_beside_their_like() -> None:
    """Too uneven to be joined, without a gap between them."""
    pile = [line(x, y, 300, height) for x in (60, 400) for y, height in ((100, 20), (85, 50), (20, 180))]
    assert sorted(reading_order(quads(pile))) == list(range(6))


def test_no_box_and_one_box() -> None:
    assert reading_order(np.zeros((0, 4, 2), np.float32)) == []
    assert reading_order(quads([line(1, 2, 3)])) == [0]


def test_identical_boxes_in_the_order_given() -> None:
    assert reading_order(np.zeros((50, 4, 2), np.float32)) == list(range(50))
    assert reading_order(quads([line(5, 5, 100)] * 50)) == list(range(50))


@pytest.mark.parametrize("shape", ["staircase", "nest"])
def test_a_thousand_levels(shape: str) -> None:
    if shape == "staircase":
        boxes = [line(60 + 60 * i, 30 * i, 40) for i in range(1000)]
    else:  # a box on the left of, then one above, all that follow
        boxes = [line(40 * i, 40 * i, *((10, 41000 - 40 * i) if i % 2 else (41000 - 40 * i, 10))) for i in range(1000)]
    order = reading_order(quads(boxes))
    assert order == list(range(1000)) if shape == "staircase" else sorted(order) == list(range(1000))


def test_a_thousand_words_in_time() -> None:
    rng = np.random.default_rng(0)
    words = split_words(rng, [box for i in range(3) for box in paragraph(rng, 60 + i * 720, 60, 680, 60)])[:1000]
    boxes = quads(words)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        reading_order(boxes)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3  # about 0.03; a quadratic loop in Python would take seconds


# Whole numbers of limited size: shifts and scalings by powers of two are then exact.
coordinates = st.integers(-2000, 2000).map(float)
any_quads = st.integers(0, 14).flatmap(lambda n: arrays(np.float32, (n, 4, 2), elements=coordinates))
upright_boxes = st.lists(
    st.tuples(
        st.integers(0, 600).map(float),
        st.integers(0, 600).map(float),
        st.integers(0, 200).map(float),
        st.integers(0, 40).map(float),
    ),
    max_size=30,
).map(quads)
any_boxes = st.one_of(any_quads, upright_boxes)


@settings(deadline=None)
@given(any_boxes)
def test_is_a_permutation(boxes: NDArray[np.float32]) -> None:
    assert sorted(reading_order(boxes)) == list(range(len(boxes)))


@settings(deadline=None)
@given(any_boxes, st.randoms(use_true_random=False))
def test_does_not_depend_on_input_order(boxes: NDArray[np.float32], random: Random) -> None:
    shuffled = list(range(len(boxes)))
    random.shuffle(shuffled)
    again = boxes[shuffled]
    np.testing.assert_array_equal(again[reading_order(again)], boxes[reading_order(boxes)])


@settings(deadline=None)
@given(any_boxes, st.integers(-4000, 4000), st.integers(-4000, 4000), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_does_not_depend_on_place_and_scale(boxes: NDArray[np.float32], x: int, y: int, scale: float) -> None:
    moved = (boxes + np.array([x, y], np.float32)) * np.float32(scale)
    assert reading_order(moved) == reading_order(boxes)


@settings(deadline=None)
@given(
    st.integers(0, 10).flatmap(
        lambda n: arrays(np.float32, (n, 4, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32))
    )
)
def test_takes_any_finite_numbers(boxes: NDArray[np.float32]) -> None:
    assert sorted(reading_order(boxes)) == list(range(len(boxes)))
