"""The report in a real browser: the first screen of a phone, keys, enlarging, paper, and what a machine can check of accessibility."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.axe import violations
from tests.support.chromium import CHROMIUM
from tests.trainer import test_report, test_report_pairs, test_report_texts
from tests.trainer.test_number_rule import VALUES
from trainer.report import build_report
from trainer.report.charts.axis import tick

pytestmark = pytest.mark.browser
expect.set_options(timeout=120_000)  # a busy machine's browser may take seconds to draw
Open = Callable[..., Page]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "images": test_report.fabricate,
    "answers": test_report_texts.fabricate,
    "pairs": test_report_pairs.fabricate,
    "hostile": test_report.hostile_run,
    "evaluated once": lambda folder: test_report.fabricate(folder, steps=0, finished=False),
    "no evaluation yet": test_report.before_its_first_evaluation,
    "nothing yet": lambda folder: test_report.before_its_first_evaluation(folder, rows=0),
}


@pytest.fixture(scope="module")
def browser(chromium: None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Reports whose console must stay silent, and which ask nobody for anything."""
    contexts, said = [], []

    def open_page(file: Path, *, width: int, dark: bool = False, scripts: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_a_phone_shows_the_result_first_and_everything_is_reached_by_keys(opened: Open, tmp_path: Path) -> None:
    page = opened(build_report(test_report.fabricate(tmp_path / "run", steps=100)), width=390)
    last = page.locator(".headline").last.bounding_box()
    assert last is not None and last["y"] + last["height"] <= 844, "the held-out result is on the first screen"
    assert fits(page)
    assert page.evaluate("values => values.map(value => charts.plain(value))", list(VALUES)) == list(VALUES.values())
    ticks = [0, 0.25, -5e-5, 7.5e-5, 1e-10, 1e-4, 12000, 2.5e6, 0.0025, -0.5, 120000]
    assert page.evaluate("values => values.map(charts.tick)", ticks) == [tick(value) for value in ticks]

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the result")).to_be_focused()
    picture = page.locator(".enlarge-picture").first
    picture.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("img")).to_be_visible()
    assert dialog.locator("img").bounding_box()["width"] > 300  # type: ignore[index]
    told = dialog.locator("figcaption").inner_text()
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("figcaption")).not_to_have_text(told)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(picture).to_be_focused()

    chart = page.locator('figure.chart[data-chart="Rewards/ocr"]')
    chart.scroll_into_view_if_needed()
    chart.locator(".u-over").focus()
    page.keyboard.press("End")
    expect(chart.locator(".at")).to_have_text("step 100")
    expect(chart.locator(".spoken")).to_have_text("step 100: training 0.932, held-out 0.914")
    page.keyboard.press("+")
    page.keyboard.press("Home")
    expect(chart.locator(".at")).to_have_text("step 0")
    page.keyboard.press("0")
    chart.get_by_role("button", name="enlarge the chart ocr").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="ocr").locator(".u-over")).to_be_visible()
    assert fits(page)
    page.keyboard.press("Escape")
    expect(chart.get_by_role("button", name="enlarge the chart ocr")).to_be_focused()
    assert violations(page) == []


def test_on_paper_nothing_is_folded_cut_or_dark(opened: Open, tmp_path: Path) -> None:
    """Without scripts, which would open the folds too."""
    page = opened(build_report(test_report_texts.fabricate(tmp_path / "run")), width=800, dark=True, scripts=False)
    folded = page.locator("details .card, details pre, details dl")
    assert folded.count() >= 6 and not folded.first.is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    shown = [folded.nth(n).is_visible() for n in range(folded.count())]
    assert all(shown)
    assert (
        page.evaluate(
            """[...document.querySelectorAll('.prompt, .reply p, pre, .scroll')].filter(e =>
        getComputedStyle(e).overflowX === 'auto' || e.scrollHeight > e.clientHeight + 1).length"""
        )
        == 0
    )
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 30, 33)", "dark letters on white paper"
    assert page.locator("figure.chart svg").first.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_report_breaks_no_rule_that_a_machine_can_check(opened: Open, tmp_path: Path, kind: str) -> None:
    report = build_report(MAKERS[kind](tmp_path / "run"))
    for width in (1400, 390):
        for dark in (False, True):
            page = opened(report, width=width, dark=dark)
            for fold in page.locator("details").all():
                fold.evaluate("fold => fold.open = true")
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            assert violations(page) == [], (width, dark)
            assert fits(page)
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert page.title() == f"{test_report.HOSTILE}: run report" or kind != "hostile"
            page.close()
    page = opened(report, width=390, scripts=False)
    assert fits(page) and page.locator("figure.chart svg").count() == page.locator("figure.chart").count()
