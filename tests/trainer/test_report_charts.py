"""Charts of pages: as SVG without scripts, and with values under the pointer in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.chromium import CHROMIUM
from trainer.report import charts
from trainer.report.charts import Chart, Series, figure, numbers_of, script, style
from trainer.report.charts.axis import Axis, tick
from trainer.report.charts.model import color_of, dash_of

VENDORED = Path(charts.__file__).parent / "uplot"
COLORS = ":root{--card:#fff;--line:#ddd;--ink:#111;--soft:#555;--grid:#ddd;--accent:#00f;" + "".join(
    f"--s{n}:#{n}{n}44aa;" for n in range(6)
)
TWO = Chart(
    "ocr",
    [
        Series(
            "training", [1, 2, 3, 4], [0.1, 0.2, math.nan, 0.4], [0.0, 0.1, math.nan, 0.3], [0.2, 0.3, math.nan, 0.5]
        ),
        Series("held-out", [0, 4], [0.15, 0.75], thick=True),
    ],
    name="ocr",
    unit=True,
    marks=[2.0],
)


@pytest.mark.parametrize(
    ("values", "more", "ticks"),
    [
        ([0.0, 60.0], {}, [0, 20, 40, 60]),
        ([0.2, 0.7], {"unit": True}, [0, 0.25, 0.5, 0.75, 1]),
        ([3.0, 7.0], {"zero": True}, [0, 2, 4, 6]),
        ([1e-4, 3e-4], {}, [1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4]),
        ([5.0], {}, [4.5, 4.75, 5, 5.25, 5.5]),
        ([0.0], {"zero": True}, [0, 0.25, 0.5, 0.75, 1]),
        ([math.nan], {}, [0, 0.25, 0.5, 0.75, 1]),
        ([], {}, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_stand_at_round_numbers(values, more, ticks):
    axis = Axis.over(values, **more)
    assert axis.ticks == pytest.approx(ticks)
    assert [axis.at(value) for value in (axis.low, axis.high)] == [0, 1]


def test_a_tick_is_written_whole():
    assert [tick(value) for value in (0.25, 5e-5, 12000, -0.5)] == ["0.25", "5e−5", "12000", "−0.5"]


def test_the_svg_says_in_words_and_lines_what_the_curves_are():
    drawn = str(figure(TWO))
    label = html.unescape(re.search(r'<svg [^>]*aria-label="([^"]*)"', drawn)[1])
    assert label == "ocr over step. training: 0.100 at 1, 0.400 at 4. held-out: 0.150 at 0, 0.750 at 4."
    line, thick = re.findall(r'<path class="curve [^"]*" d="([^"]*)"', drawn)
    assert line.count("M") == 2 and line.count("L") == 1, "a gap is a gap"
    assert thick.count("M") == 1 and thick.count("L") == 1 and drawn.count("<circle") == 3, "a lone number has a dot"
    assert drawn.count('class="band') == 2 and drawn.count('class="mark"') == 1
    assert re.findall(r"<output[^>]*>(.*?)</output>", drawn) == ["0.400", "0.750"]


def test_a_curve_without_a_number_is_no_line():
    drawn = str(figure(Chart("none", [Series("a", [1], [math.nan])])))
    assert "a: no number." in drawn and 'd=""' in drawn and ">no number</output>" in drawn


def test_labels_and_numbers_cannot_become_markup():
    hostile = "</script><script>alert(1)</script>\" onload='x'"
    drawn = str(
        figure(Chart(hostile, [Series(hostile, [1], [1.0], link=f"/run/{hostile}")], name=hostile, note=hostile))
    )
    assert drawn.count("<script") == 1 and "<script>alert" not in drawn
    data = re.search(r'<script type="application/json">(.*?)</script>', drawn, re.S)[1]
    assert json.loads(data)["series"][0]["label"] == hostile


def test_the_scripts_numbers_are_the_charts_with_null_where_there_is_none():
    told = numbers_of(TWO)
    assert told["series"][0]["y"] == [0.1, 0.2, None, 0.4] and told["series"][0]["low"] == [0.0, 0.1, None, 0.3]
    assert told["series"][1]["thick"] and told["marks"] == [2.0] and told["unit"]


def test_no_two_of_36_curves_look_alike():
    curves = [Series(f"run {n}", [0], [0]) for n in range(36)]
    assert len({(color_of(each, n), dash_of(each, n, True)) for n, each in enumerate(curves)}) == 36
    assert dash_of(curves[1], 1, False) == 0


def test_the_vendored_library_is_as_it_was_published():
    listed = dict(
        reversed(line.split())
        for line in (VENDORED / "VERSION").read_text().splitlines()
        if re.match(r"[0-9a-f]{64} ", line)
    )
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDORED.glob("*.min.*")}
    assert listed == there
    assert "Permission is hereby granted" in (VENDORED / "LICENSE").read_text()


def page_of(*shown: Chart) -> str:
    """A page with the strictest policy that there is."""
    css, js = f"{COLORS}}}\n{style()}", script()
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "require-trusted-types-for 'script'"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>charts</title><link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{css}</style>{''.join(figure(each) for each in shown)}<script>{js}</script>"
    )


@pytest.fixture(scope="module")
def browser(chromium: None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser: Browser, file: Path, *shown: Chart, width: int = 390, scripts: bool = True) -> Page:
    file.write_text(page_of(*shown), encoding="utf-8")
    page = browser.new_context(viewport={"width": width, "height": 700}, java_script_enabled=scripts).new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: pytest.fail(f"console: {message.text}"))
    page.on("pageerror", lambda error: pytest.fail(f"error: {error}"))
    page.goto(file.as_uri())
    return page


def test_values_are_read_by_pointer_and_by_keys_and_curves_are_put_out(browser, tmp_path):
    page = opened(browser, tmp_path / "charts.html", TWO)
    over = page.locator(".u-over")
    box = over.bounding_box()
    values, at = page.locator(".legend output"), page.locator(".at")
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20)
    expect(at).to_have_text("step 4")
    expect(values).to_have_text(["0.400", "0.750"])
    over.focus()
    page.keyboard.press("Home")
    expect(at).to_have_text("step 0")
    expect(values).to_have_text(["0.100", "0.150"])  # training has nothing at 0: its nearest number
    expect(page.get_by_role("status").filter(has_text=":")).to_have_text("step 0: training 0.100, held-out 0.150")
    page.keyboard.press("ArrowRight")
    expect(at).to_have_text("step 1")
    key = page.get_by_role("button", name="show training")
    key.click()
    expect(key).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="enlarge the chart").click()
    expect(page.locator("figure.chart")).to_have_class("chart large")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_new_numbers_are_shown_in_a_figure_that_is_there(browser, tmp_path):
    page = opened(browser, tmp_path / "charts.html", TWO)
    expect(page.locator(".u-over")).to_be_visible()
    newer = numbers_of(Chart("ocr", [Series("training", [1, 9], [0.1, 0.9]), Series("held-out", [0, 9], [0.1, 0.8])]))
    page.evaluate("numbers => charts.update('ocr', numbers)", newer)
    expect(page.locator(".legend output")).to_have_text(["0.900", "0.800"])
    label = "ocr over step. training: 0.100 at 1, 0.900 at 9. held-out: 0.100 at 0, 0.800 at 9. "
    expect(page.locator(".u-over")).to_have_attribute("aria-label", re.compile(f"^{label}"))
    expect(page.locator("figure.chart")).to_have_class("chart newer")  # what is printed is what is shown


def test_without_scripts_the_chart_is_there_and_fits_a_phone(browser, tmp_path):
    page = opened(browser, tmp_path / "charts.html", TWO, scripts=False)
    drawn = page.get_by_role("img", name="ocr over step.")
    expect(drawn).to_be_visible()
    assert drawn.bounding_box()["width"] <= 390
    assert page.locator(".u-over").count() == 0
