"""What a chart shows, as plain data: curves over steps, seconds or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Numbers = Sequence[float]
_LOOKS = 6  # colours, and kinds of dashes


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: its name in the legend.
        x: ascending; `y`: as many values, NaN where there is no number.
        low, high: ends of the band around `y`, as many; empty without a band.
        thick: drawn heavier, with a mark at each point: held-out results among training curves.
        color: which of the page's six colours, --s0 to --s5; None: by its place in the chart.
        link: where its name in the legend leads to; empty: nowhere.
    """

    label: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    thick: bool = False
    color: int | None = None
    link: str = ""

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), f"{self.label}: {len(self.x)} places for {len(self.y)} values"
        assert len(self.low) == len(self.high), f"{self.label}: a band with one end"
        assert len(self.low) in (0, len(self.x)), f"{self.label}: a band of another length than its curve"


@dataclass(frozen=True)
class Chart:
    """Curves with a title.

    Attributes:
        name: how a script finds the figure again, for new points; empty: nobody does.
        note: a sentence below the chart.
        x_label: what is along the horizontal axis.
        unit: show 0 to 1 whole where all values lie there. zero: begin at 0 where none is negative.
        whole: its values count something, and are written without decimals where they have none.
        marks: places on the horizontal axis with a dotted line, such as where the configuration changed.
    """

    title: str
    series: Sequence[Series]
    name: str = ""
    note: str = ""
    x_label: str = "step"
    unit: bool = False
    zero: bool = False
    whole: bool = False
    marks: Sequence[float] = field(default=())


def color_of(series: Series, place: int) -> int:
    """The number of a curve's colour, by its place in the chart where it has none of its own."""
    return (place if series.color is None else series.color) % _LOOKS


def dash_of(series: Series, place: int, several: bool) -> int:
    """The number of a curve's dashes, so that colour never tells curves apart alone; 0, a whole line, for one that is thick
    or alone. Of 36 curves no two look alike."""
    return (place + place // _LOOKS) % _LOOKS if several and not series.thick else 0
