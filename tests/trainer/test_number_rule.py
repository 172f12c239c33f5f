"""One rule of decimals for every page and the console."""

from __future__ import annotations

import math

import pytest

from trainer.records.numbers import alike, interval, milliseconds, percent, plain

VALUES = {
    0.88666: "0.887",
    0.0: "0.000",
    1.0: "1.000",
    0.0625: "0.063",
    -0.1254: "−0.125",
    9.9996: "10.000",
    12.345: "12.35",
    40.0: "40",
    123.46: "123.5",
    1234.5: "1\N{NO-BREAK SPACE}235",
    -1234567.0: "−1\N{NO-BREAK SPACE}234\N{NO-BREAK SPACE}567",
    0.00032: "0.00032",
    0.000999: "0.000999",
    3e-5: "3e−5",
    -1.234e-7: "−1.23e−7",
    2.5e20: "2.50e20",
}


@pytest.mark.parametrize(("value", "text"), VALUES.items())
def test_a_number_alone(value: float, text: str) -> None:
    assert plain(value) == text


def test_signs_counts_and_what_is_none() -> None:
    assert [plain(value, sign=True) for value in (0.25, -0.25, 0.0)] == ["+0.250", "−0.250", "0.000"]
    assert [plain(value, whole=True) for value in (3.0, 0.0, 2.5, 1200.0)] == [
        "3",
        "0",
        "2.500",
        "1\N{NO-BREAK SPACE}200",
    ]
    assert [plain(value) for value in (None, math.nan, math.inf)] == ["–"] * 3


def test_beside_a_narrow_interval_a_mean_has_more_decimals_and_never_fewer_than_alone() -> None:
    assert alike([0.9, 0.85, 0.95]) == ["0.900", "0.850", "0.950"]
    assert alike([0.9, 0.8991, 0.9009]) == ["0.9000", "0.8991", "0.9009"]
    assert alike([66.25, 60.0, 100.0]) == ["66.25", "60.00", "100.00"]
    assert alike([1.0, 1.0, 1.0]) == ["1.000"] * 3
    assert interval([-0.1, -0.2, 0.0001], sign=True) == "−0.100 (−0.200 to 0.000)"


def test_shares_and_latencies() -> None:
    assert (percent(0.34567), milliseconds(35.4)) == ("34.6\N{NO-BREAK SPACE}%", "35\N{NO-BREAK SPACE}ms")
    assert (percent(math.nan), milliseconds(math.nan)) == ("–", "–")
