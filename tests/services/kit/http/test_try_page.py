"""The page at `/`, in real Chromium, against real services."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageStat
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from benchmarks.shapes_detector import draw
from services.geneval.settings import GenevalSettings, make_scorer
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from services.kit.testing.fakes import FakeScorer, PromptLengthScorer
from tests.support.chromium import CHROMIUM, NOT_INSTALLED
from tests.support.serving_here import serving_here
from tests.support.tiny_services import SHAPES_DETECTOR
from wire.schema import ErrorCode, ScorerInfo

# A busy machine's Chromium may take seconds to draw its first picture.
expect.set_options(timeout=60_000)

TOKEN = "correct-horse-battery-staple"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;</style>"
BOX_COLOR = (0xD6, 0x00, 0x6C)


class BrightnessContest(FakeScorer):
    """Compares: the share of the group's other pictures that are darker."""

    name = "brightness"

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {self.name: ScorerInfo(name=self.name, revision="1", range=(0.0, 1.0), grouped=True)}

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        light = [ImageStat.Stat(item.images[0].convert("L")).mean[0] if item.images else 0.0 for item in items]
        others = max(1, len(items) - 1)
        return [Score(sum(each > other for other in light) / others, {"light": each / 255}) for each in light]

    def score_item(self, item: Item) -> Result:
        raise AssertionError("this scorer compares: `score` is asked with a whole group")


class HostileScorer(PromptLengthScorer):
    """Markup wherever the scorer has a say; prompts with "fail" fail with it too."""

    name = "hostile <b>reward</b>"

    def score_item(self, item: Item) -> Result:
        if "fail" in item.prompt:
            return Failure(ErrorCode.PARSE_ERROR, HOSTILE)
        seen: dict[str, Any] = {"images": [{"lines": [{"text": HOSTILE, "confidence": 0.5, "box": [HOSTILE, None]}]}]}
        seen["said"] = {HOSTILE: [HOSTILE, {"prompt": item.prompt}, None, True, 2.5]}
        return Score(0.25, {HOSTILE: 0.5}, seen)


class EchoScorer(PromptLengthScorer):
    """Says in its details what it was given."""

    name = "echo"

    def score_item(self, item: Item) -> Result:
        sizes = [list(image.size) for image in (*item.images, *item.source_images)]
        return Score(1.0, {}, {"sizes": sizes, "completion": item.completion, "metadata": dict(item.metadata)})


@dataclass
class Seen:
    """What a page did beside showing itself."""

    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(NOT_INSTALLED)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        try:
            launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        except Error as error:
            pytest.skip(f"{CHROMIUM} is there and does not start: {error}")
        yield launched
        launched.close()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def open_page(browser: Browser, seen: Seen) -> Iterator[OpenPage]:
    """Opens a service's page. At the end: nothing in the console, and no request to anyone else."""
    contexts = []
    urls = set()

    def opened(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        urls.add(urlsplit(url).netloc)
        page = context.new_page()
        page.on("console", lambda message: seen.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.console.append(f"error: {error}"))
        page.on("request", lambda request: seen.hosts.add(urlsplit(request.url).netloc))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    # Chromium itself logs each answer that is not 2xx, and none; those are what some tests are about.
    assert [line for line in seen.console if "Failed to load resource" not in line] == []
    assert seen.hosts - {""} <= urls  # "": the pictures' own data and blob addresses


@pytest.fixture(scope="module")
def ocr(serving_factory) -> Iterator[str]:
    with serving_factory("--log-level", "warning", module="services.ocr") as server:
        server.wait_ready(60)
        yield server.url


def sign(text: str, path: Path, size: tuple[int, int] = (400, 160), **options: Any) -> Path:
    """A picture with a word in its lower half, so that a box in the wrong place shows."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((size[0] * 0.6, size[1] * 0.7), text, "black", ImageFont.load_default(36), anchor="mm")
    image.save(path, **options)
    return path


def give(page: Page, *paths: Path) -> None:
    page.locator("#pictures input[type=file]").set_input_files([str(path) for path in paths])
    expect(page.locator("#pictures .thumbs img")).to_have_count(len(paths))


def score(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#send")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#answer .score, #problem:not([hidden])").first).to_be_visible()


def shown_scores(page: Page) -> list[float]:
    return [float(value) for value in page.locator(".score data").evaluate_all("all => all.map(e => e.value)")]


def canvas_image(page: Page, number: int = 0) -> Image.Image:
    canvas = page.locator(".card canvas").nth(number)
    expect(canvas).to_have_attribute("data-boxes", re.compile(r"\d+"))
    data = canvas.evaluate("canvas => canvas.toDataURL('image/png')")
    return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")


def assert_boxed(drawn: Image.Image, box: list[list[float]]) -> None:
    (left, top), (right, bottom) = box[0], box[2]
    for x, y in (((left + right) / 2, top), (right, (top + bottom) / 2), ((left + right) / 2, bottom)):
        near = drawn.crop((round(x) - 1, round(y) - 1, round(x) + 2, round(y) + 2))
        assert any(math.dist(colour, BOX_COLOR) < 40 for _, colour in near.getcolors()), (x, y)


def ask_api(url: str, path: Path, prompt: str, reward: str | None = None) -> dict[str, Any]:
    """The first result of the same call made with JSON."""
    image = {"media_type": "image/png", "data": base64.b64encode(path.read_bytes()).decode()}
    body = {"items": [{"id": "0", "prompt": prompt, "images": [image]}], "reward": reward}
    answer = httpx.post(url + "/v1/score", json=body)
    answer.raise_for_status()
    return answer.json()["results"][0]


def run_command(page: Page, folder: Path, **environment: str) -> dict[str, Any]:
    """What the command on the page gives when bash runs it in the pictures' folder."""
    command = page.locator("#command").inner_text()
    assert len(command) < 5000
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def test_headers_admit_only_the_style_and_script_of_the_page() -> None:
    with serving_here(PromptLengthScorer(), name="a<b>") as url:
        answer = httpx.get(url + "/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [text] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert "a&lt;b&gt;" in answer.text and "a<b>" not in answer.text
    assert "<noscript>" in answer.text, (
        "without scripts nothing could be sent, and the page would say `connecting` for ever"
    )
    assert not re.search(r"\son\w+=|innerHTML|https?://(?!www\.w3\.org/2000/svg)", answer.text)


@pytest.mark.browser
@needs_curl
def test_a_word_is_read_boxed_and_scored_as_the_api_scores_it(ocr: str, open_page: OpenPage, tmp_path: Path) -> None:
    picture = sign("HARBOUR", tmp_path / 'it\'s "my" sign;$HOME.png')
    prompt = 'it\'s a sign: "HARBOR" `pwd` $HOME; type=x'
    page = open_page(ocr)
    give(page, picture)
    score(page, prompt)
    expected = ask_api(ocr, picture, prompt)
    assert shown_scores(page) == [expected["score"]] and 0 < expected["score"] < 1
    parts = page.locator(".parts dd data").evaluate_all("all => all.map(e => +e.value)")
    assert parts == list(expected["components"].values())
    widths = page.locator(".meter span").evaluate_all("all => all.map(e => parseFloat(e.style.inlineSize) / 100)")
    assert widths == pytest.approx([expected["score"], *expected["components"].values()], abs=1e-4)
    assert page.locator(".lines li span:first-child").all_inner_texts() == ["HARBOUR"]
    [line] = expected["details"]["images"][0]["lines"]
    drawn = canvas_image(page)
    assert drawn.size == (400, 160)
    assert_boxed(drawn, line["box"])
    assert drawn.getpixel((20, 20)) == (255, 255, 255)
    assert run_command(page, tmp_path)["results"][0]["score"] == expected["score"]


@pytest.mark.browser
@needs_curl
def test_the_sample_needs_no_file_and_can_be_saved_for_the_command(
    ocr: str, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(ocr)
    expect(page.locator("#reward option")).not_to_have_count(0)
    page.get_by_role("button", name="or use a sample").click()
    expect(page.locator("#pictures .thumbs img")).to_have_count(1)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator(".score data")).to_have_count(1)
    assert shown_scores(page) == [1.0]
    assert page.get_by_label("Prompt").input_value() == 'a shop sign that says "FRESH BREAD" in red'
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save sample.png").click()
    saved.value.save_as(tmp_path / "sample.png")
    again = run_command(page, tmp_path)["results"][0]
    assert (again["score"], again["cached"]) == (1.0, True)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".times")).to_contain_text("from the cacheyes")
    assert re.search(r"round trip\s*[\d.]+ m?s", page.locator(".times").inner_text())
    page.locator("#raw summary").click()
    assert json.loads(page.locator("#json").inner_text())["results"][0]["score"] == 1.0


@pytest.mark.browser
def test_targets_and_the_choice_of_reward_are_sent(ocr: str, open_page: OpenPage, tmp_path: Path) -> None:
    picture = sign("HARBOUR", tmp_path / "sign.png")
    page = open_page(ocr)
    give(page, picture)
    score(page, "no quotes here")
    assert page.locator(".failed").inner_text().split("\n\n") == [
        "no score",
        "not_applicable no `targets` given and the prompt quotes no text",
    ]
    page.get_by_text("More to send").click()
    page.get_by_label("Targets").fill("HARBOUR\n\n  PIER ")
    page.get_by_label("Reward").select_option("strict")
    score(page, "no quotes here")
    sent = json.loads(re.findall(r"'request=(.*)'", page.locator("#command").inner_text())[0])
    assert (sent["reward"], sent["items"][0]["targets"]) == ("strict", ["HARBOUR", "PIER"])
    assert page.locator(".hint", has_text="strict, 0 to 1, higher is better").is_visible()
    assert 0.5 < shown_scores(page)[0] < 1


@pytest.mark.browser
@needs_curl
def test_a_source_picture_a_completion_and_metadata_are_sent(open_page: OpenPage, tmp_path: Path) -> None:
    for name, size in (("after", (30, 20)), ("before", (10, 40))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.webp")
    with serving_here(EchoScorer()) as url:
        page = open_page(url)
        page.get_by_text("More to send").click()
        page.get_by_label("Completion").fill("it's\ndone")
        score(page, "text alone")
        assert run_command(page, tmp_path)["results"][0]["details"]["sizes"] == []
        give(page, tmp_path / "after.webp")
        page.locator("#sources input").set_input_files(str(tmp_path / "before.webp"))
        expect(page.locator("#sources .thumbs img")).to_have_count(1)
        page.get_by_label("Metadata").fill('{"colour": "red", "n": [1, 2.5]}')
        score(page, "all")
        got = json.loads(page.locator("#json").text_content())["results"][0]["details"]
        metadata = {"colour": "red", "n": [1, 2.5]}
        assert got == {"sizes": [[30, 20], [10, 40]], "completion": "it's\ndone", "metadata": metadata}
        assert run_command(page, tmp_path)["results"][0]["details"] == got


@pytest.mark.browser
def test_boxes_fit_a_photograph_that_a_camera_turned(ocr: str, open_page: OpenPage, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    upright = Image.open(sign("HARBOUR", tmp_path / "upright.png"))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    page = open_page(ocr)
    give(page, tmp_path / "turned.jpg")
    score(page, 'a "HARBOUR"')
    assert shown_scores(page) == [1]
    drawn = canvas_image(page)
    assert drawn.size == (400, 160)
    [result] = json.loads(page.locator("#json").text_content())["results"]
    [line] = result["details"]["images"][0]["lines"]
    assert_boxed(drawn, line["box"])


@pytest.mark.browser
def test_a_comparing_reward_gets_its_pictures_as_one_group(open_page: OpenPage, tmp_path: Path) -> None:
    for name, colour in (("dark", "#222222"), ("light", "#eeeeee"), ("middle", "#888888")):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{name}.png")
    scorer = BrightnessContest()
    scorer.warmup = lambda: []
    with serving_here(scorer) as url:
        page = open_page(url)
        expect(page.get_by_text("they are compared")).to_be_visible()
        give(page, *(tmp_path / f"{name}.png" for name in ("dark", "light", "middle")))
        score(page, "brighter")
        assert shown_scores(page) == [0.0, 1.0, 0.5]
        assert [canvas_image(page, n).getpixel((5, 5))[0] for n in range(3)] == [0x22, 0xEE, 0x88]
        sent = json.loads(re.findall(r"'request=(.*)'", page.locator("#command").inner_text())[0])
        assert len({item["group_id"] for item in sent["items"]}) == 1
        page.get_by_role("button", name="Remove light.png").click()
        score(page, "brighter")
        assert shown_scores(page) == [0.0, 1.0]


@pytest.mark.browser
def test_hostile_texts_stay_texts(open_page: OpenPage, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "x.png")
    with serving_here(HostileScorer(), name=HOSTILE) as url:
        page = open_page(url)
        title = page.title()
        assert title == f"{HOSTILE}: try this reward"
        give(page, tmp_path / "x.png")
        score(page, HOSTILE)
        texts = page.locator("#answer").inner_text()
        assert texts.count(HOSTILE) == 5  # a line, a component, a key, a value and the prompt
        assert page.locator("#answer :is(script, style, b), #answer img").count() == 0
        score(page, "fail")
        assert HOSTILE in page.locator(".failed").inner_text()
        assert page.locator("h1").inner_text().startswith(HOSTILE)
        assert (page.title(), page.locator("script").count()) == (title, 1)


@pytest.mark.browser
def test_what_is_wrong_is_said(open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "words.txt").write_text("not a picture")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "x.png")
    with serving_here(PromptLengthScorer(), max_items=2, queue_size=2) as url:
        page = open_page(url)
        score(page, "no picture")
        assert page.locator("#problem").inner_text() == "Give a picture first, or use the sample."
        page.locator("#pictures input").set_input_files(str(tmp_path / "words.txt"))
        expect(page.locator("#problem")).to_contain_text("words.txt is not a picture this browser can read")
        give(page, tmp_path / "broken.png")
        score(page, "broken")
        assert "bad_input" in page.locator(".failed").inner_text()
        page.get_by_role("button", name="Remove broken.png").click()
        give(page, *(tmp_path / "x.png",) * 3)
        score(page, "three")
        expect(page.locator("#problem")).to_have_text("too_large items: 3 items; the limit is 2: split the request")
        page.get_by_text("More to send").click()
        page.get_by_label("Metadata").fill("[1]")
        score(page, "metadata")
        expect(page.locator("#problem")).to_contain_text("Metadata must be a JSON object")
    page.get_by_label("Metadata").fill("")
    score(page, "gone")
    expect(page.locator("#problem")).to_contain_text("no_answer The service cannot be reached")
    expect(page.locator("#state")).to_have_text("not reachable", timeout=15_000)


@pytest.mark.browser
@needs_curl
def test_a_closed_service_asks_for_its_token(open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "x.png")
    with serving_here(PromptLengthScorer(), token_file=tmp_path / "tokens") as url:
        assert httpx.post(url + "/").status_code == 401
        page = open_page(url)
        expect(page.get_by_label("Token")).to_be_focused()
        expect(page.get_by_role("link", name="API")).to_be_visible()  # its page asks for the token itself
        give(page, tmp_path / "x.png")
        score(page, "closed")
        expect(page.locator("#problem")).to_contain_text("This service needs a token: type it above.")
        page.get_by_label("Token").fill("wrong")
        page.get_by_label("Token").blur()
        expect(page.locator("#problem")).to_contain_text("unauthorized The service does not know this token.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_label("Token").blur()
        expect(page.locator("#reward option")).to_have_count(1)
        score(page, "closed")
        assert shown_scores(page) == [6.0]
        assert TOKEN not in page.locator("#command").inner_text()
        assert run_command(page, tmp_path, TOKEN=TOKEN)["results"][0]["score"] == 6.0
        assert TOKEN not in page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_phone_shows_it_without_scrolling_sideways(open_page: OpenPage, tmp_path: Path, scheme: str) -> None:
    Image.new("RGB", (1200, 300), "red").save(tmp_path / "a_rather_long_name_for_a_picture_that_is_wide.png")
    with serving_here(HostileScorer(), name="a" * 60) as url:
        page = open_page(url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        give(page, tmp_path / "a_rather_long_name_for_a_picture_that_is_wide.png")
        page.get_by_text("More to send").click()
        score(page, "w" * 300)
        page.locator("#raw summary").click()
        wide = page.evaluate(
            "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.unseen') && "
            "e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 120))"
        )
        assert wide == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        contrast = page.evaluate(CONTRAST)
        assert contrast and min(contrast.values()) >= 4.5, contrast


# The contrast (WCAG 2.2) of what is written against what is behind it, by the element's text.
CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = {};
  for (const e of document.querySelectorAll('label, p, dt, dd, h1, h2, .hint, button, a, pre, summary, li span')) {
    if (!e.checkVisibility() || !e.innerText.trim()) continue;
    const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found[`${e.tagName} ${e.innerText.slice(0, 30)}`] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""


class KeyboardScorer(PromptLengthScorer):
    """Has a sample of one picture."""

    samples: Mapping[str, Sample] = {"prompt_length": Sample("x", (Image.new("RGB", (200, 100), "red"),))}


@pytest.mark.browser
def test_everything_can_be_done_from_the_keyboard(open_page: OpenPage) -> None:
    with serving_here(KeyboardScorer()) as url:
        page = open_page(url)
        expect(page.locator("#reward option")).to_have_count(1)
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            name = page.evaluate(
                "document.activeElement.id || document.activeElement.type || document.activeElement.tagName"
            )
            reached.append(name)
            if name == "sample":
                page.keyboard.press("Enter")
                expect(page.locator("#pictures .thumbs img")).to_have_count(1)
            if name == "send":
                page.keyboard.press("Enter")
                break
        assert reached == ["docs", "reward", "prompt", "file", "sample", "button", "SUMMARY", "send"]
        expect(page.locator(".score data")).to_have_count(1)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')].filter("
            "e => !e.labels?.length && !e.innerText && !e.getAttribute('aria-label')).map(e => e.id)"
        )
        assert unnamed == []


@pytest.mark.browser
def test_pictures_come_by_drop_and_paste_and_others_are_redrawn(open_page: OpenPage) -> None:
    """A bitmap, which the service does not take, becomes a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (10, 200, 30)).save(buffer, "BMP")
    give_event = """([name, data]) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], 'green.bmp', {type: 'image/bmp'}));
      const event = name === 'paste' ? new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})
        : new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});
      document.querySelector('main').dispatchEvent(event);
    }"""
    with serving_here(PromptLengthScorer()) as url:
        page = open_page(url)
        expect(page.locator("#reward option")).to_have_count(1)
        for count, name in enumerate(("drop", "paste"), 1):
            page.evaluate(give_event, [name, base64.b64encode(buffer.getvalue()).decode()])
            expect(page.locator("#pictures .thumbs img")).to_have_count(count)
        score(page, "12345")
        assert shown_scores(page) == [5.0, 5.0]
        assert canvas_image(page).getpixel((15, 10)) == (10, 200, 30)
        assert page.get_by_role("link", name="Save green.png").count() == 2


@pytest.mark.browser
def test_the_objects_that_geneval_found_are_boxed(open_page: OpenPage, tmp_path: Path) -> None:
    row = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
    picture, [(_, (left, top, right, bottom))] = draw(3, ["circle"])
    picture.save(tmp_path / "circle.png")
    scorer = make_scorer(GenevalSettings(device="cpu", threads=1, detector=SHAPES_DETECTOR))
    with serving_here(scorer, "geneval") as url:
        page = open_page(url)
        give(page, tmp_path / "circle.png")
        page.get_by_text("More to send").click()
        page.get_by_label("Metadata").fill(json.dumps(row))
        score(page, "a photo of a circle")
        assert shown_scores(page) == [1.0]
        assert page.locator(".lines li span:first-child").all_inner_texts() == ["circle"]
        drawn = canvas_image(page)
        scale = int(page.locator(".card canvas").get_attribute("data-scale") or 0)
    assert scale == 5, "64 pixels are shown as 320"
    left, top, right, bottom = (scale * value for value in (left, top, right, bottom))
    pink = [
        (x, y)
        for x in range(drawn.width)
        for y in range(drawn.height)
        if math.dist(drawn.getpixel((x, y)), BOX_COLOR) < 40
    ]
    columns, rows = sorted(x for x, _ in pink), sorted(y for _, y in pink)
    # The detector's box is a pixel or two beside the drawn one; the number's label stands above its corner.
    assert columns[0] == pytest.approx(left, abs=5 * scale) and columns[-1] == pytest.approx(right, abs=5 * scale)
    assert rows[0] <= top and rows[-1] == pytest.approx(bottom, abs=5 * scale)


class CountingScorer(PromptLengthScorer):
    """A share and a count, both between 0 and 1, and a sample that is one pixel wide and high."""

    name = "counting"
    off_scale = ("words",)
    samples: Mapping[str, Sample] = {
        "counting": Sample("x" * 5, (Image.new("RGB", (24, 12), "red"),), targets=("A", "B"))
    }

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {name: ScorerInfo(name=name, revision="1", range=(0.0, 1.0)) for name in ("counting", "plain")}

    def score_item(self, item: Item) -> Result:
        return Score(len(item.prompt) / 10, {"share": 0.5, "words": 1.0})


@pytest.mark.browser
def test_counts_get_no_bar_and_small_pictures_are_enlarged(open_page: OpenPage) -> None:
    """The picture of 24 x 12 pixels is shown 13 times as large, each of its pixels a square; the sample fills the form."""
    with serving_here(CountingScorer()) as url:
        page = open_page(url)
        expect(page.locator("#reward option")).to_have_count(2)
        page.get_by_label("Metadata").evaluate("field => { field.value = 'left over'; }")
        page.get_by_role("button", name="or use a sample").click()
        expect(page.get_by_label("Targets")).to_have_value("A\nB")
        expect(page.locator("#pictures .thumbs img.small")).to_have_count(1)
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator(".parts dt")).to_have_count(2)
        assert shown_scores(page) == [0.5]
        named = page.locator(".meter").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
        assert named == ["score", "share"]
        assert page.locator(".parts dd data").all_inner_texts() == ["0.5", "1"]
        assert canvas_image(page).size == (24 * 13, 12 * 13)
        page.get_by_label("Reward").select_option("plain")
        page.get_by_role("button", name="or use a sample").click()
        expect(page.locator("#problem")).to_contain_text("the reward 'plain' has no sample: its author gave none")
