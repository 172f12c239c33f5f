"""The runs page in a real browser: the table, a comparison, the gallery, live curves, and exported files."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.run_folders import lines_of, make_run, rows_of
from tests.support.waiting import wait_until
from tests.trainer.runs.conftest import Open, Served, serving
from trainer.__main__ import main


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_runs_are_found_sorted_ticked_and_compared(served: Served, opened: Open) -> None:
    page = opened(served.url)
    rows = page.locator("table.runs tbody tr")
    expect(rows).to_have_count(4)
    page.get_by_role("link", name="step").click()
    expect(page.get_by_role("columnheader", name="step")).to_have_attribute("aria-sort", "descending")
    assert rows.first.get_attribute("data-run") == "second"  # as long as the first, and newer
    page.get_by_role("searchbox", name="Name").fill("ir")
    expect(page.locator("table.runs tbody tr:visible")).to_have_count(1)
    page.get_by_role("searchbox", name="Name").fill("")
    page.get_by_role("checkbox", name="compare first").check()
    page.get_by_role("checkbox", name="compare second").check()
    expect(page.locator("[data-ticked]")).to_have_text("2 ticked.")
    page.get_by_role("button", name="Compare the ticked runs").click()
    expect(page.get_by_role("heading", name="Comparison")).to_be_visible()
    expect(page.locator("figure.chart").first.locator(".u-over")).to_be_visible()
    expect(page.get_by_role("cell", name="+0.125")).to_be_visible()
    page.get_by_role("combobox", name="Over").select_option("images")
    page.get_by_role("button", name="Draw").click()
    chart = page.locator("figure.chart").first
    chart.locator(".u-over").focus()
    page.keyboard.press("End")
    expect(chart.locator(".at")).to_have_text("images 3840")
    expect(chart.locator(".legend output")).to_have_text(["0.700", "0.900"])


def test_the_table_and_the_curves_follow_a_run_while_it_trains(opened: Open, tmp_path: Path) -> None:
    rows = rows_of(60, every=20)
    folder = make_run(tmp_path / "outputs" / "run", rows[:31], finished=False)
    for served in serving(tmp_path / "outputs"):
        table, curves = opened(served.url), opened(f"{served.url}/run/run")
        for page in (table, curves):
            expect(page.locator("#live")).to_have_text("Live.")
        chart = curves.locator('figure.chart[data-chart="Rewards/ocr"]')
        chart.locator(".u-over").focus()
        curves.keyboard.press("End")
        expect(chart.locator(".at")).to_have_text("step 30")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(lines_of(rows[31:]))
        expect(table.locator('td[data-cell="step"] span')).to_have_text("60 of 30")
        expect(table.locator('td[data-cell="eval/ocr"] span')).to_have_text("0.900")
        expect(chart.locator(".legend output").nth(1)).to_have_text("0.900")
        curves.keyboard.press("End")
        expect(chart.locator(".at")).to_have_text("step 60")
        make_run(tmp_path / "outputs" / "late", rows_of(2, every=2))
        expect(table.locator("#live")).to_have_text("New: late. Reload to see them.")


def shows_its_images(page: Page) -> None:
    """Asked from here: the browser's own waiting compiles a string, which the page's policy refuses."""
    every = (
        "document.images.length > 0 && [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    wait_until(lambda: page.evaluate(every), "an image is not shown")


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
@pytest.mark.parametrize(
    "path", ["/", "/run/group/crashed", "/compare?run=first&run=second", "/gallery/first?order=changed&reward=ocr"]
)
def test_every_page_fits_and_names_its_parts(served: Served, opened: Open, path: str, width: int, dark: bool) -> None:
    page = opened(served.url + path, width=width, dark=dark)
    expect(page.get_by_role("main")).to_be_visible()
    assert fits(page)
    if width > 721:  # where tables are tables still, and wider than the window: they scroll by themselves
        page.set_viewport_size({"width": 740, "height": 900})
        assert fits(page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('a, button, input:not([type=hidden]), select, img')].filter(e =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || e.alt || (e.labels && e.labels.length))).length"""
    )
    assert unnamed == 0
    assert page.get_by_role("heading", level=1).count() == 1


def test_pages_say_what_they_say_without_scripts(served: Served, opened: Open) -> None:
    page = opened(f"{served.url}/?sort=-eval/ocr", scripts=False)
    assert page.locator("table.runs tbody tr").last.get_attribute("data-run") == "second"  # the least of all
    page.get_by_role("checkbox", name="compare first").check()
    page.get_by_role("checkbox", name="compare second").check()
    page.get_by_role("button", name="Compare the ticked runs").click()
    expect(page.get_by_role("img", name="ocr, held-out over step.")).to_be_visible()
    page.get_by_role("link", name="first").first.click()
    page.get_by_role("link", name="Gallery").click()
    page.get_by_role("combobox", name="Order").select_option("best")
    page.get_by_role("button", name="Show").click()
    assert "DOG" in page.locator(".card").first.inner_text()


def test_a_picture_is_shown_with_what_was_found_in_it(served: Served, opened: Open) -> None:
    page = opened(f"{served.url}/gallery/first?q=dog")
    image = page.locator(".card img").last
    expect(image).to_be_visible()
    shows_its_images(page)
    box, drawn = page.locator(".card polygon").last.bounding_box(), image.bounding_box()
    assert box["x"] >= drawn["x"] and box["width"] == pytest.approx(drawn["width"] * 35 / 48, rel=0.1)
    page.get_by_text("what was seen").last.click()
    expect(page.get_by_text("read DOG").last).to_be_visible()


def test_exported_pages_work_from_files(folders: Path, opened: Open, tmp_path: Path, capsys) -> None:
    output = tmp_path / "pages"
    assert main(["runs", str(folders), "--export", str(output), "--compare", "first", "second"]) == 0
    assert capsys.readouterr().out == f"Wrote {output / 'index.html'}\n"
    page = opened((output / "index.html").as_uri())
    page.get_by_role("link", name="ocr").click()  # is sorted in the page: there is nobody to ask
    expect(page.locator("table.runs tbody tr").last).to_have_attribute("data-run", "second")
    page.get_by_role("link", name="first").click()
    expect(page.locator("figure.chart .u-over").first).to_be_visible()
    page.get_by_role("link", name="Gallery").click()
    shows_its_images(page)
    page.get_by_role("link", name="All runs").click()
    page.get_by_role("link", name="The comparison").click()
    expect(page.get_by_role("cell", name="−0.125")).to_be_visible()
    assert "The newest" not in page.content(), "runs that were named are not the newest"
    everything = "".join(path.read_text() for path in output.glob("*.html"))
    assert 'href="metrics.jsonl"' not in everything and "<code>metrics.jsonl</code>" in everything
    assert (
        'href="/' not in everything
        and 'src="/' not in everything
        and "http://" not in everything.replace("http://www.w3.org", "")
    )
