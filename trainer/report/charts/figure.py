"""A chart as an element of a page.

Without scripts the figure is an SVG that says what it shows; with the component's script it becomes a uPlot chart with
the values under the pointer. Both are drawn from the same `Chart`, in the page's own colours.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup, escape

from trainer.records.numbers import plain
from trainer.report.charts.drawing import draw
from trainer.report.charts.model import Chart, Series, color_of, dash_of


def figure(chart: Chart, heading: str = "h3") -> Markup:
    """The chart as `<figure class="chart">`: its title, the SVG, a legend, the note, and its numbers for the script."""
    several = len(chart.series) > 1
    legend = Markup("").join(_entry(series, n, several, chart.whole) for n, series in enumerate(chart.series))
    numbers = json.dumps(numbers_of(chart), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # In an element of data nothing is markup but `<`; scripts of this type are never run.
    data = Markup('<script type="application/json">{}</script>').format(Markup(numbers.replace("<", "\\u003c")))
    note = Markup("<figcaption>{}</figcaption>").format(chart.note) if chart.note else Markup("")
    name = Markup(' data-chart="{}"').format(chart.name) if chart.name else Markup("")
    tag = Markup(heading)
    return Markup(
        '<figure class="chart"{name}><{tag}>{title}</{tag}><div class="drawn">{svg}</div>'
        '<ul class="legend">{legend}</ul>{note}{data}</figure>'
    ).format(name=name, tag=tag, title=chart.title, svg=draw(chart), legend=legend, note=note, data=data)


def numbers_of(chart: Chart) -> dict[str, Any]:
    """The chart as plain data for the script: null where there is no number."""
    return {
        "x_label": chart.x_label,
        "unit": chart.unit,
        "zero": chart.zero,
        "whole": chart.whole,
        "marks": [_short(mark) for mark in chart.marks],
        "series": [
            {
                "label": series.label,
                "thick": series.thick,
                "color": color_of(series, n),
                "dash": dash_of(series, n, len(chart.series) > 1),
                "x": [_short(value) for value in series.x],
                "y": [_short(value) for value in series.y],
                "low": [_short(value) for value in series.low],
                "high": [_short(value) for value in series.high],
            }
            for n, series in enumerate(chart.series)
        ],
    }


def _short(value: float) -> float | None:
    """Six digits are more than a screen can show; a step is written without its `.0`."""
    if not math.isfinite(value):
        return None
    return int(value) if abs(value) < 1e15 and value == int(value) else float(f"{value:.6g}")


def _entry(series: Series, place: int, several: bool, whole: bool) -> Markup:
    label = escape(series.label)
    if series.link:
        label = Markup('<a href="{}">{}</a>').format(series.link, label)
    last = next((y for y in reversed(series.y) if math.isfinite(y)), None)
    value = "no number" if last is None else plain(last, whole=whole)
    return Markup(
        '<li class="c{color} d{dash}{thick}"><span class="key" aria-hidden="true"></span>{label} <output aria-live="off">{value}</output></li>'
    ).format(
        color=color_of(series, place),
        dash=dash_of(series, place, several),
        thick=Markup(" thick") if series.thick else Markup(""),
        label=label,
        value=value,
    )
