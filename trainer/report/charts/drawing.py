"""A chart as an SVG in the page's colours. Classes carry the looks: a page's policy may forbid styles in elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from trainer.records.numbers import plain
from trainer.report.charts.axis import Axis, tick
from trainer.report.charts.model import Chart, Series, color_of, dash_of

WIDTH, HEIGHT = 440.0, 250.0  # user units; the page scales them
_TOP, _BOTTOM, _RIGHT = 10.0, 38.0, 20.0
_MARKED = 60  # a curve of more points gets no marks: they would hide it


def draw(chart: Chart) -> Markup:
    """The SVG, with what it shows in words as its label."""
    x_axis = Axis.over([x for series in chart.series for x in series.x], count=6)
    values = [y for series in chart.series for part in (series.y, series.low, series.high) for y in part]
    y_axis = Axis.over(values, unit=chart.unit, zero=chart.zero, margin=0.04)
    left = 14.0 + 7.0 * max((len(tick(value)) for value in y_axis.ticks), default=1)
    place = _Place(x_axis, y_axis, left)
    several = len(chart.series) > 1
    body = [*_grid(place, chart.x_label), *(_mark(place, at) for at in chart.marks)]
    for number, series in enumerate(chart.series):
        body += _curve(place, series, number, several)
    words = f"{chart.title} over {chart.x_label}. " + " ".join(
        _in_words(series, chart.whole) for series in chart.series
    )
    return Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" role="img" aria-label="{words}" preserveAspectRatio="xMidYMid meet">{body}</svg>'
    ).format(w=WIDTH, h=HEIGHT, words=words, body=Markup("").join(body))


class _Place:
    """Values to user units."""

    def __init__(self, x: Axis, y: Axis, left: float) -> None:
        self.x_axis, self.y_axis, self.left = x, y, left
        self.right, self.bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        return self.left + self.x_axis.at(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.y_axis.at(value) * (self.bottom - _TOP)


def _grid(place: _Place, x_label: str) -> Iterator[Markup]:
    for value in place.y_axis.ticks:
        y = place.y(value)
        yield Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(place.left, y, place.right)
        yield Markup('<text class="y" x="{:.1f}" y="{:.1f}">{}</text>').format(place.left - 6, y + 4, tick(value))
    for value in place.x_axis.ticks:
        x = place.x(value)
        yield Markup('<text class="x" x="{:.1f}" y="{:.1f}">{}</text>').format(x, place.bottom + 16, tick(value))
    yield Markup('<text class="name" x="{:.1f}" y="{:.1f}">{}</text>').format(place.right, HEIGHT - 6, x_label)


def _mark(place: _Place, at: float) -> Markup:
    return Markup('<path class="mark" d="M{:.1f} {:.1f}V{:.1f}"/>').format(place.x(at), _TOP, place.bottom)


def _curve(place: _Place, series: Series, number: int, several: bool) -> Iterator[Markup]:
    color = color_of(series, number)
    points = [
        (place.x(x), place.y(y)) if math.isfinite(x) and math.isfinite(y) else None
        for x, y in zip(series.x, series.y, strict=True)
    ]
    if series.low:
        yield from _band(place, series, color)
    look = f"curve c{color} d{dash_of(series, number, several)}{' thick' if series.thick else ''}"
    yield Markup('<path class="{}" d="{}"/>').format(look, _path(points))
    drawn = [point for point in points if point is not None]
    if not (series.thick and len(drawn) <= _MARKED):
        # A number between two gaps has no line to be seen by.
        around = [None, *points, None]
        drawn = [
            at for before, at, after in zip(around, points, around[2:], strict=False) if at and not (before or after)
        ]
    for x, y in drawn:
        yield Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(color, x, y)


def _band(place: _Place, series: Series, color: int) -> Iterator[Markup]:
    """An area for each stretch in which both ends are numbers."""
    stretch: list[tuple[float, float, float]] = []
    for x, low, high in [*zip(series.x, series.low, series.high, strict=True), (math.nan, math.nan, math.nan)]:
        if math.isfinite(low) and math.isfinite(high):
            stretch.append((place.x(x), place.y(low), place.y(high)))
        elif stretch:
            there = " ".join(f"{x:.1f} {top:.1f}" for x, _, top in stretch)
            back = " ".join(f"{x:.1f} {bottom:.1f}" for x, bottom, _ in reversed(stretch))
            yield Markup('<path class="band c{}" d="M{}L{}Z"/>').format(color, there, back)
            stretch = []


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Moves where a stretch begins, lines within it: a gap stays a gap."""
    parts, drawing = [], False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
        drawing = point is not None
    return "".join(parts)


def _in_words(series: Series, whole: bool) -> str:
    """A curve for those who cannot see it."""
    found = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    if not found:
        return f"{series.label}: no number."
    (first, before), (last, after) = found[0], found[-1]
    return (
        f"{series.label}: {plain(before, whole=whole)} at {tick(first)}, {plain(after, whole=whole)} at {tick(last)}."
    )
