"""The chart component of every page: a `Chart` of `Series`, its `figure`, and the style and script that go with it.

    figure(Chart("ocr", [Series("training", steps, means, low, high), Series("held-out", at, values, thick=True)], unit=True))

gives the markup. The page has `style()` in its style and `script()` once in a script; an image with `data-enlarge` can be looked at large, folds open
for paper, and what scrolls can be reached by keys (`reading.js`). The page defines the colours --s0 to --s5,
--grid, --ink, --soft, --card, --line and --accent. Nothing is loaded from elsewhere, no style stands in an element and nothing
is written as markup, so that a policy of hashes and trusted types holds.
"""

from trainer.report.charts.assets import script, style
from trainer.report.charts.figure import figure, numbers_of
from trainer.report.charts.model import Chart, Series

__all__ = ["Chart", "Series", "figure", "numbers_of", "script", "style"]
