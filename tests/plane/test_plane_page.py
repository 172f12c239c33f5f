"""The page of `rewards services --serve`: what it says without scripts, events, who is answered; and in a browser."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.kit.testing.fakes import PromptLengthScorer
from tests.plane.test_plane_looks import score
from tests.support.axe import violations
from tests.support.chromium import CHROMIUM
from tests.support.ports import free_port
from tests.support.serving_here import serving_here

ROOT = Path(__file__).resolve().parents[2]
TOKEN, PAGE_TOKEN = "correct-horse-battery-staple", "this-is-for-the-page-alone"


@dataclass(frozen=True)
class Served:
    url: str
    service: str
    gone: str
    process: subprocess.Popen[str]


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Served]:
    """The command as a person starts it, of a service and of an address where nothing is; it must end by itself when told to."""
    (folder / "tokens").write_text(f"lab:{TOKEN}\n")
    with serving_here(PromptLengthScorer(), token_file=folder / "tokens") as service:
        gone = f"http://127.0.0.1:{free_port()}"
        words = [f"pair={service},{gone}", "--token-file", str(folder / "tokens"), "--serve", "--port", "0", *flags]
        command = [sys.executable, "-m", "rewards", "services", *words]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            try:
                assert line.startswith("2 services of pair="), line
                yield Served(line.rsplit(" ", 1)[1].strip(), service, gone, process)
            finally:
                process.terminate()
                assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "page_tokens").write_text(f"{PAGE_TOKEN}\n")
    with serving(folder, "--watch", "0.1", "--page-token-file", str(folder / "page_tokens")) as served:
        yield served


def get(served: Served, path: str = "/", token: str = PAGE_TOKEN, **headers: str) -> httpx.Response:
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(served.url + path, headers={**bearer, **headers}, trust_env=False, timeout=60)


def cells(page: str, row: int) -> dict[str, str]:
    (line,) = re.findall(rf'<tr data-row="{row}"[^>]*>(.*?)</tr>', page, re.S)
    found = re.findall(r'<td role="cell" data-cell="([^"]*)"[^>]*>(.*?)</td>', line, re.S)
    return {key: html.unescape(re.sub(r"<[^>]+>", "|", text)).strip("|") for key, text in found}


def test_the_page_says_it_without_scripts_and_asks_no_other_host(served: Served) -> None:
    answer = get(served)
    page = answer.text
    assert '<b id="summary" role="status">1 of 2 ready</b>' in page
    good, gone = cells(page, 0), cells(page, 1)
    assert good["state"].startswith("ready") and good["busy"] == "0||of 4096" and good["left"] == "no limits"
    assert gone["state"] == "unreachable||no connection: Connection refused" and gone["p95"] == "–"
    assert '<noscript><meta http-equiv="refresh" content="0.1"></noscript>' in page
    assert TOKEN not in page and PAGE_TOKEN not in page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded and all(each.startswith(("/", "#", "data:,")) for each in loaded)
    for each in loaded:
        if each.startswith("/assets/"):
            assert get(served, each, token="").status_code == 200, "the page that asks for the token is dressed, too"


def test_events_and_curves_follow_what_is_scored(served: Served) -> None:
    with httpx.stream(
        "GET", served.url + "/events", headers={"Authorization": f"Bearer {PAGE_TOKEN}"}, trust_env=False, timeout=60
    ) as stream:
        seen = []
        for line in stream.iter_lines():
            if line.startswith("data: "):
                if not seen:
                    assert score(served.service, "a", token=TOKEN).status_code == 200
                seen.append(json.loads(line.removeprefix("data: "))["rows"][0])
                assert len(seen) < 600, "what was scored is never told"
                if seen[-1]["cells"]["p95"]["text"] != "–" and seen[-1]["over"].startswith("in the last"):
                    break
    charts = {each["name"]: each["numbers"]["series"] for each in get(served, "/charts").json()}
    assert set(charts) == {"p50", "p95", "per_second", "busy"}
    assert [each["label"] for each in charts["p95"]] == ["pair 1/2", "pair 2/2"]
    of_service, of_nobody = charts["p95"]
    assert any(value is not None and value > 0 for value in of_service["y"])
    assert set(of_nobody["y"]) == {None}, "what is not known is no zero in a curve either"
    told = get(served, "/services.json").json()
    assert [each["state"] for each in told["services"]] == ["ready", "unreachable"]


def test_who_is_answered(served: Served) -> None:
    assert get(served, Host="rewards.example.com").status_code == 421
    assert get(served, Origin="http://evil.example.com").status_code == 403
    assert get(served, token="").status_code == get(served, token="x" * 26).status_code == 401
    assert "Send one of the tokens" in get(served, token="").text
    assert get(served, "/services.json", token="").status_code == 401
    assert get(served, "/nowhere").status_code == 404
    assert httpx.put(served.url, trust_env=False).status_code == 405
    entered = httpx.post(served.url + "/enter", data={"token": PAGE_TOKEN}, trust_env=False)
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"].split(";")[0]
    assert cookie.startswith(f"rewards_{served.url.rpartition(':')[2]}=") and PAGE_TOKEN not in cookie
    assert get(served, token="", Cookie=cookie).status_code == 200


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_in_a_browser(chromium: None, tmp_path: Path) -> None:
    """It follows the services, fits a phone, is used by the keyboard, and breaks no rule of axe; the console stays silent."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=180_000)  # a busy machine's Chromium may take seconds to draw
    said: list[str] = []
    with serving(tmp_path, "--watch", "1") as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        for width, scheme in ((1400, "light"), (390, "dark")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(180_000)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(served.url)
            expect(page.locator("#live")).to_have_text("Live.")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert score(served.service, "a", token=TOKEN).status_code == 200
            row = page.locator('[data-row="0"]')
            expect(row.locator('[data-cell="state"] span')).to_have_text("ready")
            chart = page.locator('figure[data-chart="busy"]')
            chart.evaluate("each => each.scrollIntoView()")  # charts are made when they come near the window
            expect(chart.locator(".u-over")).to_be_visible()
            expect(page.get_by_role("status").first).to_have_text("1 of 2 ready")
            page.keyboard.press("Tab")
            expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
            assert violations(page) == []
            assert asked and all(url.startswith((served.url, "data:")) for url in asked), asked
            context.close()
        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto(served.url)
        expect(plain.locator('[data-row="1"]')).to_contain_text("no connection: Connection refused")
        silence_is_said(browser.new_page(), served)
        browser.close()
    assert said == []


def silence_is_said(page: Any, served: Served) -> None:
    """A server that keeps its connection and says nothing, not even that it is there."""
    from playwright.sync_api import expect

    page.clock.install()
    page.goto(served.url)
    live = page.locator("#live")
    expect(live).to_have_text("Live.")
    served.process.send_signal(signal.SIGSTOP)
    try:
        page.clock.fast_forward(60_000)
        expect(live).to_have_text("The server has said nothing for a while; what is shown may be old.")
    finally:
        served.process.send_signal(signal.SIGCONT)
    expect(live).to_have_text("Live.")
