"""The style and script of charts: our own files, and uPlot as it was published (uplot/VERSION says where it is from)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def style() -> str:
    """What a page with charts needs beside its own style. The page defines --s0 to --s5, --grid, --ink and --soft."""
    return _read("uplot/uPlot.min.css") + "\n" + _read("chart.css")


@cache
def script() -> str:
    """What makes charts of figures, once the page is read, and pictures large; without it all stays as it is."""
    return "\n".join(_read(name) for name in ("uplot/uPlot.iife.min.js", "chart.js", "reading.js"))


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
