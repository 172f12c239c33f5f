"""Numbers as every page and the console write them: one rule.

Three decimals; from ten on four figures, and whole numbers whole; from a thousand on none after the point; below a thousandth three
figures. A mean beside its interval has more decimals where the interval is narrow (`alike`). Counts are whole (`whole`). The minus sign is a
minus, and what is no number is a dash. `charts.js` has the same rule, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

NONE = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def plain(value: float | None, *, sign: bool = False, whole: bool = False) -> str:
    """A number by the rule.

    Args:
        sign: write a plus, too.
        whole: it counts something: without decimals where it has none.

    >>> [plain(each) for each in (0.88666, 1.0, 12.345, 12345.6, 0.00003)]
    ['0.887', '1.000', '12.35', '12\xa0346', '3e−5']
    """
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    before = "−" if value < 0 else "+" if sign and value > 0 else ""
    if size >= 1e15:
        return f"{before}{size:.2e}".replace("e+", "e")
    if size >= 1000 or (size == int(size) and (whole or size >= 10)):
        return before + f"{Decimal(size).quantize(Decimal(1), ROUND_HALF_UP):,}".replace(",", _SPACE)
    if size >= 0.001 or size == 0:
        return before + _fixed(size, _decimals(size))
    figures, _, power = f"{size:.2e}".partition("e")
    if int(power) >= -4:
        return before + f"{float(f'{size:.2e}'):.6f}".rstrip("0")
    return before + f"{figures.rstrip('0').rstrip('.')}e−{-int(power)}"


def alike(values: Sequence[float], *, sign: bool = False) -> list[str]:
    """A mean and the ends of its interval, with as many decimals as the mean has alone, or more where the interval's width would else
    have less than two figures.

    >>> alike([0.9, 0.85, 0.95])
    ['0.900', '0.850', '0.950']
    """
    mean, low, high = values
    width, decimals = high - low, _decimals(abs(mean)) if math.isfinite(mean) else 3
    if 0 < width < math.inf:
        decimals = min(6, max(decimals, 1 - math.floor(math.log10(width))))
    told = []
    for value in values:
        text = _fixed(abs(value), decimals) if math.isfinite(value) else NONE
        is_zero = not any(digit in text for digit in "123456789")
        before = "" if not math.isfinite(value) or is_zero else "−" if value < 0 else "+" if sign else ""
        told.append(before + text)
    return told


def _decimals(size: float) -> int:
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def interval(values: Sequence[float], *, sign: bool = False) -> str:
    """A mean with its interval in brackets: `0.900 (0.850 to 0.950)`."""
    return "{} ({} to {})".format(*alike(values, sign=sign))


def percent(share: float) -> str:
    """A share as people write it, the sign not torn from the number."""
    return f"{_fixed(100 * share, 1)}{_SPACE}%" if math.isfinite(share) else NONE


def milliseconds(value: float) -> str:
    """A latency in whole milliseconds."""
    return f"{plain(round(value))}{_SPACE}ms" if math.isfinite(value) else NONE


def _fixed(size: float, decimals: int) -> str:
    if size >= 1e15:  # more figures than a decimal has
        return f"{size:.2e}".replace("e+", "e")
    # Halves go up, as in the browser: Python's own formatting takes them to the even digit.
    return f"{Decimal(size).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP):f}"
