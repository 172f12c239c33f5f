"""The order in which recognised lines are read, from their boxes: the same for all engines.

The image is turned so that its text lies level. Boxes that overlap in height by half of the lower one are on one row,
so big and small words on one baseline are, and raised words, too. Rows are read from the top, each from the left. Since
no rule is right for every poster, columns are another plausible order. N is the number of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.ocr.engines.base import Box

_LEAST_OVERLAP = 0.5  # of the lower box's height, to be on one row
_MOST_INTRUSION = 0.5  # of a box's shorter side, to the left of a column's edge: detectors draw their boxes wide
_LEAST_TILT = math.radians(0.5)  # below it the angle of a box is noise
_TALL = 1.5  # height by width above which a box holds a column of characters

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def reading_orders(boxes: Sequence[Box]) -> list[list[int]]:
    """Plausible orders of the boxes, as lists of their places; the first is the reading order, none comes twice.

    They are by rows and by columns, in the frame of the text and, where that is tilted, in the image's own; where
    most boxes are tall, as in vertical writing, also by columns from the right.
    """
    if not boxes:
        return [[]]
    corners_N42 = np.array(boxes, np.float64).reshape(len(boxes), 4, 2)
    tilt = _tilt(corners_N42)
    orders: list[list[int]] = []
    for angle in (tilt, 0.0) if abs(tilt) >= _LEAST_TILT else (0.0,):
        orders += _Page(_turned(corners_N42, angle)).orders()
    return [list(order) for order in dict.fromkeys(tuple(order) for order in orders)]


def _tilt(corners_N42: Floats) -> float:
    """Radians by which the text is turned, clockwise on the screen: the median over the boxes, long ones counting more."""
    along = (corners_N42[:, 1] - corners_N42[:, 0]) + (corners_N42[:, 2] - corners_N42[:, 3])
    down = (corners_N42[:, 3] - corners_N42[:, 0]) + (corners_N42[:, 2] - corners_N42[:, 1])
    lengths = np.hypot(*along.T)
    # The long side tells the direction best; where no box is wide, such as single letters, the short one must do.
    wide = lengths > np.hypot(*down.T)
    weights = np.where(wide, lengths, 0.0) if wide.any() else lengths
    angles = np.arctan2(along[:, 1], along[:, 0])
    angles = (angles + math.pi / 4) % (math.pi / 2) - math.pi / 4  # engines differ in which corner comes first
    ranked = np.argsort(angles)
    middle = np.searchsorted(np.cumsum(weights[ranked]), weights.sum() / 2)
    return float(angles[ranked[middle]])


def _turned(corners_N42: Floats, angle: float) -> Floats:
    """Left, top, right and bottom of each box when the image is turned back by `angle`: [N, 4]."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = corners_N42[..., 0], corners_N42[..., 1]
    turned = np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)
    return np.concatenate([turned.min(1), turned.max(1)], axis=1)


class _Page:
    """Boxes on a level page."""

    def __init__(self, extents_N4: Floats) -> None:
        self._left, self._top, self._right, self._bottom = extents_N4.T
        heights, self._widths = self._bottom - self._top, self._right - self._left
        self._middle_x, self._middle_y = (self._left + self._right) / 2, (self._top + self._bottom) / 2
        shared = np.minimum.outer(self._bottom, self._bottom) - np.maximum.outer(self._top, self._top)
        self._beside_NN: Bools = shared >= _LEAST_OVERLAP * np.minimum.outer(heights, heights)
        self._heights = heights

    def orders(self) -> list[list[int]]:
        everything = list(range(len(self._heights)))
        orders = [self._by_rows(everything), self._by_columns(everything)]
        if 2 * int((self._heights > _TALL * self._widths).sum()) > len(everything):
            orders.append(self._by_columns(everything, from_right=True))
        return orders

    def _by_rows(self, places: list[int]) -> list[int]:
        rows = self._rows(places)
        if len(rows) > 1:
            return [place for row in rows for place in self._by_rows(row)]
        beside = self._beside_NN[np.ix_(places, places)]
        if beside.all():
            return sorted(places, key=lambda place: self._middle_x[place])
        # A box beside several that are not beside each other: an initial before two lines, the middle of a staircase.
        # It parts the row, and what is left and right of it is read by rows again. Of several the one in the middle.
        off_centre = np.abs(self._middle_x[places] - np.median(self._middle_x[places]))
        pivot = places[int(np.lexsort((off_centre, -beside.sum(0)))[0])]
        before = [p for p in places if p != pivot and self._middle_x[p] <= self._middle_x[pivot]]
        after = [p for p in places if p != pivot and self._middle_x[p] > self._middle_x[pivot]]
        return [*self._by_rows(before), pivot, *self._by_rows(after)]

    def _by_columns(self, places: list[int], *, from_right: bool = False) -> list[int]:
        columns = self._columns(places)
        if len(columns) == 1:
            return [place for band in self._bands(places) for place in self._by_band(band, places, from_right)]
        if from_right:
            columns.reverse()
        return [place for column in columns for place in self._by_columns(column, from_right=from_right)]

    def _by_band(self, band: list[int], whole: list[int], from_right: bool) -> list[int]:
        return self._by_rows(band) if len(band) == len(whole) else self._by_columns(band, from_right=from_right)

    def _bands(self, places: list[int]) -> list[list[int]]:
        """Rows from the top, those together that a common gap cuts into columns: a heading stands above its columns."""
        bands: list[list[int]] = []
        for row in self._rows(places):
            if bands and len(self._columns([*bands[-1], *row])) > 1:
                bands[-1] += row
            else:
                bands.append(row)
        return bands

    def _rows(self, places: list[int]) -> list[list[int]]:
        """Groups of boxes that hang together by being beside each other, from the top."""
        left, rows = set(places), []
        while left:
            row, todo = [], [left.pop()]
            while todo:
                place = todo.pop()
                row.append(place)
                found = {other for other in left if self._beside_NN[place, other]}
                left -= found
                todo += found
            rows.append(sorted(row))
        return sorted(rows, key=lambda row: float(self._middle_y[row].mean()))

    def _columns(self, places: list[int]) -> list[list[int]]:
        """Groups of boxes with next to nothing above or below another group's, from the left."""
        columns: list[list[int]] = []
        end = -math.inf
        for place in sorted(places, key=lambda place: self._left[place]):
            if self._left[place] >= end - _MOST_INTRUSION * min(self._heights[place], self._widths[place]):
                columns.append([])
            columns[-1].append(place)
            end = max(end, self._right[place])
        return columns
