"""Every service's two pages, in a real browser that follows only what is on them: links, buttons, fields.

From the page at `/`: take the sample, score it. By its link to the API's page: call every route from there. And back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as BrowserError

from services.kit.testing.fakes import PromptLengthScorer
from services.rules.scorer import RulesScorer
from tests.support.axe import violations
from tests.support.chromium import CHROMIUM, NOT_INSTALLED
from tests.support.every_service import JUDGED, OWN_MODEL, WEIGHTS, every_service
from tests.support.serving_here import serving_here

pytestmark = pytest.mark.browser
# A busy machine takes its time to read a script of a megabyte.
expect.set_options(timeout=60_000)

OTHERS = sorted(
    {*OWN_MODEL, *JUDGED, *WEIGHTS} - {"eval"}
)  # a walk is half a minute of a browser; eval has a form, too
TOKEN = "correct-horse-battery-staple"
ROUTES = {"score", "sample", "info", "health", "ready", "metrics"}


@dataclass
class Walk:
    """A page, and what it did beside showing itself."""

    page: Page
    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


OpenWalk = Callable[..., Walk]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(NOT_INSTALLED)
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
            )
        except BrowserError as error:
            pytest.skip(f"{CHROMIUM} is there and does not start: {error}")
        yield launched
        launched.close()


@pytest.fixture
def walk(browser: Browser) -> Iterator[OpenWalk]:
    """Opens a service. At the end: nothing in the console, and no request to anyone else."""
    walks: list[tuple[Walk, str]] = []

    def opened(url: str, **options: Any) -> Walk:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        made = Walk(context.new_page())
        made.page.on("console", lambda message: made.console.append(f"{message.type}: {message.text}"))
        made.page.on("pageerror", lambda error: made.console.append(f"error: {error}"))
        made.page.on("request", lambda request: made.hosts.add(urlsplit(request.url).netloc))
        made.page.set_default_timeout(90_000)
        made.page.goto(url)
        walks.append((made, urlsplit(url).netloc))
        return made

    yield opened
    for made, host in walks:
        made.page.context.close()
        assert [line for line in made.console if "Failed to load resource" not in line] == []
        assert made.hosts - {""} == {host}


def take_the_sample(page: Page) -> list[float]:
    """The scores that the page shows for its sample."""
    page.get_by_role("button", name="or use a sample").click()
    expect(page.get_by_label("Prompt")).not_to_have_value("")
    expect(page.locator("#sample")).not_to_have_attribute("aria-busy", "true")  # the pictures are there, too
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#answer .score, #problem:not([hidden])").first).to_be_visible()
    expect(page.locator("#problem")).to_be_hidden()
    assert page.locator(".failed").count() == 0, page.locator("#answer").inner_text()
    return [float(value) for value in page.locator(".score data").evaluate_all("all => all.map(e => e.value)")]


def open_operation(page: Page, name: str) -> Any:
    """One route of the API's page, unfolded."""
    operation = page.locator(f"[id$='-{name}'].opblock")
    operation.locator(".opblock-summary-control").click()
    expect(operation.get_by_role("button", name="Execute")).to_be_visible()
    return operation


def execute(operation: Any) -> tuple[int, str]:
    """Status and body of the call that is filled in, once the page shows its answer."""
    with operation.page.expect_response(lambda response: response.request.resource_type == "fetch") as caught:
        operation.get_by_role("button", name="Execute").click()
    answer = caught.value
    shown = operation.locator(".live-responses-table .response")
    expect(shown).to_contain_text(answer.headers["x-request-id"])
    expect(shown.locator(".response-col_status")).to_contain_text(str(answer.status))
    return answer.status, answer.text()


@pytest.mark.parametrize("name", ["eval", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_a_visitor_scores_the_sample_and_calls_every_route(walk: OpenWalk, tmp_path: Path, name: str) -> None:
    with every_service(name, tmp_path) as url:
        page = walk(url).page
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#reward option")).not_to_have_count(0)
        scores = take_the_sample(page)
        assert scores and scores[0] == max(scores)

        page.get_by_role("link", name="API", exact=True).click()
        expect(page.locator(".opblock")).to_have_count(len(ROUTES))
        for route in sorted(ROUTES):
            status, body = execute(open_operation(page, route))
            assert status == 200, (route, body)
            if route == "score":
                assert json.loads(body)["results"][0]["score"] == scores[0]
        assert page.locator("#plain").is_hidden()

        page.get_by_role("link", name="Try a reward").click()
        expect(page.locator("#state")).to_have_text("ready")


def test_the_form_of_test_points_is_sent_as_metadata(walk: OpenWalk, tmp_path: Path) -> None:
    """Rows are added and removed; a row without a text is none; the sample fills them."""
    with every_service("eval", tmp_path) as url:
        page = walk(url).page
        rows = page.get_by_role("group", name="Test points").locator(".row")
        expect(rows).to_have_count(1)
        assert take_the_sample(page) == [1.0]
        expect(rows).to_have_count(2)
        assert page.get_by_label("What must be seen").nth(1).input_value() == "the thing in the middle is a circle"
        page.get_by_role("button", name="add a row").click()
        expect(page.get_by_label("Dimension").nth(2)).to_be_focused()
        page.get_by_role("button", name="Remove this row").nth(1).click()
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator("#problem, .failed").filter(visible=True)).to_contain_text("1")
        [sent] = re.findall(r"'request=(.*)'", page.locator("#command").inner_text())
        assert json.loads(sent)["items"][0]["metadata"] == {
            "testpoints": ["Attribute - Color"],
            "descriptions": ["the circle is red"],
        }


@pytest.mark.slow
def test_every_example_of_the_api_page_can_be_chosen_and_files_sent(walk: OpenWalk, tmp_path: Path) -> None:
    """Another example of the JSON body, then a multipart body with a file of one's own."""
    Image.new("RGB", (40, 30), (200, 20, 20)).save(tmp_path / "red.png")
    with serving_here(RulesScorer(), "rules") as url:
        page = walk(url).page
        page.get_by_role("link", name="API", exact=True).click()
        operation = open_operation(page, "score")
        operation.locator(".examples-select select").first.select_option("number")
        expect(operation.locator("textarea")).to_have_value(re.compile("What is 6"))
        status, body = execute(operation)
        assert (status, json.loads(body)["results"][0]["score"]) == (200, 1)
        operation.get_by_label("Request content type").select_option("multipart/form-data")
        asked = {
            "items": [{"id": "a", "prompt": "a red thing", "images": [{"part": "image0", "media_type": "image/png"}]}],
            "reward": "jpeg_incompressibility",
        }
        operation.locator("tr", has_text="request").locator("textarea").first.fill(json.dumps(asked))
        operation.locator("tr", has_text="image0").locator("input[type=file]").set_input_files(
            str(tmp_path / "red.png")
        )
        status, body = execute(operation)
        assert status == 200, body
        assert json.loads(body)["scorer"]["name"] == "jpeg_incompressibility"


@pytest.mark.slow
def test_the_api_page_asks_for_a_token_and_calls_with_it(walk: OpenWalk, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    with serving_here(PromptLengthScorer(), token_file=tmp_path / "tokens") as url:
        page = walk(url).page
        expect(page.get_by_label("Token")).to_be_visible()
        page.get_by_role("link", name="API", exact=True).click()
        expect(page.get_by_label("Token")).to_be_focused()
        expect(page.get_by_role("link", name="OpenAPI document")).to_be_hidden()
        assert "ScoreRequest" not in page.content()
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Show the API").click()
        expect(page.get_by_role("alert")).to_have_text("The service does not know this token.")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".opblock")).to_have_count(len(ROUTES))
        status, body = execute(open_operation(page, "info"))
        assert status == 200 and json.loads(body)["default_reward"] == "prompt_length"
        assert TOKEN not in page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert TOKEN not in page.url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "dark"), (390, "light"), (1400, "dark"), (1400, "light")],
)
def test_the_api_page_fits_and_axe_finds_nothing(walk: OpenWalk, width: int, scheme: str) -> None:
    """Nothing is wider than the window, calls' answers included, the ground is as light as the scheme says, no rule is broken."""
    with serving_here(RulesScorer(), "rules") as url:
        page = walk(f"{url}/docs", viewport={"width": width, "height": 800}, color_scheme=scheme).page
        expect(page.locator(".opblock")).to_have_count(len(ROUTES))
        for route in ("score", "info"):
            execute(open_operation(page, route))
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", ground)[0])
        assert red < 64 if scheme == "dark" else red > 192
        assert page.evaluate("document.documentElement.classList.contains('dark-mode')") is (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "eval", "ocr", "rules", "unifiedreward"])
def test_axe_finds_nothing_on_the_page_to_try(walk: OpenWalk, tmp_path: Path, name: str) -> None:
    """With the sample scored and all folds open, wide and narrow, light and dark; before it is scored in the first look."""
    with every_service(name, tmp_path) as url:
        for width in (1400, 390):
            for scheme in ("light", "dark"):
                page = walk(url, viewport={"width": width, "height": 900}, color_scheme=scheme).page
                expect(page.locator("#reward option")).not_to_have_count(0)
                if (width, scheme) == (1400, "light"):
                    assert violations(page) == []
                take_the_sample(page)
                page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
                assert violations(page) == []


def test_without_scripts_the_api_page_says_the_same(browser: Browser) -> None:
    with serving_here(RulesScorer(), "rules") as url:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(f"{url}/docs")
        assert page.get_by_role("heading", name="POST /v1/score").is_visible()
        assert page.get_by_text("A field is wrong; `field` names it").is_visible()
        context.close()
