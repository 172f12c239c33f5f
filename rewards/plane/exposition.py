"""Prometheus' text format, read: names, labels and numbers, and quantiles of histograms as Prometheus computes them.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]  # in order of their names

_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*"
)
_LABEL = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")


class ExpositionError(ValueError):
    """A text that is not in Prometheus' format; the message names the line."""


@dataclass(frozen=True)
class Quantile:
    """A quantile as far as a histogram knows it: it lies in the bucket from `low` to `high`, which is infinite for the last.

    `value`: linear within the bucket, as Prometheus has it; in the last bucket its lower end, which the quantile is above.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Upper ends of buckets, ascending, the last infinite; `counts` are cumulative: of observations up to each end."""

    ends: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.counts[-1]

    def since(self, before: Histogram) -> Histogram:
        """What was observed after `before`, an earlier reading of the same histogram."""
        return Histogram(self.ends, tuple(now - then for now, then in zip(self.counts, before.counts, strict=True)))

    def quantile(self, share: float) -> Quantile | None:
        """The quantile of `share`, from 0 to 1, by the rule of `histogram_quantile`: the observations of a bucket are taken
        to lie evenly in it, those of the first between 0 and its end. None where nothing was observed."""
        if not self.total:
            return None
        rank = share * self.total
        place = next(n for n, count in enumerate(self.counts) if count >= rank)
        low = self.ends[place - 1] if place else min(0.0, self.ends[0])
        high = self.ends[place]
        if math.isinf(high):
            return Quantile(low, low, high)
        below = self.counts[place - 1] if place else 0.0
        inside = self.counts[place] - below
        # A rank of 0 may fall on an empty first bucket: then its lower end is all there is to say.
        return Quantile(low + (high - low) * ((rank - below) / inside if inside else 0.0), low, high)


@dataclass(frozen=True)
class Exposition:
    """One reading of `/metrics`. `families`: the names that are declared, also those of which nothing was counted yet."""

    families: frozenset[str]
    samples: Mapping[str, Mapping[Labels, float]]

    def knows(self, name: str) -> bool:
        """Whether there is such a metric; an earlier version of a service may not have it."""
        return name in self.families or name in self.samples

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of its series that have these labels, 0 where none has counted yet; None where there is no such metric."""
        if not self.knows(name):
            return None
        series = self.samples.get(name, {})
        return math.fsum(value for of, value in series.items() if labels.items() <= dict(of).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums for each value of a label."""
        found: dict[str, float] = {}
        for of, value in self.samples.get(name, {}).items():
            key = dict(of).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def series(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Every series of a metric, with its labels."""
        return [(dict(of), value) for of, value in self.samples.get(name, {}).items()]

    def histogram(self, name: str) -> Histogram | None:
        """The sum of a histogram's series; None where there is no such metric."""
        buckets = self.by(f"{name}_bucket", "le")
        if not buckets:
            return None
        ends = sorted((_number(end), count) for end, count in buckets.items())
        if not math.isinf(ends[-1][0]):
            raise ExpositionError(f"the histogram {name} has no bucket without an end (le=+Inf)")
        return Histogram(tuple(end for end, _ in ends), tuple(count for _, count in ends))


def parse(text: str) -> Exposition:
    """Raises ExpositionError: a line is neither a comment nor a sample."""
    families: set[str] = set()
    samples: dict[str, dict[Labels, float]] = {}
    for number, line in enumerate(text.split("\n"), 1):  # a label may hold what else ends a line
        if line.startswith("# TYPE "):
            families.add(line.split()[2])
        if not line.strip() or line.startswith("#"):
            continue
        found = _SAMPLE.fullmatch(line)
        if found is None:
            raise ExpositionError(f"line {number} is no sample: {line[:80]!r}")
        try:
            value = _number(found["value"])
        except ValueError as error:
            raise ExpositionError(f"line {number}: {found['value'][:40]!r} is no number") from error
        samples.setdefault(found["name"], {})[_labels(found["labels"] or "", number)] = value
    return Exposition(frozenset(families), samples)


def _labels(text: str, line: int) -> Labels:
    found, at = [], 0
    while text[at:].strip():
        label = _LABEL.match(text, at)
        if label is None:
            raise ExpositionError(f"line {line}: {text[at : at + 40]!r} is no label")
        found.append((label[1], _ESCAPED.sub(lambda each: "\n" if each[1] == "n" else each[1], label[2])))
        at = label.end()
    return tuple(sorted(found))


def _number(text: str) -> float:
    return float(text.replace("+Inf", "inf").replace("-Inf", "-inf"))
