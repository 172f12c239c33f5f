"""Prometheus' text, read; quantiles as Prometheus computes them."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rewards.plane.exposition import ExpositionError, Quantile, parse
from rewards.plane.exposition import Histogram as Read

INF = math.inf
ODD = 'a "quoted" name, with \\ and a } and\na new line\x85'


def test_it_reads_what_the_client_library_writes() -> None:
    registry = CollectorRegistry()
    counter = Counter("reward_items", "Items.", ["reward", "code"], registry=registry)
    counter.labels(ODD, "ok").inc(3)
    counter.labels("ocr", "timeout").inc()
    Gauge("reward_ready", "Ready.", registry=registry).set(math.nan)
    Counter("reward_never", "Nothing yet.", ["reward"], registry=registry)
    histogram = Histogram("reward_seconds", "Times.", ["reward"], registry=registry, buckets=(0.1, 1))
    for name in ("a", "b"):
        histogram.labels(name).observe(0.05)
    text = generate_latest(registry).decode()
    read = parse(text)
    told = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    found = {(name, labels): value for name, series in read.samples.items() for labels, value in series.items()}
    assert {key: str(value) for key, value in found.items()} == {key: str(value) for key, value in told.items()}
    assert read.by("reward_items_total", "reward") == {ODD: 3, "ocr": 1}
    assert read.total("reward_items_total") == 4 and read.total("reward_items_total", code="timeout") == 1
    assert read.total("reward_never_total") == 0, "declared: nothing was counted"
    assert read.total("reward_other_total") is None, "not declared: nothing is known"
    assert read.histogram("reward_seconds") == Read((0.1, 1, INF), (2, 2, 2)) and read.histogram("reward_ready") is None


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        # Prometheus' histogram_quantile over buckets .1, .5, 2, +Inf, worked out by hand.
        ((10, 10, 10, 10), 0.5, Quantile(0.05, 0.0, 0.1)),  # the fifth of ten, evenly from 0 to .1
        ((10, 10, 10, 10), 0.95, Quantile(0.095, 0.0, 0.1)),
        ((2, 6, 10, 10), 0.5, Quantile(0.4, 0.1, 0.5)),  # rank 5: three of the four between .1 and .5
        ((2, 6, 10, 10), 0.95, Quantile(0.5 + 1.5 * 3.5 / 4, 0.5, 2)),
        ((2, 6, 10, 20), 0.5, Quantile(2, 0.5, 2)),  # the end of a bucket
        ((2, 6, 10, 20), 0.95, Quantile(2, 2, INF)),  # above the last end: all that is known
        ((0, 0, 0, 3), 0.5, Quantile(2, 2, INF)),
        ((0, 4, 4, 4), 0.0, Quantile(0.0, 0.0, 0.1)),
        ((0, 0, 0, 0), 0.5, None),
    ],
)
def test_quantiles_are_linear_within_their_bucket(
    counts: tuple[float, ...], share: float, expected: Quantile | None
) -> None:
    found = Read((0.1, 0.5, 2, INF), counts).quantile(share)
    assert found is None if expected is None else found is not None
    if expected is not None and found is not None:
        assert (found.low, found.high) == (expected.low, expected.high)
        assert found.value == pytest.approx(expected.value)


def test_an_interval_has_what_was_observed_in_it_alone() -> None:
    """100 fast requests long ago, then two slow ones: the interval's p50 is slow."""
    before, now = Read((0.1, 1, INF), (100, 100, 100)), Read((0.1, 1, INF), (100, 102, 102))
    found = now.since(before).quantile(0.5)
    assert found is not None and found.value == pytest.approx(0.55) and now.quantile(0.5) != found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>", "line 1 is no sample: '<html>'"),
        ("a 1\nb two\n", "line 2: 'two' is no number"),
        ('a{b="c",!} 1', "line 1: '!' is no label"),
    ],
)
def test_what_is_no_such_text_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ExpositionError) as refused:
        parse(text)
    assert said in str(refused.value)
