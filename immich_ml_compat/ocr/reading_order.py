"""Reading order of the text boxes of one page, from their geometry alone.

The page is brought upright (skew removed; vertical writing turned so that its columns become lines), the words
of one line are joined into segments, and the segments are ordered by a recursive XY-cut (Nagy & Seth,
"Hierarchical representation of optically scanned documents", ICPR 1984). What a plain XY-cut leaves open is
which cut comes first where both are possible. The rule here: white strips that divide columns of running text
come first, found as tall empty rectangles between obstacles as by Breuel ("High performance document layout
analysis", SDIUT 2003); then rows; then the cells of a row. Columns are told from the cells of a table by three
signs, see `_separates_columns`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Ints = NDArray[np.intp]
_Bools = NDArray[np.bool_]

# All lengths are in units of the page's median text height, unless a comment says otherwise.
_ELONGATED = 1.5  # long side / short side from which a box shows its writing direction (two characters and more)
_MARGINALIA = 3.0  # a box this long across the writing direction is a title or stamp, not a narrow "1" or "I"
_WORD_GAP = 0.7  # times the boxes' own height: word spaces are about 0.3, stretched ones up to 0.6
_GUTTER = 0.8  # the narrowest gutter: printed ones are 1.5 and more, a detector's box margins take some of it
_CORE = 0.25  # share cut off a box's top and bottom, as boxes of neighbouring lines often overlap by their margins
_TRIMMED_HEIGHT = 2.0  # of higher boxes no more is cut off: a logo would lose whole lines beside it
_SAME_LINE = 0.25  # centres this close are on one line: half a box height would already be a neighbour's margin
_COLUMN_LINES = 3  # fewer lines side by side are as likely a row of cells
_COLUMN_WIDTH = 8.0  # about 18 Latin letters: narrower running text is rare, while dates and prices are 3 to 7
_CELL_WIDTH = 5.0  # about 11 Latin letters: text seldom wraps in a narrower cell
_FULL_LINE = 0.8  # share of the column's width that a line reaches before a long word wraps
_FULL_SHARE = 0.6  # share of such lines in running text, given paragraphs of three lines and more
_MOST = 0.6  # share that counts as "most": by chance, lines of two unaligned columns meet in 0.3 to 0.4 of cases
_ROW_GAP = 0.3  # by how much the gap between table rows exceeds the gap between the lines of one cell
_SECTION_GAP = 1.2  # white space of a skipped line: it sets a running head or a foot apart from the columns
_ROW_LINES = 6  # a region of more lines than this is not one table row
_CANDIDATES = 24  # strips examined per cut; bounds the time where a large table has very many


@dataclass(frozen=True)
class _Segments:
    """Axis-aligned text segments on the upright page; each array float64 [M], in median text heights."""

    left: _Floats
    top: _Floats
    right: _Floats
    bottom: _Floats

    def middle(self, index: _Ints) -> _Floats:
        return (self.top[index] + self.bottom[index]) / 2

    def downward_widths(self, index: _Ints) -> _Floats:
        return (self.right - self.left)[index[np.argsort(self.middle(index), kind="stable")]]

    def bands(self, index: _Ints, trim: float = _CORE) -> _Ints:
        """Number, from the top, of the horizontal band of text each segment is in; bands do not overlap."""
        margin = trim * np.minimum(self.bottom[index] - self.top[index], _TRIMMED_HEIGHT)
        return _clusters(self.top[index] + margin, self.bottom[index] - margin, 0.0)

    def gaps(self, index: _Ints, bands: _Ints) -> _Floats:
        """White space between each band of segments and the next; less than 0 where their margins overlap."""
        order = np.argsort(bands, kind="stable")
        starts = np.flatnonzero(np.diff(bands[order], prepend=-1))
        top = np.minimum.reduceat(self.top[index[order]], starts)
        return top[1:] - np.maximum.reduceat(self.bottom[index[order]], starts)[:-1]


def reading_order(boxes: NDArray[np.float32]) -> list[int]:
    """Order in which a person reads the text boxes of a page.

    Columns of running text are read one after the other, tables row by row, vertical (CJK) writing in columns
    from right to left. The order depends on the set of boxes only, up to the numbering of identical boxes.

    Args:
        boxes: Finite float32 [N, 4, 2], corners (x, y) top-left, top-right, bottom-right, bottom-left in pixels,
            x to the right and y down.

    Returns:
        A permutation of range(N): the indices of the boxes in reading order.
    """
    quads = np.asarray(boxes, np.float64).reshape(-1, 4, 2)
    if len(quads) < 2:
        return list(range(len(quads)))
    canonical = np.lexsort(quads.reshape(-1, 8).T[::-1])
    edges = _upright(quads[canonical] - quads.min(axis=(0, 1)))
    by_x = np.argsort(edges[0] + edges[2], kind="stable")
    edges = edges[:, by_x]
    words = _join_words(*edges)
    left, right = np.array([(edges[0, word].min(), edges[2, word].max()) for word in words]).T
    top, bottom = np.array([edges[1::2, word].mean(axis=1) for word in words]).T
    order = np.concatenate([words[i] for i in _order(_Segments(left, top, right, bottom))])
    return [int(i) for i in canonical[by_x[order]]]


def _upright(quads: _Floats) -> _Floats:
    """Deskewed boxes [4, N], left, top, right, bottom, in writing coordinates: y runs from line to line."""
    across = (quads[:, 1] - quads[:, 0] + quads[:, 2] - quads[:, 3]) / 2
    down = (quads[:, 3] - quads[:, 0] + quads[:, 2] - quads[:, 1]) / 2
    width, height = np.hypot(*across.T), np.hypot(*down.T)
    tall = height > _ELONGATED * width
    # By length, not number: a few page numbers and captions do not outvote columns of text.
    if height[tall].sum() > np.maximum(width, height)[~tall].sum():
        quads = np.stack([quads[..., 1], -quads[..., 0]], axis=-1)
        across = np.stack([down[:, 1], -down[:, 0]], axis=-1)
        width, height = height, width
    angle = _tilt(across, width, height)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Means of the outer corner pairs: unlike the extreme corners they do not grow with a box's own skew.
    corners = np.sort(quads @ rotation, axis=1)
    near, far = (corners[:, 0] + corners[:, 1]) / 2, (corners[:, 2] + corners[:, 3]) / 2
    heights = (far - near)[:, 1]
    sizes = heights[heights > 0] if (heights > 0).any() else np.array([np.ptp(corners)])
    return np.concatenate([near.T, far.T]) / (float(np.median(sizes)) or 1.0)


def _tilt(along: _Floats, length: _Floats, thickness: _Floats) -> float:
    """Skew of the page in radians: median direction of its elongated boxes, weighted by length in pixels."""
    elongated = length > _ELONGATED * thickness
    if not elongated.any():
        return 0.0
    angles = np.arctan2(along[elongated, 1], along[elongated, 0])
    angles = (angles + np.pi / 2) % np.pi - np.pi / 2  # a direction, not an arrow
    order = np.argsort(angles, kind="stable")
    weight = np.cumsum(length[elongated][order])
    return float(angles[order][np.searchsorted(weight, weight[-1] / 2)])


def _join_words(left: _Floats, top: _Floats, right: _Floats, bottom: _Floats) -> list[_Ints]:
    """Boxes, sorted by horizontal centre, chained into the unbroken text segments they form; indices of each."""
    height = bottom - top
    low, high = np.minimum.outer(height, height), np.maximum.outer(height, height)
    overlap = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    gap = left[None, :] - right[:, None]
    joined = np.triu((overlap >= low / 2) & (high <= 2 * low) & (gap < _WORD_GAP * low), 1)
    following = joined.argmax(axis=1)
    preceding = len(height) - 1 - joined[::-1].argmax(axis=0)
    label = np.arange(len(height))
    for i in np.flatnonzero(joined.any(axis=1)):
        if preceding[following[i]] == i:  # mutual, or two lines could meet in one box
            label[following[i]] = label[i]
    return _pieces(np.arange(len(height)), label)


def _clusters(low: _Floats, high: _Floats, min_gap: float) -> _Ints:
    """Cluster number of each interval, ascending; clusters are more than min_gap apart."""
    order = np.argsort(low, kind="stable")
    reach = np.maximum.accumulate(high[order])
    label = np.zeros(len(low), np.intp)
    label[order[1:]] = np.cumsum(low[order[1:]] - reach[:-1] > min_gap)
    return label


def _pieces(index: _Ints, label: NDArray[np.intp]) -> list[_Ints]:
    """The members of index grouped by label, in ascending label, otherwise in the given order."""
    order = np.argsort(label, kind="stable")
    return np.split(index[order], np.flatnonzero(np.diff(label[order])) + 1)


def _order(page: _Segments) -> list[int]:
    """Segment indices in reading order: the recursive XY-cut, on an explicit stack so that depth is no limit."""
    order: list[int] = []
    stack = _set_apart_marginalia(page)[::-1]
    while stack:
        region = stack.pop()
        for cut in (_cut_columns, _cut_rows, _cut_cells):
            pieces = cut(page, region) if len(region) > 1 else []
            if len(pieces) > 1:
                stack.extend(reversed(pieces))
                break
        else:
            order.extend(_line_by_line(page, region) if len(region) > 1 else region)
    return order


def _line_by_line(page: _Segments, region: _Ints) -> _Ints:
    """What no straight cut divides: from top to bottom, and from left to right within half a text height."""
    middle = page.middle(region)
    line = middle.copy()
    start = -np.inf
    for i in np.argsort(middle, kind="stable"):
        start = line[i] = start if middle[i] - start <= 2 * _SAME_LINE else middle[i]
    return region[np.lexsort((page.left[region], line))]


def _set_apart_marginalia(page: _Segments) -> list[_Ints]:
    """Regions to read in turn: boxes written across the page's direction before all else, the page, those after.

    This is the horizontal title over a vertical page, or the stamp along the margin of a horizontal one.
    """
    region = np.arange(len(page.left))
    height = page.bottom - page.top
    across = (height > _MARGINALIA) & (height > _ELONGATED * (page.right - page.left))
    if across.all() or not across.any():
        return [region]
    before = across & (page.right <= page.left[~across].min())
    after = across & (page.left >= page.right[~across].max()) & ~before
    single = [region[side][:, None] for side in (before, after)]
    return [*single[0], region[~before & ~after], *single[1]]


def _cut_columns(page: _Segments, region: _Ints) -> list[_Ints]:
    """Region cut at the gutters between columns of running text, and above and below those columns."""
    if len(region) < 2 * _COLUMN_LINES:
        return [region]
    bands = page.bands(region)
    region, bands = np.concatenate(_pieces(region, bands)), np.sort(bands)
    starts = np.searchsorted(bands, np.arange(bands[-1] + 1))
    edges = np.unique(page.right[region])[:, None]
    before, after = page.right[region] <= edges, page.left[region] >= edges + _GUTTER
    blocked = np.logical_or.reduceat(~(before | after), starts, axis=1)
    # A candidate is a strip right of an edge, in a run of bands without a segment in its way.
    run = np.cumsum(blocked, axis=1) + (len(starts) + 1) * np.arange(len(edges))[:, None]

    def per_run(flags: _Bools) -> _Ints:
        return np.bincount(
            run[~blocked], np.add.reduceat(flags, starts, axis=1, dtype=np.int32)[~blocked], run.size + 1
        )

    a_side, b_side = per_run(before), per_run(after)
    lines = np.minimum(a_side, b_side) * (per_run(page.right[region] == edges) > 0)
    candidates = np.flatnonzero(lines >= _COLUMN_LINES)
    if not len(candidates):
        return [region]
    best_first = np.lexsort((-(a_side + b_side)[candidates], -lines[candidates]))
    previous, following = _neighbours(page, region)
    part, rejected = np.zeros(len(region), np.intp), np.zeros(len(region), np.bool_)
    taken = np.full(len(starts), -1)
    for candidate in candidates[best_first[:_CANDIDATES]]:
        strip = candidate // (len(starts) + 1)
        span = np.flatnonzero((run[strip] == candidate) & ~blocked[strip])
        if (taken[span] >= 0).any():
            continue
        inside = (bands >= span[0]) & (bands <= span[-1])
        a = inside & before[strip] & (following >= edges[strip] + _GUTTER)
        b = inside & after[strip] & (previous <= edges[strip])
        if min(a.sum(), b.sum()) < _COLUMN_LINES or rejected[b].all():
            continue
        inside[inside] = _is_body(page, region[inside], bands[inside], before[strip][inside])
        a, b = a & inside, b & inside
        if _separates_columns(page, region[a], region[b]):
            part[inside] = 3 * span[0] + np.where(before[strip], 1, 2)[inside]
            taken[bands[inside]] = bands[inside]
        else:
            rejected |= b  # nor is a part of these lines a column, where a ragged edge leaves it another strip
    other = 3 * (np.maximum.accumulate(taken) + 1)  # the bands between two spans stay together
    return _pieces(region, np.where(part > 0, part, other[bands]))


def _neighbours(page: _Segments, region: _Ints) -> tuple[_Floats, _Floats]:
    """For each segment the edge facing it of the next segment to its left and right, in the same band of y."""
    top, bottom, left, right = page.top[region], page.bottom[region], page.left[region], page.right[region]
    beside = (np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)) > 0
    later = beside & (left[None, :] >= right[:, None])
    earlier = beside & (right[None, :] <= left[:, None])
    return np.where(earlier, right, -np.inf).max(axis=1), np.where(later, left, np.inf).min(axis=1)


def _is_body(page: _Segments, lines: _Ints, bands: _Ints, before: _Bools) -> _Bools:
    """Whether each line is of the columns' body: not of the few that white space sets apart at either end."""
    bands = bands - bands[0]
    gaps = page.gaps(lines, bands)
    usual = max(float(np.median(gaps)), 0.0) if len(gaps) > 2 else 0.0
    wide = np.flatnonzero(gaps > usual + _SECTION_GAP)
    if not len(wide):
        return np.ones(len(lines), np.bool_)
    head, foot = bands <= wide[0], bands > wide[-1]
    few = [max((end & before).sum(), (end & ~before).sum()) < _COLUMN_LINES for end in (head, foot)]
    body: _Bools = ~(head & few[0] | foot & few[1])
    return body


def _separates_columns(page: _Segments, a: _Ints, b: _Ints) -> bool:
    """Whether the gutter between the lines a and b at its two sides divides running text, not table cells.

    The lines must stand side by side (the two sides of a chat do not). Then they are columns if the lines do not
    form rows across the gutter, or if both sides are wide and mostly filled, as wrapped text is and table cells are
    not, unless gaps at the same heights cut both into the rows of a table of wrapped cells.
    """
    if min(len(a), len(b)) < _COLUMN_LINES:
        return False
    beside = np.minimum.outer(page.bottom[a], page.bottom[b]) - np.maximum.outer(page.top[a], page.top[b]) > 0
    facing = min(beside.any(axis=0).sum(), beside.any(axis=1).sum())
    if facing < max(_COLUMN_LINES, min(len(a), len(b)) / 2):
        return False
    if not _share_rows(page, a, b):
        return True
    return _is_running_text(page, a) and _is_running_text(page, b) and not _share_breaks(page, a, b)


def _share_rows(page: _Segments, a: _Ints, b: _Ints) -> bool:
    """Whether the lines of two neighbouring columns form rows: on common lines, or between common gaps."""
    fewer, more = sorted((a, b), key=len)
    offset = np.abs(page.middle(fewer)[:, None] - page.middle(more))
    if (offset.min(axis=1) < _SAME_LINE).mean() >= _MOST:
        return True
    both = np.concatenate([fewer, more])
    side = (np.arange(len(both)) >= len(fewer)).astype(np.intp)
    band = page.bands(both, trim=0.0)
    top, bottom = np.full((2, 2, len(both)), [[[np.inf]], [[-np.inf]]])
    np.minimum.at(top, (side, band), page.top[both])
    np.maximum.at(bottom, (side, band), page.bottom[both])
    in_both = np.isfinite(top).all(axis=0)
    top, bottom = top[:, in_both], bottom[:, in_both]
    first_line, middle = (np.abs(np.diff(y, axis=0)) for y in (top, (top + bottom) / 2))
    return int((np.minimum(first_line, middle) < _SAME_LINE).sum()) >= _MOST * len(fewer)


def _is_running_text(page: _Segments, column: _Ints) -> bool:
    """Whether the column is wide and most of its lines, the last aside, fill it."""
    width = page.downward_widths(column)
    full_width = float(np.percentile(width, 75))  # not the maximum: a heading may reach into the next column
    full, lines = int((width[:-1] >= _FULL_LINE * full_width).sum()), len(width) - 1
    # One line more than the share asks, as a few cells are easily of one length by chance.
    return full_width >= _COLUMN_WIDTH and full >= min(lines, _FULL_SHARE * lines + 1)


def _share_breaks(page: _Segments, a: _Ints, b: _Ints) -> bool:
    """Whether the wider line gaps of two neighbouring columns are at the same heights, as between table rows."""
    own, other, common = (page.gaps(lines, page.bands(lines)) for lines in (a, b, np.concatenate([a, b])))
    usual = np.concatenate([own, other])
    wide = (np.percentile(usual, 25) if len(usual) else 0.0) + _ROW_GAP
    rows = np.count_nonzero(common > wide)
    return bool(rows >= 2 and rows >= _MOST * max(np.count_nonzero(own > wide), np.count_nonzero(other > wide)))


def _cut_rows(page: _Segments, region: _Ints) -> list[_Ints]:
    """Region cut between its bands, at first only where the gaps are clearly the wider ones."""
    bands = page.bands(region)
    gaps = page.gaps(region, bands)
    ranked = np.sort(gaps)
    step = np.diff(ranked)
    if len(step) and step.max() > _ROW_GAP:
        wide = gaps > ranked[step.argmax()]
        return _pieces(region, np.concatenate([[0], np.cumsum(wide)])[bands])
    cells = _pieces(region, _clusters(page.left[region], page.right[region], _GUTTER))
    return cells if 0 < len(gaps) < _ROW_LINES and _is_table_row(page, cells) else _pieces(region, bands)


def _is_table_row(page: _Segments, cells: list[_Ints]) -> bool:
    """Whether cells of unequal numbers of lines make up one row: by wrapped text, or a cell set between lines."""
    least = min(cells, key=len)
    for cell in cells:
        width = page.downward_widths(cell)
        wrapped = width.max() >= _CELL_WIDTH and (width[:-1] >= _FULL_LINE * width.max()).all()
        between = len(least) == 1 and np.abs(page.middle(cell) - page.middle(least)).min() >= _SAME_LINE
        if len(cell) > 1 and not wrapped and not between:
            return False
    return len(least) < max(len(cell) for cell in cells)


def _cut_cells(page: _Segments, region: _Ints) -> list[_Ints]:
    """Region cut from left to right, but not where table rows run on (beside a box as high as several rows)."""
    strips = _pieces(region, _clusters(page.left[region], page.right[region], _GUTTER))
    cells = strips[:1]
    for strip in strips[1:]:
        if min(len(cells[-1]), len(strip)) > 1 and _share_rows(page, cells[-1], strip):
            cells[-1] = np.concatenate([cells[-1], strip])
        else:
            cells.append(strip)
    return cells
