"""Two plots as SVG. Their size does not grow with the number of requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadtest.measurements import Measurements

_WIDTH, _HEIGHT = 900, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 14, 26
_MAX_DOTS = 3000
_BINS = 40


def over_time(measured: Measurements) -> str:
    """A dot per answered request, at the time it was due; the scale of latencies is logarithmic."""
    answered = _thin([(each.due, each.latency_ms) for each in measured.exchanges if each.answered])
    missing = _thin([(each.due, 0.0) for each in measured.exchanges if not each.answered])
    ticks = _decades([latency for _, latency in answered])
    span = max(measured.seconds, 1e-9)

    def x_of(seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, seconds / span)

    parts = [_rows(ticks)]
    for n in range(6):
        anchor = "end" if n == 5 else "middle"
        parts.append(
            f'<text x="{x_of(n * span / 5):.0f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{n * span / 5:.3g} s</text>'
        )
    parts += [
        f'<circle class="dot" cx="{x_of(due):.1f}" cy="{_y_of(latency, ticks):.1f}" r="2.5"/>'
        for due, latency in answered
    ]
    parts += [
        f'<line class="lost" x1="{x_of(due):.1f}" x2="{x_of(due):.1f}" y1="2" y2="{_TOP - 2}"/>' for due, _ in missing
    ]
    return _svg("Latency over time", parts)


def histogram(measured: Measurements) -> str:
    """Requests per latency, in bins of equal width on a logarithmic scale."""
    latencies = measured.latencies_ms()
    if not latencies:
        return "<p>No request was answered.</p>"
    low, high = math.log10(max(latencies[0], 0.01)), math.log10(max(latencies[-1], 0.011))
    step = max((high - low) / _BINS, 1e-6)
    counts = [0] * _BINS
    for latency in latencies:
        counts[min(_BINS - 1, max(0, int((math.log10(max(latency, 0.01)) - low) / step)))] += 1
    wide = (_WIDTH - _LEFT - _RIGHT) / _BINS
    tall = _HEIGHT - _TOP - _BOTTOM
    parts = []
    for n, count in enumerate(counts):
        size = tall * count / max(counts)
        x = _LEFT + n * wide
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{_HEIGHT - _BOTTOM - size:.1f}" width="{wide - 2:.1f}" height="{size:.1f}">'
            f"<title>{_ms(low + n * step)} to {_ms(low + (n + 1) * step)} ms: {count}</title></rect>"
        )
        if n % 8 == 0:
            parts.append(f'<text x="{x:.0f}" y="{_HEIGHT - 8}">{_ms(low + n * step)}</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{_TOP + 8}" text-anchor="end">{max(counts)}</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{_HEIGHT - _BOTTOM}" text-anchor="end">0</text>')
    return _svg("Requests by latency", parts)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MAX_DOTS of them, evenly taken, the slowest always among them."""
    if len(points) <= _MAX_DOTS:
        return points
    slowest = max(points, key=lambda point: point[1])
    return [*points[:: math.ceil(len(points) / (_MAX_DOTS - 1))], slowest]


def _decades(latencies: Sequence[float]) -> list[float]:
    low = math.floor(math.log10(max(min(latencies, default=1.0), 0.1)))
    high = math.ceil(math.log10(max(max(latencies, default=10.0), 0.1)))
    return [10.0**n for n in range(low, max(high, low + 1) + 1)]


def _y_of(latency: float, ticks: Sequence[float]) -> float:
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    share = (math.log10(max(latency, ticks[0])) - low) / (high - low)
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _rows(ticks: Sequence[float]) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y_of(tick, ticks):.1f}" y2="{_y_of(tick, ticks):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{_y_of(tick, ticks) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    )


def _svg(label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _ms(exponent: float) -> str:
    """Milliseconds by their decimal logarithm, to three digits or whole ones."""
    value = 10**exponent
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
