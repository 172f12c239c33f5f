"""The runs pages for who does not see them, uses no mouse, or prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from benchmarks.run_folders import lines_of, make_run, rows_of
from tests.support.axe import violations
from tests.trainer.runs.conftest import Open, Served, serving
from trainer.__main__ import main

PAGES = {
    "table": "/",
    "run": "/run/first",
    "crashed": "/run/group/crashed",
    "comparison": "/compare?run=first&run=second&run=group/crashed",
    "gallery": "/gallery/first?order=changed&reward=ocr",
    "nothing": "/run/absent",
}
LOOKS = [(width, dark) for width in (1400, 390) for dark in (False, True)]


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


def unfolded(page: Page) -> Page:
    """With nothing hidden in it, and every chart made."""
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    for chart in page.locator("figure.chart").all()[:6]:
        chart.scroll_into_view_if_needed()
        expect(chart.locator(".u-over")).to_be_visible()
    return page


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("table", 390, True),
        *(slow(name, *look) for name in PAGES for look in LOOKS if (name, *look) != ("table", 390, True)),
    ],
)
def test_axe_finds_nothing(served: Served, opened: Open, name: str, width: int, dark: bool) -> None:
    page = unfolded(opened(served.url + PAGES[name], width=width, dark=dark, quiet=name != "nothing"))
    assert violations(page) == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_axe_finds_nothing_in_exported_pages(
    folders: Path, opened: Open, tmp_path: Path, width: int, dark: bool
) -> None:
    assert main(["runs", str(folders), "--export", str(tmp_path / "pages"), "--compare", "first", "second"]) == 0
    found = {}
    for name in ("index", "compare", "0001_first", "0001_first.gallery"):
        page = unfolded(opened((tmp_path / "pages" / f"{name}.html").as_uri(), width=width, dark=dark))
        found[name] = violations(page)
    assert not any(found.values()), found


@pytest.mark.slow
def test_axe_finds_nothing_where_a_token_is_asked_for(tmp_path: Path, opened: Open) -> None:
    make_run(tmp_path / "outputs" / "run", rows_of(2, every=2))
    (tmp_path / "tokens").write_text("correct-horse-battery-staple\n")
    for served in serving(tmp_path / "outputs", "--token-file", str(tmp_path / "tokens")):
        page = opened(served.url, quiet=False)
        expect(page.get_by_label("Token")).to_be_visible()
        assert violations(page) == []


def walked(page: Page, most: int = 600) -> list[str]:
    """What the Tab key reaches, in order, until it leaves the page; each must be in sight and show that it has the focus."""
    found = []
    for _ in range(most):
        page.keyboard.press("Tab")
        told = page.evaluate("""() => {
          const at = document.activeElement;
          if (at === document.body || !at) return null;
          const style = getComputedStyle(at), box = at.getBoundingClientRect();
          const name = at.getAttribute("aria-label") || at.labels?.[0]?.textContent || at.textContent || at.name;
          return { name: name.trim().replace(/\\s+/g, " "), ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
            seen: box.width > 1 && box.height > 1 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth };
        }""")
        if told is None:
            break
        assert told["ring"] and told["seen"], told
        found.append(told["name"])
    return found


ACTS = "a[href], button:not([disabled]), input:not([type=hidden]), select, summary, [tabindex='0']"  # what can be used


def test_the_table_is_used_by_keys_alone(served: Served, opened: Open) -> None:
    """Everything that acts is reached; two runs are ticked and compared, and a curve's values are read."""
    page = opened(served.url, width=390)
    reached = walked(page)
    assert len(reached) == page.locator(ACTS).filter(visible=True).count()
    assert reached[0] == "Skip to the content" and {"step", "compare first", "first", "Show"} <= set(reached)
    for name in ("first", "second"):
        page.get_by_role("checkbox", name=f"compare {name}").focus()
        page.keyboard.press("Space")
    expect(page.locator("[data-ticked]")).to_have_text("2 ticked.")
    page.get_by_role("button", name="Compare the ticked runs").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Comparison")).to_be_visible()
    page.get_by_role("button", name="Draw").focus()  # brings the first chart near, and a chart is made when it is
    chart = page.locator("figure.chart").first
    chart.locator(".u-over").focus()
    page.keyboard.press("End")
    expect(chart.locator(".spoken")).to_have_text("step 40: second 0.700, first 0.900")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "crashed", "comparison", "gallery"])
@pytest.mark.parametrize("width", [1400, 390])
def test_everything_that_acts_is_reached_by_keys(served: Served, opened: Open, name: str, width: int) -> None:
    page = opened(served.url + PAGES[name], width=width)
    reached = walked(page)
    assert len(reached) >= page.locator(ACTS).filter(visible=True).count()
    opening = page.locator("summary").first
    if opening.count():
        opening.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('details').open")


def test_growing_runs_are_said_politely_and_not_at_every_step(opened: Open, tmp_path: Path) -> None:
    """Cells and curves change in silence; another state is said, and on a run's page its step, at most twice a minute."""
    rows = rows_of(60, every=20)
    folder = make_run(tmp_path / "outputs" / "run", rows[:31], finished=False)
    for served in serving(tmp_path / "outputs"):
        page = opened(f"{served.url}/run/run")
        expect(page.locator("#live")).to_have_text("Live.")
        heard = """window.heard = []; new MutationObserver((all) => window.heard.push(...all.map(({ target }) =>
          (target.closest ? target : target.parentElement).closest('[role=status], [aria-live=polite], output:not([aria-live=off])')?.textContent)
          .filter(Boolean))).observe(document.body, { childList: true, characterData: true, subtree: true })"""
        page.evaluate(heard)
        for step in (31, 32, 33):
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(lines_of([rows[step]]))
            expect(page.locator('[data-cell="step"] span')).to_have_text(f"{step} of 30")
        make_run(tmp_path / "made", rows[:34])
        (tmp_path / "made" / "summary.json").rename(folder / "summary.json")
        expect(page.locator('[data-fact="state"]')).to_have_text("finished")
        assert page.evaluate("heard") == ["Step 31 of 30.", "run is finished now."]


LIGHT, DARK = "0,114,178", "86,180,233"  # of the first curve


NARROWED = """figure => { figure.style.width = "240px"; const { width } = figure.querySelector("canvas").getBoundingClientRect();
  figure.style.width = ""; return width; }"""


def drawing(chart: Locator) -> str:
    return str(chart.locator("canvas").evaluate("canvas => canvas.toDataURL()"))


def colours(chart: Locator) -> set[str]:
    """Of a chart's pixels, as red, green and blue."""
    found = chart.locator("canvas").evaluate(
        """canvas => { const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height), seen = new Set();
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) seen.add(data.slice(at, at + 3).join(","));
        return [...seen]; }"""
    )
    return set(found)


@pytest.mark.slow
def test_tables_of_three_rewards_fit_a_window_of_1400(opened: Open, tmp_path: Path) -> None:
    """As many as the quickstart has; more scroll by themselves."""
    for name in ("guidance_conditional", "lr_5e-4"):
        third = ("", "/low", "/high", "/gain", "/gain_low", "/gain_high", "/valid_share")
        rows = [
            row | {f"eval/ocr_independent{end}": row[f"eval/ocr{end}"] for end in third if f"eval/ocr{end}" in row}
            for row in rows_of(40, every=20)
        ]
        make_run(tmp_path / "outputs" / name, rows, config={"run_name": name})
    for served in serving(tmp_path / "outputs"):
        for path in ("/", "/compare?run=guidance_conditional&run=lr_5e-4"):
            page = opened(served.url + path)
            assert page.locator('td[data-cell="eval/ocr_independent"]').count() == 2
            assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")


@pytest.mark.slow
def test_on_paper_nothing_is_folded_or_cut_and_curves_are_those_that_were_shown(opened: Open, tmp_path: Path) -> None:
    rows = rows_of(60, every=20)
    folder = make_run(tmp_path / "outputs" / "run", rows[:31], finished=False)
    (folder / "flight").mkdir()
    for served in serving(tmp_path / "outputs"):
        page = opened(f"{served.url}/run/run", dark=True, quiet=False)  # the browser remarks on canvases that are read
        chart = page.locator("figure.chart").first
        expect(chart.locator(".u-over")).to_be_visible()
        last = page.locator("figure.chart").last  # far below, and so not made yet
        assert last.locator("canvas").count() == 0
        page.emulate_media(media="print")
        expect(page.locator("form").first).to_be_hidden()
        expect(chart.locator("svg, canvas").filter(visible=True).first).to_be_visible()
        assert page.get_by_text("num_inference_steps: 10").bounding_box()["height"] > 0  # in a fold that is closed
        page.emulate_media(media="screen")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(lines_of(rows[31:]))
        expect(page.locator('[data-cell="step"] span')).to_have_text("60 of 30")
        expect(chart).to_have_class("chart newer")
        assert DARK in colours(chart) and LIGHT not in colours(chart)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        for figure in (chart, last):
            expect(figure.locator("svg")).to_be_hidden()
            expect(figure.locator("canvas")).to_be_visible()
            assert figure.evaluate(NARROWED) <= 240, "paper is narrower than the window that it was drawn for"
            assert LIGHT in colours(figure) and DARK not in colours(figure), "paper is light"
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert DARK in colours(chart)
        chart.locator(".u-over").focus()
        page.keyboard.press("+")
        zoomed = drawing(chart)
        chart.get_by_role("button", name="enlarge the chart").click()
        page.keyboard.press("Escape")
        page.mouse.move(0, 0)
        assert drawing(chart) == zoomed, "what was zoomed into stays"
