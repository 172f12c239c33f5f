"""Small matplotlib figures as inline SVG whose colours are the page's, so that one plot serves light and dark.

matplotlib is imported when the first plot is drawn: it takes half a second, and most commands draw none.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from trainer.report.charts.axis import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no CSS variables: it draws in these stand-in colours, which are exchanged afterwards.
INK, GRID = "#010101", "#010102"
SERIES = tuple(f"#0102{number:02x}" for number in range(6))
_CSS = {INK: "currentColor", GRID: "var(--grid)"} | {color: f"var(--s{n})" for n, color in enumerate(SERIES)}

# Colour is never the only difference between two lines.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1.2, 2)), (0, (9, 3)), (0, (3, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")

SIZE_INCHES = (4.4, 2.55)
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same run gives the same page
    "text.parse_math": False,  # a reward may be called anything, "$" included
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_GEOMETRY = {"d", "x", "y", "width", "height", "transform"}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Plot:
    """A titled drawing for the page: `svg` is safe markup, `note` a sentence below it."""

    title: str
    svg: Markup
    note: str = ""


@contextmanager
def drawing(title: str, plots: list[Plot], *, alt: str, note: str = "") -> Iterator[Axes]:
    """Axes to draw on; what was drawn is appended to `plots` at the end. `alt` says in words what is drawn."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        axes = figure.add_subplot()
        yield axes
        axes.set_xlabel("step", labelpad=2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.margins(x=0.02)
        low, high = sorted(axes.get_ylim())
        longest = max(len(tick(value)) for value in axes.get_yticks() if low <= value <= high)
        top = 0.86 if _place_legend(axes) else 0.95
        figure.subplots_adjust(left=0.045 + 0.0205 * longest, right=0.975, top=top, bottom=0.165)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"), None))
    plots.append(Plot(title, inline(buffer.getvalue(), prefix=f"p{len(plots)}{_slug(title)}", alt=alt), note))


def inline(svg: bytes, *, prefix: str, alt: str) -> Markup:
    """An SVG document as an element of an HTML page: unique ids, no document-wide style, themed colours, a label."""
    for uri, name in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(uri, name)
    root = ElementTree.fromstring(svg)
    _keep_referenced_ids(root, prefix)
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.tag.rpartition("}")[2]
            if name in {"metadata", "style"} or (name == "defs" and not len(child)):
                parent.remove(child)
    for element in root.iter():
        for name in _GEOMETRY & element.attrib.keys():  # a hundredth of a point is fine enough, and half the bytes
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name]))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, css in _CSS.items():
        text = text.replace(color, css)
    return Markup(re.sub(r"\n\s*", "\n", text))


def _keep_referenced_ids(root: ElementTree.Element, prefix: str) -> None:
    """Drop ids that nothing points to; the others get `prefix`, since all plots share one page."""
    href = f"{{{_XLINK}}}href"
    used = set()
    for element in root.iter():
        used |= {element.get(href, "").removeprefix("#")}
        for value in element.attrib.values():
            used |= set(_REFERENCE.findall(value))
    for element in root.iter():
        if "id" in element.attrib:
            identity = element.attrib.pop("id")
            if identity in used:
                element.set("id", prefix + identity)
        if href in element.attrib:
            element.set(href, "#" + prefix + element.attrib[href].removeprefix("#"))
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))


def _place_legend(axes: Axes) -> bool:
    """Above the plot, where it hides nothing. False when no curve has a name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.985),
            ncols=4 if len(labels) > 2 else len(labels),
            borderpad=0.1,
            handlelength=2.1,
            columnspacing=1.2,
            handletextpad=0.5,
        )
    return bool(handles)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def values_in_unit_range(values: Sequence[float]) -> bool:
    """Whether a plot of `values` can show 0 to 1 whole, so that no axis makes a small change look large."""
    return all(0.0 <= value <= 1.0 for value in values if not math.isnan(value))
